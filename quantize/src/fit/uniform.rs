//! Fitting for vLLM: one scheme for the whole model.
//!
//! vLLM loads queries, keys and values as one matrix, and all experts of a layer, which then have one scheme; there are but a few, and
//! what they cost lies close together. So every uniform plan is made, and the one that loses least among those that fit is taken.

use std::path::Path;

use formats::{Source, config::FloatType};
use kernels::{Format, float, w4a16};

use super::{Answer, Basis, Fit, Model, Placed, Rung, Share, Short, Wish, planned_for, short};
use crate::{
    allocate::Question,
    budget::{self, Run, vllm},
    error::{Error, Result},
    job::Job,
    placement::{Place, Placement},
    plan::{Container, Options},
    target::{Target, marlin},
};

/// What the target's engines run.
fn runs(target: Option<&Target>) -> Vec<&'static Format> {
    target.map_or_else(marlin, |target| target.formats(Container::CompressedTensors))
}

/// The schemes to choose from, whatever the type of their scales, and what is not quantized; none if no engine loads the container.
pub fn candidates(target: Option<&Target>) -> Vec<&'static Format> {
    let mut all = Vec::new();
    for format in runs(target).into_iter().map(of_cost) {
        if !all.contains(&format) {
            all.push(format);
        }
    }
    all
}

/// What a format costs is asked of this one: whether scales have 8 or 11 bits of fraction makes no difference.
fn of_cost(format: &'static Format) -> &'static Format {
    if format.block == 1 { &float::BF16 } else { w4a16::with_scales(format, &float::BF16) }
}

/// A plan of one scheme.
struct Uniform {
    name: &'static str,
    options: Options,
    job: Job,
    cost: f64,
}

impl Uniform {
    fn new(source: &Source, out: &Path, wish: &Wish, format: &'static Format) -> Result<Uniform> {
        let options = Options {
            target: wish.target.as_ref().map(|target| planned_for(target, &wish.run)),
            calibration: wish.calibration.clone(),
            shard_size: wish.shard_size,
            ..Options::new(Container::CompressedTensors, format.name)
        };
        let job = Job::plan(source, out, &options)?;
        Ok(Uniform { name: format.name, options, job, cost: f64::INFINITY })
    }

    /// How it lies on the target, or by how many bytes it is too large.
    fn place(&self, wish: &Wish, model: &Model) -> Result<std::result::Result<Placed, u64>> {
        let files = self.job.file_bytes();
        if let Some(most) = wish.max_size.filter(|&most| files > most) {
            return Ok(Err(files - most));
        }
        let cards = wish.target.as_ref().map_or(1, |target| target.devices.len());
        let place = if cards == 1 { Place::Device(0) } else { Place::Everywhere };
        let placement = Placement::all_at(place, &self.job.outputs, model.cache.len());
        let Some(target) = &wish.target else {
            return Ok(Ok(Placed { placement, shares: Vec::new(), flags: Vec::new() }));
        };
        let cards = cards as u64;
        let budget = self.budget(wish, model, cards)?;
        let taken: Vec<(u64, u64)> = target.devices.iter().map(vllm::share).collect();
        let missing: u64 = taken.iter().map(|&(_, usable)| budget.excess(usable)).sum();
        if missing > 0 {
            return Ok(Err(missing));
        }
        let shares = target.devices.iter().zip(&taken).map(|(device, &(_, usable))| Share {
            name: device.name.clone(),
            usable,
            budget: budget.clone(),
        });
        let percent = taken.iter().map(|&(percent, _)| percent).min().unwrap_or(0);
        let flags = vllm::flags(&vllm::allowed(&model.hyper, &wish.run)?, percent, cards);
        Ok(Ok(Placed { placement, shares: shares.collect(), flags }))
    }

    /// What each of the target's cards holds.
    fn budget(&self, wish: &Wish, model: &Model, cards: u64) -> Result<budget::Budget> {
        let job = &self.job;
        let bytes: Vec<u64> = (0..job.outputs.len()).map(|index| job.tensor_bytes(index)).collect();
        let loaded = vllm::Loaded::new(&job.outputs, &bytes, &job.formats, &model.cache, cards);
        vllm::budget(&model.hyper, &wish.run, &model.cache, &loaded, cards)
    }
}

/// As [`fit`](super::fit()), for vLLM.
pub fn fit(source: &Source, out: &Path, wish: &Wish) -> Result<Answer> {
    let candidates = super::candidates(wish)?;
    let cards = wish.target.as_ref().map_or(1, |target| target.devices.len()) as u64;
    let base = Uniform::new(source, out, wish, &float::BF16)?;
    let model = Model::new(source, &base.job, wish)?;
    if wish.target.is_some() {
        vllm::check_cards(&model.hyper, &model.cache, cards)?;
    }
    let full = if base.job.facts.dtype == Some(FloatType::F16) { &float::F16 } else { &float::BF16 };
    let mut plans = Vec::new();
    let mut refused = None;
    let runs = runs(wish.target.as_ref());
    for format in candidates.iter().map(|format| with_type(format, base.job.facts.dtype, full)) {
        if !runs.contains(&format) {
            continue;
        }
        let plan = Uniform::new(source, out, wish, format).and_then(|plan| {
            vllm::check_rows(&plan.job.outputs, &plan.job.formats, cards)?;
            Ok(plan)
        });
        match plan {
            Ok(plan) => plans.push(plan),
            // The scheme can't be had; another one may.
            Err(error @ Error::Usage(_)) => refused = refused.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    let question =
        Question { outputs: &base.job.outputs, fixed: &base.job.formats, candidates: &candidates, align: 1 };
    let costs = match &wish.basis {
        Basis::Expected => question.expected(),
        Basis::Sampled => question.sampled(&*base.job.source, &base.job.scales),
        Basis::Measured(measured) => question.measured(measured),
    }?;
    for plan in &mut plans {
        let formats: Vec<_> = plan.job.formats.iter().map(|format| of_cost(format)).collect();
        plan.cost = costs.of(&formats).unwrap_or(f64::INFINITY);
    }
    plans.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    for (at, plan) in plans.iter().enumerate() {
        if let Ok(placed) = plan.place(wish, &model)? {
            let ladder = ladder(&plans, at);
            return Ok(Answer::Fits(Box::new(chosen(plans.swap_remove(at), placed, ladder, wish, &model))));
        }
    }
    let smallest = plans.iter().min_by_key(|plan| plan.job.tensors_bytes());
    match (smallest, refused) {
        (None, Some(error)) => Err(error),
        (Some(smallest), _) => Ok(Answer::Short(too_large(smallest, wish, &model)?)),
        (None, None) => Err(super::no_engine(wish)),
    }
}

/// A candidate with the scales that suit the checkpoint. vLLM computes in 16 bits, so that there are none in single precision.
fn with_type(format: &'static Format, dtype: Option<FloatType>, full: &'static Format) -> &'static Format {
    match (format.block, dtype) {
        (1, _) => full,
        (_, Some(FloatType::F16 | FloatType::F32)) => w4a16::with_scales(format, &float::F16),
        _ => format,
    }
}

/// The other plans by rising size, with their cost in units of the chosen one's.
fn ladder(plans: &[Uniform], chosen: usize) -> Vec<Rung> {
    let cost = plans[chosen].cost;
    let rung = |(_, plan): (usize, &Uniform)| Rung {
        name: plan.name.to_owned(),
        bytes: plan.job.tensors_bytes(),
        cost: (cost > 0.0 && plan.cost.is_finite()).then_some(plan.cost / cost),
    };
    let mut ladder: Vec<Rung> = plans.iter().enumerate().filter(|(at, _)| *at != chosen).map(rung).collect();
    ladder.sort_by_key(|rung| rung.bytes);
    ladder
}

fn chosen(plan: Uniform, placed: Placed, ladder: Vec<Rung>, wish: &Wish, model: &Model) -> Fit {
    let Placed { placement, shares, flags } = placed;
    Fit {
        speed: model.speed(wish, &plan.job, &placement),
        predicted: matches!(wish.basis, Basis::Measured(_)).then_some(plan.cost),
        options: plan.options,
        job: plan.job,
        placement,
        shares,
        flags,
        ladder,
    }
}

/// By how much the smallest plan is too large, and what would do it.
fn too_large(smallest: &Uniform, wish: &Wish, model: &Model) -> Result<Short> {
    let missing = smallest.place(wish, model)?.err().unwrap_or(0);
    let cards = wish.target.as_ref().map_or(1, |target| target.devices.len()) as u64;
    let buffers = match wish.target {
        Some(_) => smallest.budget(wish, model, cards)?.buffer_bytes().high,
        None => 0,
    };
    let with = |run: Run| {
        // Some models can't have a quantized cache.
        let Some(model) = model.running(run) else { return Ok(None) };
        let wish = Wish { run, ..wish.clone() };
        let fits = smallest.place(&wish, &model)?.is_ok();
        Ok(fits.then_some(short::Change { run, cache: model.cache_bytes() }))
    };
    let changes = if wish.target.is_some() { short::changes(wish.run, with)? } else { Vec::new() };
    let (smallest, cache) = (smallest.job.tensors_bytes(), model.cache_bytes());
    Ok(Short { missing, smallest, cache, buffers, changes })
}

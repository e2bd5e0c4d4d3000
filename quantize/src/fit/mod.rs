//! Fitting a model to a machine: the types, the places and the engine's options with which it loses least and still runs there,
//! from headers alone.
//!
//! The bytes of weights that there is room for follow from the placement, and the placement from the weights' types: so the
//! budget is searched for, between the smallest types and the best, until what is left is not worth another step.

mod ladder;
mod short;
mod uniform;

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use formats::{Source, output::Class};
use kernels::{Format, table};
use verify::{Processor, hyper::Hyper, weights::Weights};

use crate::{
    allocate::{Allocation, Costs, Question, rules::rules},
    budget::{self, Budget, LayerCache, Run},
    calibrate::{Calibration, Rounding},
    error::{Error, Result},
    job::Job,
    measure::{self, Measured},
    placement::{Load, Place, Placement, Room},
    plan::{Container, Options},
    progress::Progress,
    recipe::PlannedFor,
    speed::{Experts, bytes_per_token, tokens_per_second},
    target::{DeviceKind, Target},
};

pub use ladder::Rung;
pub use short::{Change, Short};

/// What a model is to fit.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The machine, if it is to fit one.
    pub target: Option<Target>,
    /// How it is to run there.
    pub run: Run,
    /// The container to write.
    pub container: Container,
    /// The most that the files may take.
    pub max_size: Option<u64>,
    /// The largest file, if not the container's default.
    pub shard_size: Option<u64>,
    /// What its weights are rounded by.
    pub calibration: Option<Calibration>,
    /// What it is known from what each format costs each tensor.
    pub basis: Basis,
}

/// What the costs of formats are known from.
#[derive(Clone, Debug)]
pub enum Basis {
    /// Headers alone.
    Expected,
    /// Some rows of every tensor.
    Sampled,
    /// A forward pass of the model: what [`measure`](measure()) found.
    Measured(Arc<Measured>),
}

/// What one memory holds.
#[derive(Clone, Debug)]
pub struct Share {
    /// The device, or the host's memory.
    pub name: String,
    /// Bytes that may be taken.
    pub usable: u64,
    /// Bytes that are.
    pub budget: Budget,
}

/// A plan that fits.
pub struct Fit {
    /// What the plan asks of the converter.
    pub options: Options,
    /// The conversion, ready to run.
    pub job: Job,
    /// Where everything lies; on the only device if the wish was a size of files.
    pub placement: Placement,
    /// What each device holds, and the host last, if it takes part.
    pub shares: Vec<Share>,
    /// The engine's options; none for MLX, which needs none.
    pub flags: Vec<String>,
    /// Tokens per second: an estimate; nothing if a bandwidth is unknown or there is no machine.
    pub speed: Option<Range<f64>>,
    /// The mean KL divergence from the source in nats that measured costs add up to.
    pub predicted: Option<f64>,
    /// The named mixes of the container (or uniform modes) beside the plan, by rising size.
    pub ladder: Vec<Rung>,
}

/// What became of a wish.
pub enum Answer {
    /// It can be done.
    Fits(Box<Fit>),
    /// Even the smallest types are too large.
    Short(Short),
}

/// The budget is not searched further once what is left is less than this part of it.
const PRECISION: u64 = 500;

/// Budgets that are tried at most.
const TRIES: usize = 12;

/// What a model is measured on.
#[derive(Clone, Debug)]
pub struct On {
    /// What computes.
    pub processor: Processor,
    /// Cores; all, if not given.
    pub threads: Option<usize>,
    /// Bytes of hidden states and buffers, about.
    pub memory: u64,
}

/// Measures on a text, in pieces of `context` tokens, what the formats that a wish allows cost the tensors of `source`: the best basis of a plan.
///
/// # Errors
/// As [`measure::measure`], and if the target's engines run nothing of the container.
pub fn measure(
    source: &Source,
    wish: &Wish,
    text: &str,
    context: usize,
    on: On,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Basis> {
    let candidates = candidates(wish)?;
    let rounding = wish.calibration.as_ref().map_or(Rounding::Nearest, |calibration| calibration.rounding);
    let On { processor, threads, memory } = on;
    let candidates = &candidates;
    let request = measure::Request { text, context, rounding, candidates, processor, threads, memory };
    Ok(Basis::Measured(Arc::new(measure::measure(source, &request, progress, cancel)?)))
}

/// Plans `source` for a wish; the job writes to `out`.
///
/// # Errors
/// If the source can't be planned, or the target's engines run nothing of the container.
pub fn fit(source: &Source, out: &Path, wish: &Wish) -> Result<Answer> {
    let format = match wish.container {
        Container::Gguf => "q8_0",
        Container::Mlx => "8bit-g64",
        _ => return uniform::fit(source, out, wish),
    };
    let all = candidates(wish)?;
    let align = align(wish);
    let base = Options {
        align: (wish.container == Container::Gguf).then_some(align),
        target: wish.target.as_ref().map(|target| planned_for(target, &wish.run)),
        calibration: wish.calibration.clone(),
        shard_size: wish.shard_size,
        ..Options::new(wish.container, format)
    };
    let job = Job::plan(source, out, &base)?;
    let model = Model::new(source, &job, wish)?;
    let question =
        Question { outputs: &job.outputs, fixed: &job.formats, candidates: &all, align: align.into() };
    let costs = match &wish.basis {
        Basis::Expected => question.expected(),
        Basis::Sampled => question.sampled(&*job.source, &job.scales),
        Basis::Measured(measured) => question.measured(measured),
    }?;
    // More than 8 bits buy next to nothing, and every token has to wait for them: only if all tensors could have 8.
    let quantized = costs.without(|format| format.block == 1);

    // Bytes of the files that are no tensors.
    let overhead_of = |job: &Job| job.file_bytes() - job.tensors_bytes();
    let mut overhead = overhead_of(&job);
    let (allocation, placed, options, planned) = loop {
        let search = Search { wish, model: &model, question: &question, costs: &quantized, overhead };
        let (mut allocation, mut placed) = match search.run()? {
            Ok(found) => found,
            Err(missing) => return Ok(Answer::Short(short::too_large(&search, missing)?)),
        };
        if quantized.allocate(&question, u64::MAX).is_some_and(|best| best == allocation)
            && let Ok(found) = (Search { costs: &costs, ..search }).run()?
        {
            (allocation, placed) = found;
        }
        let chosen = job.outputs.iter().zip(&allocation.formats).zip(&job.formats);
        let open = chosen.filter(|((output, format), fixed)| *format != *fixed || question.is_open(output));
        let options = Options {
            format: most_used(&job, &allocation),
            overrides: rules(open.map(|((output, format), _)| (output, *format))),
            shard_after: placed.placement.boundaries(),
            ..base.clone()
        };
        let planned = Job::plan(source, out, &options)?;
        // What is no tensor depends on the plan: MLX lists the types in its config, and every shard has a header.
        if wish.max_size.is_none_or(|most| planned.file_bytes() <= most) {
            break (allocation, placed, options, planned);
        }
        overhead = overhead_of(&planned);
    };
    let ladder = ladder::ladder(&job, wish, &costs, allocation.cost)?;
    let Placed { placement, shares, flags } = placed;
    Ok(Answer::Fits(Box::new(Fit {
        speed: model.speed(wish, &planned, &placement),
        predicted: matches!(wish.basis, Basis::Measured(_)).then_some(allocation.cost),
        options,
        job: planned,
        placement,
        shares,
        flags,
        ladder,
    })))
}

/// For the reader of the recipe.
fn planned_for(target: &Target, run: &Run) -> PlannedFor {
    PlannedFor {
        name: target.name.clone(),
        context: Some(run.context),
        parallel: Some(run.parallel),
        kv: Some(run.kv.name().to_owned()),
    }
}

/// Tensors begin at pages of the target, so that a loader can map them without a copy.
fn align(wish: &Wish) -> u32 {
    const GGUF: u32 = 32;
    let page = wish.target.as_ref().and_then(|target| u32::try_from(target.page).ok());
    page.filter(|page| page.is_power_of_two()).unwrap_or(GGUF)
}

/// The formats to choose from: those that the target's engines run, and in which this tool writes.
fn candidates(wish: &Wish) -> Result<Vec<&'static Format>> {
    let known = match (&wish.target, wish.container) {
        (target, Container::CompressedTensors) => uniform::candidates(target.as_ref()),
        (Some(target), container) => target.formats(container),
        (None, Container::Gguf) => table::GGUF.to_vec(),
        (None, _) => table::MLX.to_vec(),
    };
    // F32 is twice of what any source of such models has.
    let candidates: Vec<_> =
        known.into_iter().filter(|format| format.encode.is_some() && format.name != "f32").collect();
    if candidates.is_empty() { Err(no_engine(wish)) } else { Ok(candidates) }
}

/// Nothing on the target loads the container.
fn no_engine(wish: &Wish) -> Error {
    let (mut name, mut other, mut engines) = ("", Container::Gguf, Vec::new());
    if let Some(target) = &wish.target {
        name = &target.name;
        other = target.engines.first().map_or(other, |engine| engine.container());
        engines.extend(target.engines.iter().map(|engine| engine.name.as_str()));
    }
    Error::Usage(format!(
        "no engine of {name} ({}) loads {}; try --to {}",
        engines.join(", "),
        wish.container.name(),
        other.name()
    ))
}

/// The mix or mode that names the type which most bytes are in.
fn most_used(job: &Job, allocation: &Allocation) -> String {
    let mut weights: Vec<(&str, u64)> = Vec::new();
    for (output, format) in
        job.outputs.iter().zip(&allocation.formats).filter(|(output, _)| output.quantizable)
    {
        match weights.iter_mut().find(|(name, _)| *name == format.name) {
            Some((_, sum)) => *sum += output.elements(),
            None => weights.push((format.name, output.elements())),
        }
    }
    weights.into_iter().max_by_key(|&(_, sum)| sum).map_or("q8_0", |(name, _)| name).to_owned()
}

/// What planning must know of a model besides its tensors.
struct Model {
    hyper: Hyper,
    cache: Vec<LayerCache>,
    experts: Option<Experts>,
}

impl Model {
    fn new(source: &Source, job: &Job, wish: &Wish) -> Result<Model> {
        let hyper = Weights::open(source)?.hyper;
        let cache = if wish.target.is_some() { budget::cache(&hyper, &wish.run)? } else { Vec::new() };
        let is_mixture = job.outputs.iter().any(|output| output.class == Class::ExpertDown);
        let experts = if is_mixture {
            let (used, count) = (hyper.count("expert_used_count")?, hyper.count("expert_count")?);
            Some(Experts { used: used as u64, count: count as u64 })
        } else {
            None
        };
        Ok(Model { hyper, cache, experts })
    }

    /// The same, if it runs in another way; `None` if it can't.
    fn running(&self, run: Run) -> Option<Model> {
        let cache = budget::cache(&self.hyper, &run).ok()?;
        Some(Model { hyper: self.hyper.clone(), cache, experts: self.experts })
    }

    fn cache_bytes(&self) -> u64 {
        self.cache.iter().map(|layer| layer.bytes).sum()
    }

    fn speed(&self, wish: &Wish, job: &Job, placement: &Placement) -> Option<Range<f64>> {
        let target = wish.target.as_ref()?;
        let bytes: Vec<u64> = (0..job.outputs.len()).map(|index| job.tensor_bytes(index)).collect();
        let devices = target.devices.len();
        let read = bytes_per_token(&job.outputs, &bytes, self.experts, placement, devices);
        let bandwidth: Vec<Option<u64>> =
            target.devices.iter().chain(&target.host).map(|device| device.bandwidth).collect();
        // Without a figure for the host nothing can be said once it takes part.
        let all = bandwidth.into_iter().chain(std::iter::repeat(None)).take(devices + 1);
        tokens_per_second(&read, &all.collect::<Vec<_>>())
    }
}

/// A placement that fits, and what each memory then holds.
struct Placed {
    placement: Placement,
    shares: Vec<Share>,
    flags: Vec<String>,
}

/// The search for the budget.
struct Search<'a> {
    wish: &'a Wish,
    model: &'a Model,
    question: &'a Question<'a>,
    costs: &'a Costs,
    /// Bytes of the files that are no tensors.
    overhead: u64,
}

impl Search<'_> {
    /// The best allocation that fits, or by how many bytes the smallest is too large.
    fn run(&self) -> Result<std::result::Result<(Allocation, Placed), u64>> {
        let smallest = self.costs.smallest();
        let at = |budget| self.costs.allocate(self.question, budget);
        let Some(least) = at(smallest) else { return Ok(Err(1)) };
        let mut best = match self.place(&least)? {
            Ok(placed) => (least, placed),
            Err(missing) => return Ok(Err(missing)),
        };
        let (mut low, mut high) = (smallest, u64::MAX);
        // First all that there is; then the middle between what fits and what does not.
        let mut next = self.room().max(smallest);
        for _ in 0..TRIES {
            let Some(allocation) = at(next) else { break };
            let taken = allocation.bytes;
            match self.place(&allocation)? {
                Ok(placed) => {
                    best = (allocation, placed);
                    low = next;
                    // More would not be taken.
                    if high == u64::MAX && (taken < next - next / PRECISION || next >= self.room()) {
                        break;
                    }
                }
                Err(missing) => {
                    // Where whole layers have to find their places, what is missing in all is not what is missing in one.
                    let first = high == u64::MAX;
                    high = next;
                    let less = next.saturating_sub(missing.max(next / PRECISION));
                    if first && less > low {
                        next = less;
                        continue;
                    }
                }
            }
            if high - low < low / PRECISION {
                break;
            }
            next = low + (high - low) / 2;
        }
        Ok(Ok(best))
    }

    /// Bytes that weights can take at most, were there nothing else in memory but the cache.
    fn room(&self) -> u64 {
        let files = self.wish.max_size.map_or(u64::MAX, |most| most.saturating_sub(self.overhead));
        let memory = self.wish.target.as_ref().map_or(u64::MAX, |target| {
            let host = target.host.as_ref().map_or(0, |host| host.usable);
            target.usable().saturating_add(host).saturating_sub(self.model.cache_bytes())
        });
        files.min(memory)
    }

    /// Places an allocation, or says by how many bytes it is too large.
    fn place(&self, allocation: &Allocation) -> Result<std::result::Result<Placed, u64>> {
        let files = allocation.bytes + self.overhead;
        if let Some(most) = self.wish.max_size.filter(|&most| files > most) {
            return Ok(Err(files - most));
        }
        let outputs = self.question.outputs;
        let bytes: Vec<u64> = outputs
            .iter()
            .zip(&allocation.formats)
            .map(|(output, format)| self.question.bytes(output, format).unwrap_or(0))
            .collect();
        let cache: Vec<u64> = self.model.cache.iter().map(|layer| layer.bytes).collect();
        let load = Load::new(outputs, &bytes, &cache);
        let Some(target) = &self.wish.target else {
            let room = Room { devices: vec![u64::MAX], host: None, cards: false };
            let all = Placement::new(&load, &room);
            return Ok(all.map(|placement| Placed { placement, shares: Vec::new(), flags: Vec::new() }));
        };

        let cards = target.devices.iter().any(|device| device.kind == DeviceKind::Card);
        let experts = outputs.iter().zip(&bytes).filter(|(output, _)| output.class.is_routed_expert());
        let buffers = self.buffers(experts.map(|(_, &bytes)| bytes).max().unwrap_or(0))?;
        let taken: u64 = buffers.iter().map(|buffer| buffer.bytes.high).sum();
        let room = Room {
            devices: target.devices.iter().map(|device| device.usable.saturating_sub(taken)).collect(),
            host: target.host.as_ref().map(|host| host.usable),
            cards,
        };
        // What the buffers alone are too large for counts too.
        let over: u64 = target.devices.iter().map(|device| taken.saturating_sub(device.usable)).sum();
        let placement = match Placement::new(&load, &room) {
            Ok(placement) if over == 0 => placement,
            Ok(_) => return Ok(Err(over)),
            Err(missing) => return Ok(Err(missing.saturating_add(over))),
        };
        let mut shares = Vec::new();
        let memories = target.devices.iter().enumerate().map(|(at, device)| (Place::Device(at), device));
        for (place, device) in memories.chain(target.host.iter().map(|host| (Place::Host, host))) {
            let lies = outputs.iter().zip(&bytes).filter(|(output, _)| placement.of(output) == place);
            let mut weights: u64 = lies.map(|(_, &bytes)| bytes).sum();
            if cards && placement.output == place && place != Place::Host {
                weights += load.tied;
            }
            let layers = self.model.cache.iter().filter(|layer| placement.layers[layer.layer] == place);
            let buffers = if place == Place::Host { Vec::new() } else { buffers.clone() };
            let budget = Budget::new(weights, layers, buffers, 0);
            shares.push(Share { name: device.name.clone(), usable: device.usable, budget });
        }
        let flags = self.flags(&placement, target.devices.len());
        Ok(Ok(Placed { placement, shares, flags }))
    }

    /// The engine's buffers on each device of the target, if the largest tensor of experts takes so many bytes.
    fn buffers(&self, experts: u64) -> Result<Vec<budget::Buffer>> {
        let Some(target) = &self.wish.target else { return Ok(Vec::new()) };
        let device = budget::Device {
            is_card: target.devices.iter().any(|device| device.kind == DeviceKind::Card),
            shares_layers: target.devices.len() > 1,
            largest_on_host: if target.host.is_some() { experts } else { 0 },
        };
        budget::buffers(&self.model.hyper, &self.wish.run, &device)
    }

    /// The engine's options: placement, context and cache.
    fn flags(&self, placement: &Placement, devices: usize) -> Vec<String> {
        let Run { engine, context, parallel, kv } = self.wish.run;
        if engine == budget::Engine::Mlx {
            return Vec::new();
        }
        let mut flags = placement.flags(devices);
        flags.extend(["-c".to_owned(), context.saturating_mul(parallel).to_string()]);
        if parallel > 1 {
            flags.extend(["-np".to_owned(), parallel.to_string()]);
        }
        if kv != budget::KvType::F16 {
            flags.extend(["-ctk", kv.name(), "-ctv", kv.name()].map(str::to_owned));
        }
        flags
    }
}

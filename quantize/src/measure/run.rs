//! The pass over the layers, and the divergences at its end.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use formats::output::Class;
use kernels::{
    Isa,
    divergence::{State, update},
};
use rayon::prelude::*;
use verify::{
    forward::{Forward, VOCABULARY_TILE},
    hidden::Hidden,
    options::Precision,
    store::Space,
    weights::Weights,
};

use super::{
    Measured, Request, TensorCosts, energy, is_tried, left,
    probe::{Inputs, Probe},
    ratio::ratios,
};
use crate::{
    error::Result,
    progress::{Amount, Phase, Progress},
};

/// Copies of the hidden states that are run, if each tensor has one; of larger models, groups of tensors have.
const COPIES: usize = 256;

/// Rows of logits that are held at once.
const LOGITS: usize = 4096;

/// A model to measure.
pub struct Run<'a> {
    /// The model.
    pub weights: &'a Weights,
    /// What it reads.
    pub sequences: Vec<Vec<u32>>,
    /// What is asked for.
    pub request: &'a Request<'a>,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Set when it is to stop.
    pub cancel: &'a AtomicBool,
}

/// Tensors that are quantized together in a copy of the hidden states.
struct Group {
    /// For each, its share of what the group costs, and the ratios of all types.
    tensors: Vec<(usize, f64, Vec<Option<f64>>)>,
    /// What part of the damage is left by the way they will be rounded.
    left: f64,
}

/// What becomes of the head.
struct Head {
    /// Index of its tensor.
    index: usize,
    /// The mean divergence if it alone is quantized.
    nats: f64,
    /// What it is multiplied with.
    inputs: Vec<Inputs>,
}

impl Run<'_> {
    /// Measures all tensors of the layers, the embedding and the head.
    ///
    /// # Errors
    /// See [`measure`](super::measure()).
    pub fn measure(&self) -> Result<Measured> {
        let probe = Probe::new(self.weights);
        let space = Space::new(self.request.memory / 2);
        let embed = || {
            let memory = self.request.memory / 4;
            let (tokens, processor) = (&self.sequences, &self.request.processor);
            // Fixed point is fine enough for small divergences; a device's half precision is not.
            let precision = if processor.gpu_name().is_some() { Precision::F32 } else { Precision::Fixed };
            Forward::new(self.weights, &probe, processor, precision, tokens, &space, memory)
        };
        let mut forward = embed()?;
        let mut groups = Vec::new();
        let mut copies: Option<Hidden> = None;
        let embedding = self.weights.index("token_embd.weight");
        let embedding = embedding.filter(|&index| is_tried(&self.weights.tensors[index]));
        if let Some(index) = embedding
            && let Some(ratios) = ratios(self.weights, index, &[], self.request.candidates)?
        {
            probe.quantize(&[index]);
            copies = Some(embed()?.hidden);
            probe.quantize(&[]);
            groups.push(Group { tensors: vec![(index, 1.0, ratios)], left: 1.0 });
        }

        let total = Amount { weights: forward.layers() as u64 + 1, ..Amount::default() };
        self.progress.begin(Phase::Measuring, total, Amount::default());
        let step = Amount { weights: 1, ..Amount::default() };
        for layer in 0..forward.layers() {
            self.layer(&probe, &mut forward, layer, &mut copies, &mut groups)?;
            self.progress.advance(step);
        }

        let scores = Scores { run: self, probe: &probe, rows: self.scored() };
        let mut tensors: Vec<TensorCosts> = Vec::new();
        let mut add = |index: usize, nats: f64, ratios: &[Option<f64>]| {
            let costs = TensorCosts::new(&self.weights.tensors[index], nats, ratios);
            match tensors.iter_mut().find(|known| known.name == costs.name) {
                // An embedding that is the head too.
                Some(known) => known.add(&costs),
                None => tensors.push(costs),
            }
        };
        if let Some(Head { index, nats, inputs }) = scores.head(&forward)?
            && let Some(ratios) = ratios(self.weights, index, &inputs, self.request.candidates)?
        {
            add(index, nats * left(self.request.rounding), &ratios);
        }
        if let Some(copies) = copies {
            let nats = scores.copies(&mut forward, copies, groups.len())?;
            for (group, nats) in groups.iter().zip(nats) {
                let nats = nats * group.left;
                group.tensors.iter().for_each(|(index, share, ratios)| add(*index, nats * share, ratios));
            }
        }
        self.progress.end();
        Ok(Measured {
            tokens: self.sequences.iter().map(Vec::len).sum(),
            scored: scores.rows.len(),
            formats: self.request.candidates.iter().map(|format| format.name).collect(),
            tensors,
        })
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(verify::Error::Interrupted.into()) } else { Ok(()) }
    }

    /// The second half of every sequence, numbered through all.
    fn scored(&self) -> Vec<usize> {
        let mut first = 0;
        let rows = self.sequences.iter().flat_map(|tokens| {
            first += tokens.len();
            first - tokens.len() / 2..first
        });
        rows.collect()
    }

    /// Runs a layer over the reference and all copies, tries its tensors, and begins copies of its own.
    fn layer(
        &self,
        probe: &Probe<'_>,
        forward: &mut Forward<'_>,
        layer: usize,
        copies: &mut Option<Hidden>,
        groups: &mut Vec<Group>,
    ) -> Result<()> {
        self.check()?;
        if let Some(copies) = copies {
            with(forward, copies, |forward| Ok(forward.layer(layer)?))?;
        }
        let input = Hidden::join(&forward.hidden, &[])?;
        probe.keep();
        forward.layer(layer)?;
        let inputs = probe.kept();
        let quantized = |forward: &mut Forward<'_>, tensors: &[usize]| -> Result<Hidden> {
            self.check()?;
            let mut states = Hidden::join(&input, &[])?;
            probe.quantize(tensors);
            with(forward, &mut states, |forward| Ok(forward.layer(layer)?))?;
            probe.quantize(&[]);
            Ok(states)
        };
        let mut begun = Vec::new();
        for indices in self.groups(layer) {
            let mut tensors = Vec::new();
            for &index in &indices {
                let inputs = inputs.get(&index).map_or(&[][..], Vec::as_slice);
                if let Some(ratios) = ratios(self.weights, index, inputs, self.request.candidates)? {
                    let change = match indices.len() {
                        1 => 1.0,
                        _ => energy::change(&quantized(forward, &[index])?, &forward.hidden)?,
                    };
                    tensors.push((index, change, ratios));
                }
            }
            let sum: f64 = tensors.iter().map(|(_, change, _)| change).sum();
            if sum.is_finite() && sum > 0.0 {
                tensors.iter_mut().for_each(|(_, share, _)| *share /= sum);
                let all: Vec<usize> = tensors.iter().map(|(index, ..)| *index).collect();
                begun.push(quantized(forward, &all)?);
                groups.push(Group { tensors, left: left(self.request.rounding) });
            }
        }
        let mut all = copies.iter().chain(&begun);
        if let Some(first) = all.next() {
            *copies = Some(Hidden::join(first, &all.collect::<Vec<_>>())?);
        }
        Ok(())
    }

    /// The tensors of a layer that are tried, each alone if that makes no more than [`COPIES`]; else those of its attention, and those
    /// of its MLP.
    fn groups(&self, layer: usize) -> Vec<Vec<usize>> {
        let tried = || self.weights.tensors.iter().enumerate().filter(|(_, tensor)| is_tried(tensor));
        let here = tried().filter(|(_, tensor)| tensor.layer == u32::try_from(layer).ok());
        if tried().count() <= COPIES {
            return here.map(|(index, _)| vec![index]).collect();
        }
        let (mlp, attention): (Vec<_>, Vec<_>) = here.partition(|(_, tensor)| is_mlp(tensor.class));
        let groups = [attention, mlp].into_iter().filter(|group| !group.is_empty());
        groups.map(|group| group.into_iter().map(|(index, _)| index).collect()).collect()
    }
}

fn is_mlp(class: Class) -> bool {
    matches!(class, Class::FfnGate | Class::FfnUp | Class::FfnDown)
        || matches!(class, Class::SharedGate | Class::SharedUp | Class::SharedDown)
        || class.is_routed_expert()
}

/// Runs `f` over other states than the pass's own.
fn with<T>(
    forward: &mut Forward<'_>,
    states: &mut Hidden,
    f: impl FnOnce(&mut Forward<'_>) -> Result<T>,
) -> Result<T> {
    std::mem::swap(&mut forward.hidden, states);
    let result = f(forward);
    std::mem::swap(&mut forward.hidden, states);
    result
}

/// Divergences from the reference.
struct Scores<'a> {
    run: &'a Run<'a>,
    probe: &'a Probe<'a>,
    /// Rows of the reference's states that are scored.
    rows: Vec<usize>,
}

impl Scores<'_> {
    /// The head and the mean divergence if it alone is quantized, and some of its inputs.
    fn head(&self, forward: &Forward<'_>) -> Result<Option<Head>> {
        let weights = self.run.weights;
        let index = weights.index("output.weight").or_else(|| weights.index("token_embd.weight"));
        let Some(index) = index.filter(|&index| is_tried(&weights.tensors[index])) else {
            return Ok(None);
        };
        let states = forward.finish(&self.rows)?;
        self.probe.keep();
        forward.logits(&states, 0..1)?;
        let mut inputs = self.probe.kept().remove(&index).unwrap_or_default();
        inputs.iter_mut().for_each(|inputs| inputs.rows = 0..forward.vocabulary());
        let mut sums = vec![State::default(); self.rows.len()];
        for stretch in stretches(forward) {
            self.run.check()?;
            let theirs = forward.logits(&states, stretch.clone())?;
            self.probe.quantize(&[index]);
            let ours = forward.logits(&states, stretch.clone())?;
            self.probe.quantize(&[]);
            take(&theirs, &ours, &stretch, &mut sums);
        }
        Ok(Some(Head { index, nats: mean(&sums), inputs }))
    }

    /// The mean divergence of each of `count` copies.
    fn copies(&self, forward: &mut Forward<'_>, mut copies: Hidden, count: usize) -> Result<Vec<f64>> {
        let tokens = forward.hidden.store.rows;
        let reference = forward.finish(&self.rows)?;
        let mut nats = Vec::new();
        let at_once = (LOGITS / self.rows.len().max(1)).max(1);
        let all: Vec<usize> = (0..count).collect();
        for some in all.chunks(at_once) {
            let rows = some.iter().flat_map(|copy| self.rows.iter().map(move |row| copy * tokens + row));
            let rows: Vec<usize> = rows.collect();
            let states = with(forward, &mut copies, |forward| Ok(forward.finish(&rows)?))?;
            let mut sums = vec![State::default(); rows.len()];
            for stretch in stretches(forward) {
                self.run.check()?;
                let theirs = forward.logits(&reference, stretch.clone())?;
                let ours = forward.logits(&states, stretch.clone())?;
                take(&theirs, &ours, &stretch, &mut sums);
            }
            nats.extend(sums.chunks(self.rows.len()).map(mean));
        }
        Ok(nats)
    }
}

fn stretches(forward: &Forward<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
    let vocabulary = forward.vocabulary();
    (0..vocabulary).step_by(VOCABULARY_TILE).map(move |first| first..vocabulary.min(first + VOCABULARY_TILE))
}

/// Takes in a stretch of the logits of all rows; the reference's rows, fewer, come again and again.
fn take(reference: &[f32], logits: &[f32], stretch: &Range<usize>, sums: &mut [State]) {
    let width = stretch.len();
    let rows = reference.len() / width.max(1);
    sums.par_iter_mut().zip(logits.par_chunks(width)).enumerate().for_each(|(at, (state, logits))| {
        let reference = &reference[at % rows * width..][..width];
        update(Isa::detect(), Some(reference), logits, stretch.start, 0, state);
    });
}

/// The mean divergence; rounding can make it a little less than nothing.
fn mean(sums: &[State]) -> f64 {
    let nats = sums.iter().filter_map(|state| Some(state.finish().against?.kld));
    (nats.sum::<f64>() / sums.len().max(1) as f64).max(0.0)
}

//! A model's forward pass over all tokens, layer by layer.

use std::ops::Range;

use kernels::Isa;
use kernels::divergence::{State, update};
use rayon::prelude::*;

use crate::cpu::{Cpu, Rows};
use crate::error::{Error, Result};
use crate::families::{Graph, graph};
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::hidden::Hidden;
use crate::ops::Ops;
use crate::options::Precision;
use crate::processor::Processor;
use crate::store::Space;
use crate::tap::Tap;
use crate::weights::Weights;

/// Rows of the head that are multiplied at once: logits of so many tokens of the vocabulary.
pub const VOCABULARY_TILE: usize = 2048;

/// The least bytes for a block of tokens, however little memory is asked for.
const LEAST: u64 = 16 << 20;

/// A model's graph on a device.
struct Engine<'a, O: Ops> {
    ops: O,
    graph: Box<dyn Graph<O> + 'a>,
}

impl<'a, O: Ops> Engine<'a, O> {
    fn new(ops: O, weights: &Weights) -> Result<Engine<'a, O>> {
        Ok(Engine { graph: graph(weights)?, ops })
    }

    fn layer(&self, layer: usize, hidden: &mut Hidden) -> Result<()> {
        self.graph.layer(&self.ops, layer, hidden)
    }

    /// What the head is applied to, of some states.
    fn finish(&self, states: Vec<f32>) -> O::Tensor {
        let ends = self.graph.ends();
        ends.finish(&self.ops, &self.ops.upload(states, ends.width))
    }

    fn logits(&self, finished: &O::Tensor, vocabulary: Range<usize>) -> Result<O::Tensor> {
        let mut logits = self.ops.linear(finished, &self.graph.ends().head.part(vocabulary))?;
        if let Some(cap) = self.graph.ends().soft_cap {
            self.ops.soft_cap(&mut logits, cap);
        }
        Ok(logits)
    }
}

/// A model and the hidden states of the tokens it is run on.
pub struct Forward<'a> {
    /// For what no other device does.
    cpu: Engine<'a, Cpu<'a>>,
    #[cfg(feature = "gpu")]
    gpu: Option<Engine<'a, Gpu<'a>>>,
    /// After the last layer that was run.
    pub hidden: Hidden,
}

/// Finished states: what the head is applied to, for some tokens.
pub struct Finished(Values);

enum Values {
    Cpu(Rows),
    /// On the device, and the states they were made of, should it fail.
    #[cfg(feature = "gpu")]
    Gpu(gpu::Tensor, Vec<f32>),
}

impl<'a> Forward<'a> {
    /// Embeds `tokens`; all else is computed by `processor`, which multiplies with weights in `precision`. Hidden states take room from
    /// `space`; a block of tokens in work takes up to `memory` bytes, and on a device of its own what stays there as much again.
    ///
    /// # Errors
    /// If the family has no graph, a token is not in the vocabulary, or weights can't be read.
    pub fn new(
        weights: &'a Weights,
        tap: &'a dyn Tap,
        processor: &Processor,
        precision: Precision,
        tokens: &[Vec<u32>],
        space: &Space,
        memory: u64,
    ) -> Result<Forward<'a>> {
        let cpu = Engine::new(Cpu::new(tap, precision), weights)?;
        #[cfg(feature = "gpu")]
        let gpu = match processor {
            Processor::Cpu => None,
            Processor::Gpu(device) => Some(Engine::new(Gpu::new(device, tap, precision, memory), weights)?),
        };
        #[cfg(not(feature = "gpu"))]
        let Processor::Cpu = processor;
        let Engine { ops, graph } = &cpu;
        let vocabulary = graph.ends().head.rows.len();
        for (sequence, tokens) in tokens.iter().enumerate() {
            if let Some(position) = tokens.iter().position(|&token| token as usize >= vocabulary) {
                let token = tokens[position];
                return Err(Error::NotInVocabulary { sequence, position, token, vocabulary });
            }
        }
        let per_token = 4 * graph.values_per_token().max(1) as u64;
        let block = (memory.max(LEAST) / per_token).max(1);
        let block = usize::try_from(block).unwrap_or(usize::MAX);
        let mut hidden = Hidden::new(tokens, graph.ends().width, block, space)?;
        let all = hidden.tokens.clone();
        hidden.fill(ops, |rows| graph.ends().embed(ops, &all[rows]))?;
        let forward = Forward {
            cpu,
            #[cfg(feature = "gpu")]
            gpu,
            hidden,
        };
        forward.check("the embedding")?;
        Ok(forward)
    }

    /// On the processor, with the weights as they are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_cpu(
        weights: &'a Weights,
        precision: Precision,
        tokens: &[Vec<u32>],
        space: &Space,
        memory: u64,
    ) -> Result<Forward<'a>> {
        Forward::new(weights, weights, &Processor::Cpu, precision, tokens, space, memory)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.cpu.graph.layers()
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.cpu.graph.ends().head.rows.len()
    }

    /// Runs a layer over all tokens. If a graphics processor fails at it, the processor does it.
    ///
    /// # Errors
    /// If weights or states can't be read or written; [`Error::HiddenNotFinite`] if a state becomes NaN or infinite.
    pub fn layer(&mut self, layer: usize) -> Result<()> {
        if !self.layer_on_gpu(layer)? {
            self.cpu.layer(layer, &mut self.hidden)?;
        }
        self.check(&format!("layer {layer}"))
    }

    /// Whether a graphics processor ran the layer.
    #[cfg(feature = "gpu")]
    fn layer_on_gpu(&mut self, layer: usize) -> Result<bool> {
        let Some(gpu) = self.gpu.as_ref().filter(|gpu| gpu.ops.is_usable()) else { return Ok(false) };
        // What to begin again with, where there is memory for it.
        let bytes = (4 * self.hidden.store.rows * self.hidden.store.width) as u64;
        let before = match self.hidden.space.holds(bytes) {
            true => Some(Hidden::join(&self.hidden, &[])?),
            false => None,
        };
        let hidden = &mut self.hidden;
        let ahead = || {
            if layer + 1 < gpu.graph.layers() {
                gpu.ops.read_ahead(layer + 1);
            }
        };
        let (done, ()) = rayon::join(|| gpu.layer(layer, hidden), ahead);
        match (done, before) {
            (Ok(()), _) => Ok(true),
            (Err(Error::Device { device, problem }), Some(before)) => {
                self.hidden = before;
                gpu.ops.give_up(&format!("layer {layer}"), &device, &problem);
                Ok(false)
            }
            (Err(error), _) => Err(error),
        }
    }

    #[cfg(not(feature = "gpu"))]
    fn layer_on_gpu(&mut self, _: usize) -> Result<bool> {
        Ok(false)
    }

    /// Looks for states that are no numbers.
    fn check(&self, place: &str) -> Result<()> {
        let width = self.hidden.store.width;
        let mut values = Vec::new();
        for block in self.hidden.blocks() {
            values.resize(block.len() * width, 0.0);
            self.hidden.store.read(block.clone(), &mut values)?;
            let row_is_bad = |row: &[f32]| !row.iter().fold(true, |all, value| all & value.is_finite());
            let bad = values.par_chunks(width).position_first(row_is_bad);
            if let Some(row) = bad {
                let row = block.start + row;
                let found = self.hidden.sequences.rows().enumerate().find(|(_, rows)| rows.contains(&row));
                let (sequence, position) = found.map_or((0, row), |(i, rows)| (i, row - rows.start));
                return Err(Error::HiddenNotFinite { place: place.to_owned(), sequence, position });
            }
        }
        Ok(())
    }

    /// What the head is applied to, for some tokens (numbered through all sequences).
    ///
    /// # Errors
    /// If the states can't be read.
    pub fn finish(&self, rows: &[usize]) -> Result<Finished> {
        let states = self.states(rows)?;
        #[cfg(feature = "gpu")]
        if let Some(gpu) = self.usable_gpu() {
            return Ok(Finished(Values::Gpu(gpu.finish(states.clone()), states)));
        }
        Ok(Finished(Values::Cpu(self.cpu.finish(states))))
    }

    /// The states of some tokens, row after row.
    fn states(&self, rows: &[usize]) -> Result<Vec<f32>> {
        let mut values = vec![0.0; rows.len() * self.hidden.store.width];
        self.hidden.store.gather(rows, &mut values)?;
        Ok(values)
    }

    /// The same, off the device: row after row.
    ///
    /// # Errors
    /// If the states can't be read.
    pub fn finished(&self, rows: &[usize]) -> Result<Vec<f32>> {
        self.cpu.ops.download(self.cpu.finish(self.states(rows)?))
    }

    /// The logits of finished states for a stretch of the vocabulary: [rows, stretch].
    ///
    /// # Errors
    /// If the head's weights can't be read.
    pub fn logits(&self, finished: &Finished, vocabulary: Range<usize>) -> Result<Vec<f32>> {
        #[cfg(feature = "gpu")]
        if let (Values::Gpu(x, _), Some(gpu)) = (&finished.0, self.usable_gpu())
            && x.is_whole()
        {
            let made = gpu.logits(x, vocabulary.clone()).and_then(|logits| gpu.ops.download(logits));
            match made {
                Err(Error::Device { device, problem }) => gpu.ops.give_up("the head", &device, &problem),
                other => return other,
            }
        }
        self.logits_on_cpu(finished, vocabulary)
    }

    fn logits_on_cpu(&self, finished: &Finished, vocabulary: Range<usize>) -> Result<Vec<f32>> {
        let cpu = &self.cpu;
        let logits = match &finished.0 {
            Values::Cpu(x) => cpu.logits(x, vocabulary),
            #[cfg(feature = "gpu")]
            Values::Gpu(_, states) => cpu.logits(&cpu.finish(states.clone()), vocabulary),
        };
        cpu.ops.download(logits?)
    }

    #[cfg(feature = "gpu")]
    fn usable_gpu(&self) -> Option<&Engine<'a, Gpu<'a>>> {
        self.gpu.as_ref().filter(|gpu| gpu.ops.is_usable())
    }

    /// Takes in a stretch of the vocabulary: the logits of finished states, against those of a reference if there is one. `targets` are
    /// the tokens that the text has. On a device of both models' own, only sums leave it.
    ///
    /// # Errors
    /// If a head's weights can't be read.
    pub fn score(
        &self,
        finished: &Finished,
        reference: Option<(&Forward<'_>, &Finished)>,
        vocabulary: Range<usize>,
        targets: &[u32],
        states: &mut [State],
    ) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Some(gpu) = self.usable_gpu() {
            match self.score_on_gpu(finished, reference, &vocabulary, targets, states) {
                Some(Err(Error::Device { device, problem })) => {
                    gpu.ops.give_up("the head", &device, &problem)
                }
                Some(other) => return other,
                None => {}
            }
        }
        let width = vocabulary.len();
        let logits = self.logits_on_cpu(finished, vocabulary.clone())?;
        let base = match reference {
            Some((reference, theirs)) => Some(reference.logits_on_cpu(theirs, vocabulary.clone())?),
            None => None,
        };
        states.par_iter_mut().zip(targets).enumerate().for_each(|(i, (state, &target))| {
            let row = i * width..(i + 1) * width;
            let base = base.as_ref().map(|base| &base[row.clone()]);
            update(Isa::detect(), base, &logits[row], vocabulary.start, target as usize, state);
        });
        Ok(())
    }

    /// The same where both models are on a device that works; else nothing is done.
    #[cfg(feature = "gpu")]
    fn score_on_gpu(
        &self,
        finished: &Finished,
        reference: Option<(&Forward<'_>, &Finished)>,
        vocabulary: &Range<usize>,
        targets: &[u32],
        states: &mut [State],
    ) -> Option<Result<()>> {
        fn of<'f, 'a>(
            forward: &'f Forward<'a>,
            finished: &'f Finished,
        ) -> Option<(&'f Engine<'a, Gpu<'a>>, &'f gpu::Tensor)> {
            match &finished.0 {
                Values::Gpu(x, _) if x.is_whole() => Some((forward.usable_gpu()?, x)),
                _ => None,
            }
        }
        let model = of(self, finished)?;
        let reference = match reference {
            Some((forward, finished)) => Some(of(forward, finished)?),
            None => None,
        };
        let mut run = || {
            let logits = model.0.logits(model.1, vocabulary.clone())?;
            let base = reference.map(|(gpu, x)| gpu.logits(x, vocabulary.clone())).transpose()?;
            model.0.ops.divergence(&logits, base.as_ref(), vocabulary.start, targets, states)
        };
        Some(run())
    }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Runs the tiny model while `trouble` does something to the device before layer 1 and before the head, and compares with what the
    /// processor makes of it.
    fn with_trouble(device: &Arc<gpu::Device>, trouble: impl Fn(&gpu::Device)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-deepseek");
        let weights = Weights::open(&folder.into()).expect("fixture");
        let tokens = [(0..40).collect::<Vec<u32>>()];
        let rows: Vec<usize> = (0..40).collect();
        let run = |processor: &Processor| {
            let trouble = |processor: &Processor| {
                if let Processor::Gpu(device) = processor {
                    trouble(device);
                }
            };
            let (space, memory) = (Space::new(1 << 30), 1 << 30);
            let forward =
                Forward::new(&weights, &weights, processor, Precision::F32, &tokens, &space, memory);
            let mut forward = forward.expect("embedding");
            for layer in 0..forward.layers() {
                if layer == 1 {
                    trouble(processor);
                }
                forward.layer(layer).expect("layer");
            }
            let finished = forward.finish(&rows).expect("states");
            trouble(processor);
            let mut states = vec![State::default(); 40];
            forward.score(&finished, None, 0..100, &[7; 40], &mut states).expect("scores");
            // And what was on the device before is not taken for whole.
            let logits = forward.logits(&finished, 0..100).expect("logits");
            (logits, states.iter().map(|state| state.finish().nll).collect::<Vec<f64>>())
        };
        let (expected, expected_nll) = run(&Processor::Cpu);
        let (found, nll) = run(&Processor::Gpu(device.clone()));
        let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let off = found.iter().zip(&expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(off <= 1e-5 * largest, "off by {off} of {largest}");
        assert!(nll.iter().zip(&expected_nll).all(|(a, b)| (a - b).abs() < 1e-4), "{nll:?} {expected_nll:?}");
        assert!(device.was_helped());
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn the_processor_does_what_a_device_fails_at() {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let device = gpu::open(0, |line| TOLD.lock().expect("lines").push(line.to_owned())).expect("device");
        with_trouble(&device, |device| device.fail("out of memory"));
        let told = TOLD.lock().expect("lines").join("\n");
        assert!(told.contains("out of memory; layer 1 is computed on the processor"), "{told}");
        assert!(told.contains("out of memory; the head is computed on the processor"), "{told}");
        assert_eq!(told.lines().count(), 2, "{told}");
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn the_processor_does_all_that_is_left_when_a_device_is_lost() {
        static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let device = gpu::open(0, |line| TOLD.lock().expect("lines").push(line.to_owned())).expect("device");
        with_trouble(&device, gpu::Device::destroy);
        let told = TOLD.lock().expect("lines").join("\n");
        assert!(told.contains("layer 1 and all that follows is computed on the processor"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

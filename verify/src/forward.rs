//! A model's forward pass over all tokens, layer by layer.

use std::ops::Range;

use rayon::prelude::*;

use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::families::{Graph, graph};
use crate::hidden::Hidden;
use crate::ops::Ops;
use crate::options::Precision;
use crate::store::Space;
use crate::tap::Tap;
use crate::weights::Weights;

/// Rows of the head that are multiplied at once: logits of so many tokens of the vocabulary.
pub const VOCABULARY_TILE: usize = 2048;

/// The least bytes for a block of tokens, however little memory is asked for.
const LEAST: u64 = 16 << 20;

/// A model and the hidden states of the tokens it is run on.
pub struct Forward<'a, O: Ops> {
    ops: O,
    graph: Box<dyn Graph<O> + 'a>,
    /// After the last layer that was run.
    pub hidden: Hidden,
}

impl<'a> Forward<'a, Cpu<'a>> {
    /// Embeds `tokens`, on the processor, which multiplies with weights in `precision`. Hidden states take room from `space`; a
    /// block of tokens in work takes up to `memory` bytes.
    ///
    /// # Errors
    /// If the family has no graph, a token is not in the vocabulary, or weights can't be read.
    pub fn on_cpu(
        weights: &'a Weights,
        precision: Precision,
        tokens: &[Vec<u32>],
        space: &Space,
        memory: u64,
    ) -> Result<Self> {
        Forward::tapped(weights, weights, precision, tokens, space, memory)
    }

    /// The same with weights that come through a tap.
    ///
    /// # Errors
    /// As [`on_cpu`](Self::on_cpu), and whatever the tap says.
    pub fn tapped(
        weights: &'a Weights,
        tap: &'a dyn Tap,
        precision: Precision,
        tokens: &[Vec<u32>],
        space: &Space,
        memory: u64,
    ) -> Result<Self> {
        Forward::new(Cpu::new(tap, precision), graph(weights)?, tokens, space, memory)
    }
}

impl<'a, O: Ops> Forward<'a, O> {
    fn new(
        ops: O,
        graph: Box<dyn Graph<O> + 'a>,
        tokens: &[Vec<u32>],
        space: &Space,
        memory: u64,
    ) -> Result<Self> {
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
        hidden.fill(&ops, |rows| graph.ends().embed(&ops, &all[rows]))?;
        let forward = Forward { ops, graph, hidden };
        forward.check("the embedding")?;
        Ok(forward)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.graph.layers()
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.graph.ends().head.rows.len()
    }

    /// Runs a layer over all tokens.
    ///
    /// # Errors
    /// If weights or states can't be read or written; [`Error::HiddenNotFinite`] if a state becomes NaN or infinite.
    pub fn layer(&mut self, layer: usize) -> Result<()> {
        self.graph.layer(&self.ops, layer, &mut self.hidden)?;
        self.check(&format!("layer {layer}"))
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
    pub fn finish(&self, rows: &[usize]) -> Result<O::Tensor> {
        let width = self.hidden.store.width;
        let mut values = vec![0.0; rows.len() * width];
        self.hidden.store.gather(rows, &mut values)?;
        Ok(self.graph.ends().finish(&self.ops, &self.ops.upload(values, width)))
    }

    /// The same, off the device: row after row.
    ///
    /// # Errors
    /// If the states can't be read.
    pub fn finished(&self, rows: &[usize]) -> Result<Vec<f32>> {
        Ok(self.ops.download(self.finish(rows)?))
    }

    /// The logits of finished states for a stretch of the vocabulary: [rows, stretch].
    ///
    /// # Errors
    /// If the head's weights can't be read.
    pub fn logits(&self, finished: &O::Tensor, vocabulary: Range<usize>) -> Result<Vec<f32>> {
        let mut logits = self.ops.linear(finished, &self.graph.ends().head.part(vocabulary))?;
        if let Some(cap) = self.graph.ends().soft_cap {
            self.ops.soft_cap(&mut logits, cap);
        }
        Ok(self.ops.download(logits))
    }
}

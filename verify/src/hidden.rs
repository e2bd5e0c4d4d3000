//! The hidden states of all tokens on their way through the layers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::ops::{Ops, Sequences};
use crate::store::{Space, Store};

/// The residual stream: one row for each token of each sequence.
pub struct Hidden {
    /// The rows.
    pub store: Store,
    /// What they belong to.
    pub sequences: Sequences,
    /// The token of each row, for layers that look at it again.
    pub tokens: Arc<[u32]>,
    /// What a layer, by its number, keeps for later ones: as many rows.
    pub kept: HashMap<usize, Store>,
    /// Where stores of the same size can be had.
    pub space: Space,
    /// The sequences that are computed at once, and their rows.
    blocks: Vec<(Range<usize>, Range<usize>)>,
    /// Tokens of a block, at most.
    block: usize,
    /// Memory for the rows of a block on their way.
    scratch: Vec<f32>,
}

impl Hidden {
    /// States of `width` values for every token of `tokens`; at most `block` tokens (but at least one sequence) are computed at once.
    ///
    /// # Errors
    /// If there is room neither in memory nor on disk.
    pub fn new(tokens: &[Vec<u32>], width: usize, block: usize, space: &Space) -> Result<Hidden> {
        let sequences = Sequences { lengths: tokens.iter().map(Vec::len).collect() };
        let mut blocks: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for (i, rows) in sequences.rows().enumerate() {
            match blocks.last_mut() {
                Some((ids, all)) if rows.end - all.start <= block => {
                    ids.end = i + 1;
                    all.end = rows.end;
                }
                _ => blocks.push((i..i + 1, rows)),
            }
        }
        let store = space.store(sequences.tokens(), width)?;
        let (tokens, kept) = (tokens.concat().into(), HashMap::new());
        let (space, scratch) = (space.clone(), Vec::new());
        Ok(Hidden { store, sequences, tokens, kept, space, blocks, block, scratch })
    }

    /// The states of several runs as one: sequences after sequences, with what their layers kept. All have been through the same layers.
    ///
    /// # Errors
    /// If there is room neither in memory nor on disk.
    pub fn join(first: &Hidden, more: &[&Hidden]) -> Result<Hidden> {
        let all = || [first].into_iter().chain(more.iter().copied());
        let tokens = |hidden: &Hidden| -> Vec<Vec<u32>> {
            hidden.sequences.rows().map(|rows| hidden.tokens[rows].to_vec()).collect()
        };
        let tokens: Vec<Vec<u32>> = all().flat_map(tokens).collect();
        let mut joined = Hidden::new(&tokens, first.store.width, first.block, &first.space)?;
        joined.store.join(&all().map(|hidden| &hidden.store).collect::<Vec<_>>())?;
        for (&layer, kept) in &first.kept {
            let stores: Vec<&Store> = all().filter_map(|hidden| hidden.kept.get(&layer)).collect();
            let mut store = first.space.store(joined.store.rows, kept.width)?;
            store.join(&stores)?;
            joined.kept.insert(layer, store);
        }
        Ok(joined)
    }

    /// Runs `f` over all rows, some whole sequences at a time, and keeps what it makes of them.
    ///
    /// # Errors
    /// Whatever `f` and the store find.
    pub fn update<O: Ops>(
        &mut self,
        ops: &O,
        mut f: impl FnMut(&mut O::Tensor, &Sequences) -> Result<()>,
    ) -> Result<()> {
        let width = self.store.width;
        for (ids, rows) in self.blocks.clone() {
            let mut values = std::mem::take(&mut self.scratch);
            values.resize(rows.len() * width, 0.0);
            self.store.read(rows.clone(), &mut values)?;
            let sequences = Sequences { lengths: self.sequences.lengths[ids].to_vec() };
            let mut x = ops.upload(values, width);
            f(&mut x, &sequences)?;
            self.scratch = ops.download(x)?;
            self.store.write(rows.start, &self.scratch)?;
        }
        Ok(())
    }

    /// The rows that are computed at once.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        self.blocks.iter().map(|(_, rows)| rows.clone()).collect()
    }

    /// Rows on the device.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn rows<O: Ops>(&self, ops: &O, rows: Range<usize>) -> Result<O::Tensor> {
        let width = self.store.width;
        let mut values = vec![0.0; rows.len() * width];
        self.store.read(rows, &mut values)?;
        Ok(ops.upload(values, width))
    }

    /// Fills all rows from `f`, block by block; `f` gets the block's rows.
    ///
    /// # Errors
    /// Whatever `f` and the store find.
    pub fn fill<O: Ops>(
        &mut self,
        ops: &O,
        mut f: impl FnMut(Range<usize>) -> Result<O::Tensor>,
    ) -> Result<()> {
        for rows in self.blocks() {
            let x = f(rows.clone())?;
            self.store.write(rows.start, &ops.download(x)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_whole_sequences() {
        let tokens = [4, 4, 4, 9, 1].map(|length| vec![0; length]);
        let hidden = Hidden::new(&tokens, 2, 8, &Space::new(u64::MAX)).expect("store");
        assert_eq!(hidden.blocks(), [0..8, 8..12, 12..21, 21..22]);
    }

    #[test]
    fn joined_states_follow_each_other() {
        let space = Space::new(u64::MAX);
        let states = |tokens: Vec<u32>, value: f32| {
            let mut hidden = Hidden::new(&[tokens], 2, 2, &space).expect("store");
            let rows = hidden.store.rows;
            hidden.store.write(0, &vec![value; 2 * rows]).expect("write");
            let mut kept = space.store(rows, 1).expect("store");
            kept.write(0, &vec![-value; rows]).expect("write");
            hidden.kept.insert(3, kept);
            hidden
        };
        let joined = Hidden::join(&states(vec![7], 1.0), &[&states(vec![8, 9], 2.0)]).expect("join");
        assert_eq!((&joined.tokens[..], &joined.sequences.lengths[..]), (&[7, 8, 9][..], &[1, 2][..]));
        assert_eq!(joined.blocks(), [0..1, 1..3]);
        let (mut all, mut kept) = ([0.0; 6], [0.0; 3]);
        joined.store.read(0..3, &mut all).expect("read");
        joined.kept[&3].read(0..3, &mut kept).expect("read");
        assert_eq!((all, kept), ([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], [-1.0, -2.0, -2.0]));
    }
}

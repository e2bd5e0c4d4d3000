//! From a tile's source bytes to its encoded planes, chunk by chunk on all cores.

use std::{cell::RefCell, ops::Range};

use formats::{
    OutputTensor, Part, TensorSource,
    output::Map,
    rows::{RawRows, rearrange},
};
use kernels::{
    Format, Isa,
    moves::may_move,
    stats::{damage, summarize},
};
use rayon::prelude::*;

use crate::{
    error::{Error, Result},
    journal::Entry,
    moved::{moved, quantized},
    read::Loaded,
    segment::Pieces,
    weighted::ColumnWeights,
};

/// Weights of a chunk: the source, its f32 form and the check of the result stay in a core's own cache.
const CHUNK: u64 = 32 * 1024;

/// What was found while encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Sum of squared differences between source and encoded weights, over the finite ones.
    pub squared_error: f64,
    /// Sum of squared source weights, over the finite ones.
    pub energy: f64,
    /// Weights that are NaN or infinite in the source.
    pub nonfinite: u64,
    /// Finite weights that the format turned into infinities.
    pub overflow: u64,
}

impl Stats {
    /// What became of `values`, of which `nonfinite` were no numbers. Where either is none, both become zeros.
    pub(crate) fn of(isa: Isa, values: &mut [f32], decoded: &mut [f32], nonfinite: u64) -> Stats {
        let mut overflow = 0;
        if nonfinite > 0 || summarize(isa, decoded).nonfinite > 0 {
            for (value, decoded) in values.iter_mut().zip(decoded.iter_mut()) {
                overflow += u64::from(value.is_finite() && !decoded.is_finite());
                if !(value.is_finite() && decoded.is_finite()) {
                    (*value, *decoded) = (0.0, 0.0);
                }
            }
        }
        let damage = damage(isa, values, decoded);
        Stats { squared_error: damage.squared_error, energy: damage.squared_norm, nonfinite, overflow }
    }

    /// What the journal says was found.
    pub(crate) fn noted(entry: &Entry) -> Stats {
        let &Entry { squared_error, energy, nonfinite, .. } = entry;
        Stats { squared_error, energy, nonfinite, overflow: 0 }
    }

    /// Refuses what may not be written of a tensor.
    ///
    /// # Errors
    /// [`Error::NonFinite`] unless that is allowed, [`Error::Overflow`].
    pub(crate) fn check(&self, output: &OutputTensor, format: &Format, allow_nonfinite: bool) -> Result<()> {
        let (tensor, elements) = (output.name.clone(), output.elements());
        if self.nonfinite > 0 && !allow_nonfinite {
            return Err(Error::NonFinite { tensor, count: self.nonfinite, elements });
        }
        if self.overflow > 0 {
            return Err(Error::Overflow { tensor, format: format.name, count: self.overflow, elements });
        }
        Ok(())
    }

    /// Adds what another chunk or tile found.
    pub fn add(&mut self, other: &Stats) {
        self.squared_error += other.squared_error;
        self.energy += other.energy;
        self.nonfinite += other.nonfinite;
        self.overflow += other.overflow;
    }
}

/// A piece of a tile that one core encodes at once.
enum Input<'a> {
    Rows { piece: &'a Part, raw: &'a RawRows, rows: Range<u64> },
    Values(&'a [f32]),
}

struct Chunk<'a> {
    input: Input<'a>,
    /// The first weight within its tensor.
    first: u64,
    weights: usize,
    planes: Vec<&'a mut [u8]>,
}

#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    mapped: Vec<f32>,
    decoded: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Encodes a loaded tile into one buffer per plane, which gets its length here. Runs on the current Rayon pool. `importance` is
/// that of the whole tensor; `None`: every column weighs the same.
///
/// # Errors
/// If a source tensor is no weight.
pub fn encode(
    source: &dyn TensorSource,
    loaded: &Loaded,
    format: &'static Format,
    isa: Isa,
    importance: Option<&ColumnWeights>,
    planes: &mut Vec<Vec<u8>>,
) -> Result<Stats> {
    let blocks = loaded.tile.weights as usize / format.block;
    planes.resize_with(format.planes.len(), Vec::new);
    // What the last tile left is written over.
    for (plane, bytes) in planes.iter_mut().zip(format.planes) {
        plane.resize(blocks * bytes, 0);
    }

    let mut rest: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    let mut chunks = Vec::new();
    let mut first = loaded.tile.first_weight;
    let mut push = |input, weights: u64| {
        let weights = weights as usize;
        let planes = cut(format, weights, &mut rest);
        chunks.push(Chunk { input, first, weights, planes });
        first += weights as u64;
    };
    match &loaded.tile.pieces {
        Pieces::Values(values) => push(Input::Values(values), values.len() as u64),
        Pieces::Source(pieces) => {
            for (piece, raw) in pieces.iter().zip(&loaded.pieces) {
                let all = piece.rows.end - piece.rows.start;
                let row_wise = piece.map.is_row_wise();
                // What may stay as it is, or not, is told of each row: bytes must not depend on where chunks begin.
                let is_told =
                    quantized(source, piece).is_some_and(|from| from != format && may_move(from, format));
                let step = match row_wise {
                    false => all,
                    true if is_told => 1,
                    true => (CHUNK / piece.columns.max(1)).max(1),
                };
                let mut row = 0;
                while row < all {
                    let rows = step.min(all - row);
                    let weights = if row_wise { rows * piece.columns } else { piece.weights() };
                    push(Input::Rows { piece, raw, rows: row..row + rows }, weights);
                    row += rows;
                }
            }
        }
    }

    let stats: Vec<Stats> = chunks
        .into_par_iter()
        .map(|chunk| {
            SCRATCH.with_borrow_mut(|scratch| {
                encode_chunk(source, loaded, format, isa, importance, chunk, scratch)
            })
        })
        .collect::<Result<_>>()?;
    Ok(stats.iter().fold(Stats::default(), |mut sum, stats| {
        sum.add(stats);
        sum
    }))
}

/// Takes the bytes of the next `weights` weights off the front of each plane.
fn cut<'a>(format: &Format, weights: usize, planes: &mut Vec<&'a mut [u8]>) -> Vec<&'a mut [u8]> {
    let take = |(plane, bytes): (&mut &'a mut [u8], &usize)| {
        let (head, tail) = std::mem::take(plane).split_at_mut(weights / format.block * bytes);
        *plane = tail;
        head
    };
    planes.iter_mut().zip(format.planes).map(take).collect()
}

fn encode_chunk(
    source: &dyn TensorSource,
    loaded: &Loaded,
    format: &'static Format,
    isa: Isa,
    importance: Option<&ColumnWeights>,
    mut chunk: Chunk<'_>,
    scratch: &mut Scratch,
) -> Result<Stats> {
    let Scratch { weights, mapped, decoded } = scratch;
    // Nothing is quantized again where the source's blocks can stay what they are: nothing is lost either.
    let mut is_moved = false;
    let values: &mut [f32] = match chunk.input {
        Input::Values(values) => {
            weights.clear();
            weights.extend_from_slice(values);
            weights
        }
        Input::Rows { piece, raw, rows } => {
            weights.resize(((rows.end - rows.start) * piece.columns) as usize, 0.0);
            raw.widen(source, piece, rows.clone(), &loaded.bytes, isa, weights)?;
            is_moved = moved(source, piece, (raw, rows, &loaded.bytes), format, &mut chunk.planes);
            match piece.map {
                Map::Identity => weights,
                _ => {
                    mapped.resize(chunk.weights, 0.0);
                    rearrange(piece.map, weights, piece.columns as usize, mapped);
                    mapped
                }
            }
        }
    };

    let nonfinite = summarize(isa, values).nonfinite;
    if is_moved {
        if nonfinite > 0 {
            values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        }
        let energy = damage(isa, values, values).squared_norm;
        return Ok(Stats { energy, nonfinite, ..Stats::default() });
    }
    if nonfinite > 0 && format.block > 1 {
        values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
    }
    let encode = format.encode.ok_or(Error::ReadOnly { format: format.name })?;
    match importance {
        None => encode(format, isa, values, None, &mut chunk.planes),
        Some(importance) => {
            let columns = importance.columns();
            let first = chunk.first / columns;
            let (mut values, mut rest) =
                (&*values, chunk.planes.iter_mut().map(|plane| &mut **plane).collect());
            for (rows, importance) in importance.cut(first..first + chunk.weights as u64 / columns) {
                let weights = ((rows.end - rows.start) * columns) as usize;
                let (head, tail) = values.split_at(weights);
                encode(format, isa, head, importance, &mut cut(format, weights, &mut rest));
                values = tail;
            }
        }
    }
    let planes: Vec<&[u8]> = chunk.planes.iter().map(|plane| &**plane).collect();
    decoded.resize(chunk.weights, 0.0);
    (format.decode)(format, isa, &planes, decoded);
    Ok(Stats::of(isa, values, decoded, nonfinite))
}

/// Rounds whole blocks to what a format can hold; leaves them if it can't be written.
pub(crate) fn round(isa: Isa, format: &Format, weights: &mut [f32]) {
    let Some(encode) = format.encode else { return };
    let mut planes: Vec<Vec<u8>> =
        format.planes.iter().map(|bytes| vec![0; weights.len() / format.block * bytes]).collect();
    let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    encode(format, isa, weights, None, &mut out);
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    (format.decode)(format, isa, &planes, weights);
}

#[cfg(test)]
mod tests {
    use formats::{Content, output::Class};
    use kernels::table;

    use super::*;

    #[test]
    fn weights_that_became_infinite_are_counted_and_refused() {
        let (mut values, mut decoded) = (vec![1.0, f32::MAX, 0.0], vec![1.5, f32::INFINITY, 0.0]);
        let stats = Stats::of(Isa::detect(), &mut values, &mut decoded, 0);
        assert_eq!(stats, Stats { squared_error: 0.25, energy: 1.0, nonfinite: 0, overflow: 1 });
        let output = OutputTensor {
            name: "w".into(),
            shape: vec![3],
            class: Class::Other,
            layer: None,
            quantizable: true,
            content: Content::Values(values),
        };
        let format = table::gguf("f16").expect("known");
        assert!(matches!(stats.check(&output, format, true), Err(Error::Overflow { count: 1, .. })));
        let nonfinite = Stats { nonfinite: 2, ..Stats::default() };
        assert!(matches!(nonfinite.check(&output, format, false), Err(Error::NonFinite { count: 2, .. })));
        assert!(nonfinite.check(&output, format, true).is_ok());
    }
}

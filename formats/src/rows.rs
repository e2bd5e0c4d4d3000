//! Rows of source tensors in f32: which bytes they are, how they are widened, and how a converter rearranges them.

mod stored;

pub use stored::Stored;

use std::cell::RefCell;
use std::ops::Range;

use kernels::Isa;
use kernels::fp8::{e8m0_to_f32, widen_block_scaled};

use crate::error::{Error, Result};
use crate::output::{Content, Map, OutputTensor, Part};
use crate::scales::{BlockScale, Scales};
use crate::tensor::{Dtype, TensorMeta, TensorSource};

/// What was read of a part: where its bytes are in the reader's buffer.
#[derive(Debug)]
pub struct RawRows {
    /// One range for each plane of the tensor's format.
    planes: Vec<Range<usize>>,
    /// The scales of its rows, if it is FP8.
    scales: Option<RowScales>,
}

/// The block scales that some consecutive rows need.
#[derive(Debug)]
struct RowScales {
    /// Where they come from.
    of: BlockScale,
    /// Row-major, from row `first` of the scales on.
    values: Vec<f32>,
    first: u64,
}

impl RowScales {
    /// The scales of row `row` (counted in the whole source tensor): one for each block of columns.
    fn of_row(&self, row: u64) -> &[f32] {
        let per_row = self.of.columns as usize;
        &self.values[(self.of.row_of(row) - self.first) as usize * per_row..][..per_row]
    }
}

fn not_weights(meta: &TensorMeta) -> Error {
    Error::NotWeights { tensor: meta.name.clone(), dtype: meta.dtype.to_string(), shape: meta.shape.clone() }
}

/// The bytes of some weights of a tensor: one range for each plane of its format, from the tensor's own start.
fn byte_ranges(meta: &TensorMeta, weights: Range<u64>) -> Result<Vec<Range<u64>>> {
    let Dtype::Block(format) = meta.dtype else {
        let whole = matches!(meta.dtype, Dtype::F8E4M3 | Dtype::F8E8M0);
        return if whole { Ok(vec![weights]) } else { Err(not_weights(meta)) };
    };
    let mut start = 0;
    let mut ranges = Vec::with_capacity(format.planes.len());
    for plane in 0..format.planes.len() {
        let bytes = |weights| format.plane_bytes(plane, weights).ok_or_else(|| not_weights(meta));
        ranges.push(start + bytes(weights.start)?..start + bytes(weights.end)?);
        start += bytes(meta.elements())?;
    }
    Ok(ranges)
}

fn part_ranges(source: &dyn TensorSource, part: &Part) -> Result<Vec<Range<u64>>> {
    byte_ranges(source.meta(part.source), part.rows.start * part.columns..part.rows.end * part.columns)
}

/// Bytes of source that a part takes, block scales not counted.
///
/// # Errors
/// [`Error::NotWeights`].
pub fn part_bytes(source: &dyn TensorSource, part: &Part) -> Result<u64> {
    Ok(part_ranges(source, part)?.iter().map(|range| range.end - range.start).sum())
}

/// Reads a part's bytes to the end of `buffer`.
///
/// # Errors
/// [`Error::NotWeights`] if the tensor's elements are none, and whatever reading finds.
pub fn read(
    source: &dyn TensorSource,
    scales: &Scales,
    part: &Part,
    buffer: &mut Vec<u8>,
) -> Result<RawRows> {
    let mut planes = Vec::new();
    for range in part_ranges(source, part)? {
        let at = buffer.len();
        buffer.resize(at + (range.end - range.start) as usize, 0);
        source.read_at(part.source, range.start, &mut buffer[at..])?;
        planes.push(at..buffer.len());
    }
    Ok(RawRows { planes, scales: read_scales(source, scales, part)? })
}

fn read_scales(source: &dyn TensorSource, scales: &Scales, part: &Part) -> Result<Option<RowScales>> {
    let Some(&of) = scales.of(part.source) else { return Ok(None) };
    let meta = source.meta(of.scale);
    let first = of.row_of(part.rows.start);
    let count = (of.row_of(part.rows.end.saturating_sub(1)) - first + 1) * of.columns;
    let mut bytes = Vec::new();
    for range in byte_ranges(meta, first * of.columns..first * of.columns + count)? {
        bytes.resize((range.end - range.start) as usize, 0);
        source.read_at(of.scale, range.start, &mut bytes)?;
    }
    let mut values = vec![0.0; count as usize];
    match meta.dtype {
        Dtype::Block(format) => (format.decode)(format, Isa::detect(), &[&bytes], &mut values),
        _ => values.iter_mut().zip(&bytes).for_each(|(value, &code)| *value = e8m0_to_f32(code)),
    }
    Ok(Some(RowScales { of, values, first }))
}

/// Decodes rows of an output tensor (all dimensions but the last flattened) into `out`, row after row.
///
/// # Errors
/// [`Error::NotWeights`] if a source tensor's elements are none, and whatever reading finds.
pub fn decode(
    source: &dyn TensorSource,
    scales: &Scales,
    tensor: &OutputTensor,
    rows: Range<u64>,
    isa: Isa,
    out: &mut [f32],
) -> Result<()> {
    let columns = tensor.columns();
    // In weights, for a vector's parts may be columns.
    let wanted = rows.start * columns..rows.end * columns;
    let parts = match &tensor.content {
        Content::Values(values) => {
            out.copy_from_slice(&values[wanted.start as usize..wanted.end as usize]);
            return Ok(());
        }
        Content::Parts(parts) => parts,
    };
    let mut first = 0;
    for part in parts {
        let end = first + part.weights();
        let overlap = wanted.start.max(first)..wanted.end.min(end);
        if overlap.start < overlap.end {
            let at = (overlap.start - wanted.start) as usize..(overlap.end - wanted.start) as usize;
            let columns = part.output_shape().1;
            let within = (overlap.start - first) / columns..(overlap.end - first) / columns;
            decode_part(source, scales, part, within, isa, &mut out[at])?;
        }
        first = end;
        if first >= wanted.end {
            break;
        }
    }
    Ok(())
}

/// Decodes some rows of what a part becomes.
fn decode_part(
    source: &dyn TensorSource,
    scales: &Scales,
    part: &Part,
    rows: Range<u64>,
    isa: Isa,
    out: &mut [f32],
) -> Result<()> {
    thread_local! {
        static SCRATCH: RefCell<(Vec<u8>, Vec<f32>, Vec<f32>)> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|(bytes, weights, mapped)| {
        bytes.clear();
        let cut = part.cut(rows.clone());
        let (part, rows) = match &cut {
            Some(cut) => (cut, 0..rows.end - rows.start),
            None => (part, rows),
        };
        let all = 0..part.rows.end - part.rows.start;
        let raw = read(source, scales, part, bytes)?;
        if part.map == Map::Identity {
            return raw.widen(source, part, all, bytes, isa, out);
        }
        weights.resize((all.end * part.columns) as usize, 0.0);
        mapped.resize(part.weights() as usize, 0.0);
        raw.widen(source, part, all, bytes, isa, weights)?;
        rearrange(part.map, weights, part.columns as usize, mapped);
        let columns = part.output_shape().1 as usize;
        out.copy_from_slice(&mapped[rows.start as usize * columns..rows.end as usize * columns]);
        Ok(())
    })
}

impl RawRows {
    /// The bytes of some of the part's rows (counted from its first) in each plane.
    pub fn planes<'a>(&self, part: &Part, rows: Range<u64>, buffer: &'a [u8]) -> Vec<&'a [u8]> {
        let all = (part.rows.end - part.rows.start).max(1) as usize;
        let rows = rows.start as usize..rows.end as usize;
        let cut = |plane: &Range<usize>| {
            let per_row = plane.len() / all;
            &buffer[plane.start + rows.start * per_row..plane.start + rows.end * per_row]
        };
        self.planes.iter().map(cut).collect()
    }

    /// Decodes some of the part's rows (counted from its first) into f32, as the source has them.
    ///
    /// # Errors
    /// [`Error::NotWeights`].
    pub fn widen(
        &self,
        source: &dyn TensorSource,
        part: &Part,
        rows: Range<u64>,
        buffer: &[u8],
        isa: Isa,
        weights: &mut [f32],
    ) -> Result<()> {
        let meta = source.meta(part.source);
        let first = part.rows.start + rows.start;
        let planes = self.planes(part, rows, buffer);
        match (meta.dtype, &self.scales) {
            (Dtype::Block(format), _) => (format.decode)(format, isa, &planes, weights),
            (Dtype::F8E4M3, Some(scales)) => {
                let columns = part.columns as usize;
                let block = (1, scales.of.block[1] as usize);
                for ((codes, out), row) in
                    planes[0].chunks_exact(columns).zip(weights.chunks_exact_mut(columns)).zip(first..)
                {
                    widen_block_scaled(isa, codes, columns, 0, scales.of_row(row), block, out);
                }
            }
            _ => return Err(not_weights(meta)),
        }
        Ok(())
    }
}

/// Applies a map to a matrix of rows of `columns` values; `to` is as long as what the matrix becomes
/// ([`Part::output_shape`]).
pub fn rearrange(map: Map, from: &[f32], columns: usize, to: &mut [f32]) {
    let columns = columns.max(1);
    let rows = from.len() / columns;
    match map {
        Map::Identity => to.copy_from_slice(from),
        Map::PlusOne => to.iter_mut().zip(from).for_each(|(to, from)| *to = from + 1.0),
        Map::NegExp => {
            // In double precision, so that rounding hides where libraries differ.
            to.iter_mut().zip(from).for_each(|(to, from)| *to = -f64::from(*from).exp() as f32);
        }
        Map::DealColumns { groups, width } => {
            let (groups, width) = (groups as usize, width as usize);
            let per_group = columns / (groups * width);
            for (to, row) in to.chunks_exact_mut(columns).zip(from.chunks_exact(columns)) {
                for (i, to) in to.chunks_exact_mut(width).enumerate() {
                    let block = i % groups * per_group + i / groups;
                    to.copy_from_slice(&row[block * width..][..width]);
                }
            }
        }
        Map::Transpose => {
            for (r, row) in from.chunks_exact(columns).enumerate() {
                for (c, &value) in row.iter().enumerate() {
                    to[c * rows + r] = value;
                }
            }
        }
        Map::InterleaveHalves => {
            for (r, row) in from.chunks_exact(columns).enumerate() {
                let half = rows / 2;
                let at = if r < half { 2 * r } else { 2 * (r - half) + 1 };
                to[at * columns..][..columns].copy_from_slice(row);
            }
        }
        Map::EvenRows | Map::OddRows => {
            let kept = from.chunks_exact(columns).skip(usize::from(map == Map::OddRows)).step_by(2);
            to.chunks_exact_mut(columns).zip(kept).for_each(|(to, row)| to.copy_from_slice(row));
        }
        Map::EvenColumns | Map::OddColumns => {
            let first = usize::from(map == Map::OddColumns);
            for (r, row) in from.chunks_exact(columns).enumerate() {
                for (c, &value) in row.iter().skip(first).step_by(2).enumerate() {
                    to[c * rows + r] = value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_move_rows_as_the_docs_say() {
        let from: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let mut to = vec![0.0; 8];
        rearrange(Map::InterleaveHalves, &from, 2, &mut to);
        assert_eq!(to, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        rearrange(Map::Transpose, &from, 2, &mut to);
        assert_eq!(to, [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        rearrange(Map::PlusOne, &from, 2, &mut to);
        assert_eq!(to, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        rearrange(Map::DealColumns { groups: 2, width: 2 }, &from, 8, &mut to);
        assert_eq!(to, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        rearrange(Map::NegExp, &[0.0, 1.0], 2, &mut to[..2]);
        assert_eq!(to[..2], [-1.0, -std::f32::consts::E]);
        let half = &mut to[..4];
        rearrange(Map::EvenRows, &from, 2, half);
        assert_eq!(half, [0.0, 1.0, 4.0, 5.0]);
        rearrange(Map::OddRows, &from, 2, half);
        assert_eq!(half, [2.0, 3.0, 6.0, 7.0]);
        rearrange(Map::EvenColumns, &from, 4, half);
        assert_eq!(half, [0.0, 4.0, 2.0, 6.0]);
        rearrange(Map::OddColumns, &from, 4, half);
        assert_eq!(half, [1.0, 5.0, 3.0, 7.0]);
    }
}

//! Rows that are quantized already and stay as they are: their codes and scales in the target's blocks, where these can hold them.

use std::ops::Range;

use formats::{Dtype, Part, TensorSource, rows::RawRows};
use kernels::{Format, moves::transcode};

/// The format of a part's blocks, if it is quantized.
pub(crate) fn quantized(source: &dyn TensorSource, part: &Part) -> Option<&'static Format> {
    match source.meta(part.source).dtype {
        Dtype::Block(format) if format.block > 1 => Some(format),
        _ => None,
    }
}

/// Writes what becomes of some of a part's rows (counted from its first), read as `raw` in `buffer`, to `out` in `format`, a slice for
/// each plane, if that holds just these weights: whether it does. If not, what is written is worth nothing.
pub(crate) fn moved(
    source: &dyn TensorSource,
    part: &Part,
    (raw, rows, buffer): (&RawRows, Range<u64>, &[u8]),
    format: &Format,
    out: &mut [&mut [u8]],
) -> bool {
    let all = part.rows.end - part.rows.start;
    let Some(from) = quantized(source, part) else { return false };
    if part.map.source_row(0, all).is_none() || !from.holds_row(part.columns) {
        return false;
    }
    if part.map.is_row_wise() {
        return put(from, format, &raw.planes(part, rows, buffer), out);
    }
    // Rows in another order.
    let mut planes = vec![Vec::new(); from.planes.len()];
    for row in (0..part.output_shape().0).filter_map(|row| part.map.source_row(row, all)) {
        let found = raw.planes(part, row..row + 1, buffer);
        planes.iter_mut().zip(found).for_each(|(plane, bytes)| plane.extend_from_slice(bytes));
    }
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    put(from, format, &planes, out)
}

fn put(from: &Format, to: &Format, planes: &[&[u8]], out: &mut [&mut [u8]]) -> bool {
    if from == to {
        out.iter_mut().zip(planes).for_each(|(to, from)| to.copy_from_slice(from));
        return true;
    }
    transcode(from, to, planes, out)
}

//! Rows in the bytes that they are stored in, for a device that decodes them itself.

use std::ops::Range;

use kernels::Format;

use super::{RawRows, read};
use crate::error::Result;
use crate::output::{Content, Map, OutputTensor, Part};
use crate::scales::Scales;
use crate::tensor::{Dtype, TensorSource};

/// How all rows of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In blocks.
    Block(&'static Format),
    /// FP8 E4M3; a second plane has scales in F32, one for so many weights of a row.
    Fp8 {
        /// Weights of a scale.
        block: u32,
    },
}

/// The longest block of FP8 that becomes no shorter ones.
const MOST: u64 = 128;

impl Stored {
    /// Of a tensor; `None` if it has no one form: its values are computed, its parts differ, or what becomes of them changes more
    /// than the order of rows.
    pub fn of(source: &dyn TensorSource, scales: &Scales, tensor: &OutputTensor) -> Option<Stored> {
        let Content::Parts(parts) = &tensor.content else { return None };
        let columns = tensor.columns();
        let one = |part: &Part| {
            if part.map.source_row(0, 0).is_none() || part.output_shape().1 != columns {
                return None;
            }
            match source.meta(part.source).dtype {
                Dtype::Block(format) => format.holds_row(columns).then_some(Stored::Block(format)),
                Dtype::F8E4M3 => {
                    let block = scales.of(part.source)?.block[1];
                    // A long block is several with the same scale: devices work in short ones.
                    let short = if block.is_multiple_of(MOST) { MOST } else { block };
                    columns.is_multiple_of(block).then_some(Stored::Fp8 { block: u32::try_from(short).ok()? })
                }
                _ => None,
            }
        };
        let stored = one(parts.first()?)?;
        parts.iter().all(|part| one(part) == Some(stored)).then_some(stored)
    }

    /// Bytes of a row of `columns` weights in each plane.
    pub fn planes(&self, columns: u64) -> Vec<u64> {
        match self {
            Stored::Block(format) => {
                format.planes.iter().map(|&bytes| columns / format.block as u64 * bytes as u64).collect()
            }
            Stored::Fp8 { block } => vec![columns, columns / u64::from(*block) * 4],
        }
    }

    /// Appends rows of the tensor (all dimensions but the last flattened) to `planes`, row after row.
    ///
    /// # Errors
    /// Whatever reading finds.
    pub fn read(
        &self,
        source: &dyn TensorSource,
        scales: &Scales,
        tensor: &OutputTensor,
        rows: Range<u64>,
        planes: &mut [Vec<u8>],
    ) -> Result<()> {
        let Content::Parts(parts) = &tensor.content else { return Ok(()) };
        let mut buffer = Vec::new();
        let mut first = 0;
        for part in parts {
            let end = first + part.output_shape().0;
            let overlap = rows.start.max(first)..rows.end.min(end);
            if overlap.start < overlap.end {
                buffer.clear();
                let within = overlap.start - first..overlap.end - first;
                self.read_part(source, scales, part, within, &mut buffer, planes)?;
            }
            first = end;
        }
        Ok(())
    }

    fn read_part(
        &self,
        source: &dyn TensorSource,
        scales: &Scales,
        part: &Part,
        rows: Range<u64>,
        buffer: &mut Vec<u8>,
        planes: &mut [Vec<u8>],
    ) -> Result<()> {
        let cut = part.cut(rows.clone());
        let (part, rows) = match &cut {
            Some(cut) => (cut, 0..rows.end - rows.start),
            None => (part, rows),
        };
        let raw = read(source, scales, part, buffer)?;
        let all = part.rows.end - part.rows.start;
        if part.map == Map::Identity {
            self.append(&raw, part, rows, buffer, planes);
        } else {
            let from = rows.filter_map(|row| part.map.source_row(row, all));
            from.for_each(|row| self.append(&raw, part, row..row + 1, buffer, planes));
        }
        Ok(())
    }

    /// Appends rows of what was read, counted from the part's first.
    fn append(&self, raw: &RawRows, part: &Part, rows: Range<u64>, buffer: &[u8], planes: &mut [Vec<u8>]) {
        for (plane, bytes) in planes.iter_mut().zip(raw.planes(part, rows.clone(), buffer)) {
            plane.extend_from_slice(bytes);
        }
        if let (Stored::Fp8 { block }, Some(scales)) = (self, &raw.scales) {
            let times = (scales.of.block[1] / u64::from(*block)) as usize;
            let values = rows.flat_map(|row| scales.of_row(part.rows.start + row));
            let repeated = values.flat_map(|&scale| std::iter::repeat_n(scale, times));
            planes[1].extend(repeated.flat_map(f32::to_le_bytes));
        }
    }
}

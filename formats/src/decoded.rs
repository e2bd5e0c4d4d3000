//! Weights that are decoded as they are read, for no block format has them: those of four bits with columns of a group in many places, or
//! with one group in a row, and NVFP4 with a divisor of the whole tensor.

use kernels::nvfp4::MLX_NVFP4;
use kernels::{Format, Isa, float};

use crate::error::Result;
use crate::group_index::GroupIndex;
use crate::joined::{Plane, malformed};
use crate::safetensors::Safetensors;
use crate::tensor::{TensorId, TensorMeta, TensorSource};

/// How weights [rows, columns] follow from planes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoding {
    /// w = T(scale · (code − zero)) with the scale and the zero point of the column's group. The planes are rows of codes (four bits),
    /// scales of type T and zero points (bytes), one for each group. Without zero points these are 8.
    Grouped {
        /// The groups' columns; without it all are in one group.
        index: Option<GroupIndex>,
        groups: u64,
        /// T, which is the weights' type too.
        scales: &'static Format,
    },
    /// w = NVFP4's weight / divisor, in F32. The planes are NVFP4's.
    Divided {
        /// F32, one element.
        divisor: TensorId,
    },
}

/// Rows that are decoded at a time: enough for long runs in tensors that lie column by column.
const ROWS: u64 = 256;

impl Decoding {
    /// How they are stored, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Decoding::Grouped { index: Some(_), .. } => "w4a16-desc_act",
            Decoding::Grouped { index: None, .. } => "w4a16-channel",
            Decoding::Divided { .. } => "nvfp4",
        }
    }

    /// The stored tensor that is read besides the planes.
    pub fn beside(&self) -> Option<TensorId> {
        match self {
            Decoding::Grouped { index, .. } => index.map(|index| index.stored),
            Decoding::Divided { divisor } => Some(*divisor),
        }
    }

    /// The weights' type.
    pub fn float(&self) -> &'static Format {
        match self {
            Decoding::Grouped { scales, .. } => scales,
            Decoding::Divided { .. } => &float::F32,
        }
    }

    /// Fills `out` with bytes of the weights of `meta` from `offset` on.
    ///
    /// # Errors
    /// Whatever reading finds, and [`Error::Malformed`](crate::Error::Malformed) for groups or a divisor that can't be.
    pub fn read(
        &self,
        stored: &Safetensors,
        meta: &TensorMeta,
        planes: &[Plane],
        offset: u64,
        out: &mut [u8],
    ) -> Result<()> {
        let rule = Rule::read(self, stored, meta.columns())?;
        let row = meta.columns() * self.float().planes[0] as u64;
        let end = offset + out.len() as u64;
        let mut first = offset / row;
        while first * row < end {
            let last = (first + ROWS).min(end.div_ceil(row));
            let bytes = rule.rows(stored, planes, first..last)?;
            // What of them is wanted.
            let (start, stop) = (offset.max(first * row), end.min(last * row));
            let wanted = (start - first * row) as usize..(stop - first * row) as usize;
            out[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(&bytes[wanted]);
            first = last;
        }
        Ok(())
    }
}

/// A [`Decoding`] with what is read once.
enum Rule {
    Grouped { of_column: Vec<u32>, groups: usize, scales: &'static Format },
    Divided { columns: usize, divisor: f32 },
}

impl Rule {
    fn read(decoding: &Decoding, stored: &Safetensors, columns: u64) -> Result<Rule> {
        match *decoding {
            Decoding::Grouped { index, groups, scales } => {
                let of_column = match index {
                    Some(index) => index.read(stored)?,
                    None => vec![0; columns as usize],
                };
                Ok(Rule::Grouped { of_column, groups: groups as usize, scales })
            }
            Decoding::Divided { divisor: id } => {
                let mut bytes = [0; 4];
                stored.read_at(id, 0, &mut bytes)?;
                let divisor = f32::from_le_bytes(bytes);
                if divisor.is_finite() && divisor != 0.0 {
                    return Ok(Rule::Divided { columns: columns as usize, divisor });
                }
                let reason = format!("{} is {divisor}, and weights are divided by it", stored.meta(id).name);
                Err(malformed(stored, id, reason))
            }
        }
    }

    /// Bytes of some rows' weights.
    fn rows(&self, stored: &Safetensors, planes: &[Plane], rows: std::ops::Range<u64>) -> Result<Vec<u8>> {
        let count = (rows.end - rows.start) as usize;
        let read = |plane: usize, row: usize| {
            let mut bytes = vec![0; count * row];
            planes[plane].read(stored, rows.start * row as u64, &mut bytes)?;
            Ok(bytes)
        };
        match self {
            Rule::Grouped { of_column, groups, scales } => {
                let codes = read(0, of_column.len() / 2)?;
                let scale_bytes = read(1, groups * scales.planes[0])?;
                let zeros = if planes.len() > 2 { read(2, *groups)? } else { vec![8; count * groups] };
                let mut steps = vec![0.0; count * groups];
                (scales.decode)(scales, Isa::detect(), &[&scale_bytes], &mut steps);
                let mut weights = vec![0.0; count * of_column.len()];
                let per_group = steps.chunks_exact(*groups).zip(zeros.chunks_exact(*groups));
                let by_row = codes.chunks_exact(of_column.len() / 2).zip(per_group);
                for (row, (codes, (steps, zeros))) in weights.chunks_exact_mut(of_column.len()).zip(by_row) {
                    for (column, (weight, &group)) in row.iter_mut().zip(of_column).enumerate() {
                        let code = codes[column / 2] >> (4 * (column % 2)) & 15;
                        let level = i32::from(code) - i32::from(zeros[group as usize]);
                        *weight = level as f32 * steps[group as usize];
                    }
                }
                Ok(narrow(scales, &weights))
            }
            Rule::Divided { columns, divisor } => {
                let (codes, scales) = (read(0, columns / 2)?, read(1, columns / MLX_NVFP4.block)?);
                let mut weights = vec![0.0; count * columns];
                (MLX_NVFP4.decode)(&MLX_NVFP4, Isa::detect(), &[&codes, &scales], &mut weights);
                weights.iter_mut().for_each(|weight| *weight /= divisor);
                Ok(narrow(&float::F32, &weights))
            }
        }
    }
}

/// Weights in a type of floats, rounded to nearest.
fn narrow(float: &Format, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; weights.len() * float.planes[0]];
    if let Some(encode) = float.encode {
        encode(float, Isa::detect(), weights, None, &mut [&mut bytes]);
    }
    bytes
}

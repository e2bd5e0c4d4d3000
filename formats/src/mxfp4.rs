//! MXFP4 as gpt-oss's checkpoints have it: for a matrix of rows that are a whole number of groups of 32 weights, `<name>_blocks`
//! (U8 [.., groups, 16]: two codes in a byte, the first in the low half) and `<name>_scales` (U8 [.., groups]: E8M0). The bytes are
//! those of MLX's `mxfp4`, so the two are read as one tensor of two planes, which goes by the blocks' name.

use kernels::mxfp4::MLX_MXFP4;

use crate::tensor::{Dtype, TensorMeta};

/// The ends of the two names.
const ENDS: (&str, &str) = ("_blocks", "_scales");

/// The name of the scales of `<name>_blocks`.
pub(crate) fn scales_name(blocks: &str) -> Option<String> {
    blocks.strip_suffix(ENDS.0).map(|name| format!("{name}{}", ENDS.1))
}

/// The tensor that the two make, if they are what their names say. Its length is that of both; place and file are the blocks'.
pub(crate) fn joined(blocks: &TensorMeta, scales: &TensorMeta) -> Option<TensorMeta> {
    let is_bytes = |meta: &TensorMeta| matches!(meta.dtype, Dtype::Other { name: "U8", .. });
    let (&16, groups) = blocks.shape.split_last()? else { return None };
    if !is_bytes(blocks) || !is_bytes(scales) || groups != scales.shape {
        return None;
    }
    let (&last, outer) = groups.split_last()?;
    let shape = [outer, &[last.checked_mul(MLX_MXFP4.block as u64)?]].concat();
    let dtype = Dtype::Block(&MLX_MXFP4);
    Some(TensorMeta { dtype, shape, len: blocks.len.checked_add(scales.len)?, ..blocks.clone() })
}

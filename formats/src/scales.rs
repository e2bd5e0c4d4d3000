//! Scales of FP8 checkpoints: which tensor scales which, checked before a weight is read.
//!
//! A weight [o, i] in E4M3 comes with scales of its blocks, w = e4m3 · scale:
//! - DeepSeek-V3 (its `inference/kernel.py`, `weight_dequant`): `<name>_scale_inv` [⌈o/bo⌉, ⌈i/bi⌉]. Blocks at the edges are cut, their
//!   scales are not. Scales are F32 or BF16, or powers of two (`scale_fmt: ue8m0`) stored as F32 or as E8M0.
//! - compressed-tensors (`float-quantized`), FBGEMM and ModelOpt: `<name>_scale`, which is the same, or [o, 1] with one for each row, or one
//!   for the tensor.
//!
//! Experts stacked to [e, o, i] have scales [e, …]. A weight and its scale may lie in different shards.

use std::collections::HashMap;

use kernels::float;

use crate::error::{Error, Result};
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// What a weight's name is continued with to name its scales.
const SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];

/// Ends of names of what scales activations and the cache, which weights don't depend on.
const OF_ACTIVATIONS: [&str; 9] = [
    ".input_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".output_scale",
    ".activation_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
];

/// The block size of checkpoints that state none: rows × columns.
pub const DEFAULT_BLOCK: [u64; 2] = [128, 128];

/// The scales of an FP8 weight of that name, if there are any.
pub fn scale_of(source: &dyn TensorSource, weight: &str) -> Option<TensorId> {
    SUFFIXES.iter().find_map(|suffix| source.find(&format!("{weight}{suffix}")))
}

/// The tensor that one of that name would scale, if there is one.
pub fn weight_of(source: &dyn TensorSource, scale: &str) -> Option<TensorId> {
    SUFFIXES.iter().find_map(|suffix| source.find(scale.strip_suffix(suffix)?))
}

/// Whether a tensor of that name scales activations.
pub fn is_of_activations(name: &str) -> bool {
    OF_ACTIVATIONS.iter().any(|end| name.ends_with(end))
}

/// Where the scales of one weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockScale {
    /// The tensor that holds the scales.
    pub scale: TensorId,
    /// Rows and columns of weights under one scale.
    pub block: [u64; 2],
    /// Scales in a row: ⌈i/bi⌉.
    pub columns: u64,
    /// Rows of the weight, of each matrix if they are stacked: o.
    matrix_rows: u64,
    /// Rows of scales for each matrix: ⌈o/bo⌉.
    scale_rows: u64,
}

impl BlockScale {
    /// The row of scales over a row of the weight, both counted through all stacked matrices.
    pub fn row_of(&self, row: u64) -> u64 {
        row / self.matrix_rows * self.scale_rows + row % self.matrix_rows / self.block[0]
    }
}

/// The scales of every FP8 weight of a source.
#[derive(Debug)]
pub struct Scales {
    by_weight: HashMap<TensorId, BlockScale>,
}

impl Scales {
    /// Pairs every E4M3 weight with its scales. `block` is the size of blocks that the checkpoint's configuration states, rows and
    /// columns, or [`DEFAULT_BLOCK`].
    ///
    /// # Errors
    /// [`Error::BadBlock`], [`Error::MissingScale`], [`Error::ScaleShape`], [`Error::ScaleDtype`], and
    /// [`Error::LeftoverScale`] for scales that no FP8 weight uses.
    pub fn find(source: &dyn TensorSource, block: [u64; 2]) -> Result<Scales> {
        if block.contains(&0) {
            return Err(Error::BadBlock { block });
        }
        let mut by_weight = HashMap::new();
        for (i, weight) in source.tensors().iter().enumerate() {
            if weight.dtype == Dtype::F8E4M3 {
                by_weight.insert(TensorId(i), pair(source, weight, block)?);
            }
        }
        for tensor in source.tensors() {
            // Other tensors than weights may have a `_scale`.
            let ends = |suffix| tensor.name.strip_suffix(suffix);
            let weight = ends(SUFFIXES[0]).or(ends(SUFFIXES[1]).filter(|name| name.ends_with(".weight")));
            let Some(weight) = weight else { continue };
            if source.find(weight).is_none_or(|id| !by_weight.contains_key(&id)) {
                return Err(Error::LeftoverScale { scale: tensor.name.clone(), weight: weight.to_owned() });
            }
        }
        Ok(Scales { by_weight })
    }

    /// The scales of a weight; `None` if it is not FP8.
    pub fn of(&self, weight: TensorId) -> Option<&BlockScale> {
        self.by_weight.get(&weight)
    }

    /// Number of scaled weights.
    pub fn len(&self) -> usize {
        self.by_weight.len()
    }

    /// Whether the source has no FP8 weight.
    pub fn is_empty(&self) -> bool {
        self.by_weight.is_empty()
    }
}

fn pair(source: &dyn TensorSource, weight: &TensorMeta, block: [u64; 2]) -> Result<BlockScale> {
    let Some(scale) = scale_of(source, &weight.name) else {
        let [first, second] = SUFFIXES.map(|suffix| format!("{}{suffix}", weight.name));
        return Err(Error::MissingScale {
            weight: weight.name.clone(),
            scale: format!("{first} or {second}"),
        });
    };
    let meta = source.meta(scale);
    let floats = [&float::F32, &float::BF16, &float::F16].map(Dtype::Block);
    if !floats.contains(&meta.dtype) && meta.dtype != Dtype::F8E8M0 {
        return Err(Error::ScaleDtype { scale: meta.name.clone(), dtype: meta.dtype.to_string() });
    }
    let mut expected = weight.shape.clone();
    for (dimension, block) in expected.iter_mut().rev().zip([block[1], block[0]]) {
        *dimension = dimension.div_ceil(block);
    }
    let (stack, matrix) = weight.shape.split_at(weight.shape.len().saturating_sub(2));
    let rows = matrix.split_last().map_or(1, |(_, outer)| outer.iter().product()).max(1);
    let columns = weight.columns().max(1);
    let each = |rows: u64, block: [u64; 2]| {
        let (columns, scale_rows) = (columns.div_ceil(block[1]), rows.div_ceil(block[0]));
        BlockScale { scale, block, columns, matrix_rows: rows, scale_rows }
    };
    let is_laid = |of_matrix: &[u64]| meta.shape == [stack, of_matrix].concat();
    if meta.shape == expected {
        Ok(each(rows, block))
    } else if meta.elements() == 1 {
        let rows = weight.rows().max(1);
        Ok(each(rows, [rows, columns]))
    } else if is_laid(&[1, 1]) || is_laid(&[]) {
        Ok(each(rows, [rows, columns]))
    } else if is_laid(&[rows, 1]) || is_laid(&[rows]) {
        Ok(each(rows, [1, columns]))
    } else {
        Err(Error::ScaleShape {
            scale: meta.name.clone(),
            shape: weight.shape.clone(),
            block,
            expected,
            found: meta.shape.clone(),
        })
    }
}

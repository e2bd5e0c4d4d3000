//! Block scales of FP8 checkpoints: which tensor scales which, checked before a weight is read.
//!
//! DeepSeek-V3's layout (its `inference/kernel.py`, `weight_dequant`): a weight [o, i] in E4M3 comes with
//! `<name>_scale_inv` [⌈o/bo⌉, ⌈i/bi⌉], and w = e4m3 · scale of its block. Blocks at the edges are cut, their scales are not.
//! The scales are F32 or BF16, or powers of two (`scale_fmt: ue8m0`) stored as F32 or as E8M0. Experts stacked to [e, o, i]
//! have scales [e, ⌈o/bo⌉, ⌈i/bi⌉]. A weight and its scale may lie in different shards.

use std::collections::HashMap;

use kernels::float;

use crate::error::{Error, Result};
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// What a weight's name is continued with to name its scales.
pub const SUFFIX: &str = "_scale_inv";

/// The block size of checkpoints that state none: rows × columns.
pub const DEFAULT_BLOCK: [u64; 2] = [128, 128];

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
    /// Pairs every E4M3 weight with its scales. `block` is the checkpoint's `quantization_config.weight_block_size`, rows and
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
            let Some(weight) = tensor.name.strip_suffix(SUFFIX) else { continue };
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
    let name = format!("{}{SUFFIX}", weight.name);
    let Some(scale) = source.find(&name) else {
        return Err(Error::MissingScale { weight: weight.name.clone(), scale: name });
    };
    let meta = source.meta(scale);
    if ![Dtype::Block(&float::F32), Dtype::Block(&float::BF16), Dtype::F8E8M0].contains(&meta.dtype) {
        return Err(Error::ScaleDtype { scale: name, dtype: meta.dtype.to_string() });
    }
    let mut expected = weight.shape.clone();
    for (dimension, block) in expected.iter_mut().rev().zip([block[1], block[0]]) {
        *dimension = dimension.div_ceil(block);
    }
    if meta.shape != expected {
        return Err(Error::ScaleShape {
            weight: weight.name.clone(),
            shape: weight.shape.clone(),
            block,
            expected,
            found: meta.shape.clone(),
        });
    }
    let second_last = |shape: &[u64]| shape.iter().rev().nth(1).copied().unwrap_or(1).max(1);
    Ok(BlockScale {
        scale,
        block,
        columns: meta.columns(),
        matrix_rows: second_last(&weight.shape),
        scale_rows: second_last(&expected),
    })
}

//! [`Tap`]: what stands between a model's graph and its weights. Whoever calibrates sees there what every weight is multiplied
//! with, and may give another one in its place.

use std::ops::Range;

use kernels::matrix::Matrix;

use crate::error::Result;
use crate::weights::{Linear, Weights};

/// Where products get their weights.
pub trait Tap: Sync {
    /// Told before `x` [tokens, columns of w] is multiplied with `w`.
    ///
    /// # Errors
    /// Whatever makes it pointless to go on.
    fn product(&self, x: Matrix<'_>, w: &Linear) -> Result<()>;

    /// Decodes rows of tensor `tensor` (all dimensions but the last flattened) into `out`, row after row.
    ///
    /// # Errors
    /// If they can't be read.
    fn rows(&self, tensor: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The model itself, if nobody wants to be told of products and rows are what the model stores: a device may then take them as
    /// they are stored.
    fn untouched(&self) -> Option<&Weights> {
        None
    }
}

/// The weights as they are.
impl Tap for Weights {
    fn product(&self, _: Matrix<'_>, _: &Linear) -> Result<()> {
        Ok(())
    }

    fn rows(&self, tensor: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        Weights::rows(self, tensor, rows, out)
    }

    fn untouched(&self) -> Option<&Weights> {
        Some(self)
    }
}

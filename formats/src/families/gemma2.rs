//! Gemma 2: every other layer has a window; attention scores and logits are capped by tanh.

use super::builder::{Builder, RotaryOrder};
use super::common::Attention;
use super::{Family, gemma};
use crate::error::Result;

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    arch: "gemma2",
    tensors,
    metadata: |config, keys| gemma::metadata(config, 2, keys),
};

fn tensors(b: &mut Builder) -> Result<()> {
    gemma::tensors(b, &Attention { order: RotaryOrder::Halves, bias: false, qk_norm: false })
}

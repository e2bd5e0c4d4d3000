//! Qwen 3, dense: queries and keys are normed per head.

use super::Family;
use super::builder::{Builder, RotaryOrder};
use super::common::{self, Attention};
use crate::error::Result;

pub(super) const QWEN3: Family =
    Family { model_type: "qwen3", arch: "qwen3", tensors, metadata: common::metadata };

pub(super) const ATTENTION: Attention = Attention { order: RotaryOrder::Halves, bias: false, qk_norm: true };

fn tensors(b: &mut Builder) -> Result<()> {
    common::model(b, |b, _| {
        common::attention(b, &ATTENTION)?;
        common::mlp_norm(b)?;
        common::mlp(b)
    })
}

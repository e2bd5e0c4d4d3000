//! Qwen 2 and 2.5: Llama's graph with biases on queries, keys and values.

use super::Family;
use super::builder::{Builder, RotaryOrder};
use super::common::{self, Attention};
use crate::error::Result;

pub(super) const QWEN2: Family =
    Family { model_type: "qwen2", arch: "qwen2", tensors, metadata: common::metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    common::model(b, |b, _| {
        common::attention(b, &Attention { order: RotaryOrder::Halves, bias: true, qk_norm: false })?;
        common::mlp_norm(b)?;
        common::mlp(b)
    })
}

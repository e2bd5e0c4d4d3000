//! Llama (1 to 3.x) and the many models with its graph.

use super::builder::{Builder, RotaryOrder};
use super::common::{self, Attention};
use super::{Family, Keys};
use crate::config::ModelConfig;
use crate::error::Result;

pub(super) const LLAMA: Family = Family { model_type: "llama", arch: "llama", tensors, metadata };

pub(super) const ATTENTION: Attention = Attention { order: RotaryOrder::Pairs, bias: false, qk_norm: false };

pub(super) fn tensors(b: &mut Builder) -> Result<()> {
    common::model(b, |b, _| {
        common::attention(b, &ATTENTION)?;
        common::mlp_norm(b)?;
        common::mlp(b)
    })
}

pub(super) fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    keys.count("rope.dimension_count", config.head_dim)
}

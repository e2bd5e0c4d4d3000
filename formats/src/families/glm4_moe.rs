//! GLM 4.5 to 4.7 with experts: grouped-query attention that rotates a part of each head, and DeepSeek V3's mixture.

use super::builder::{Builder, RotaryOrder, same};
use super::common::{self, Attention};
use super::{Family, Keys, mixture};
use crate::config::{ModelConfig, Moe, Scoring};
use crate::error::Result;

pub(super) const GLM4_MOE: Family = Family { model_type: "glm4_moe", arch: "glm4moe", tensors, metadata };

fn moe(config: &ModelConfig) -> Result<&Moe> {
    config.moe.as_ref().ok_or_else(|| config.error("n_routed_experts", "is missing"))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let config = b.config;
    let (moe, hidden) = (moe(config)?, config.hidden_dim());
    let attention = Attention {
        order: RotaryOrder::Halves,
        bias: config.keys.flag("attention_bias")?.unwrap_or(false),
        qk_norm: config.keys.flag("use_qk_norm")?.unwrap_or(false),
    };
    common::model(b, |b, layer| {
        common::attention(b, &attention)?;
        // The norm before the MLP, in spite of its name.
        b.norm(same("post_attention_layernorm", "post_attention_norm"), hidden)?;
        if layer >= moe.first_dense { mixture::tensors(b, moe, true) } else { common::mlp(b) }
    })
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    keys.count("rope.dimension_count", config.rotary_width(0.5))?;
    mixture::metadata(moe(config)?, keys, Scoring::Sigmoid)
}

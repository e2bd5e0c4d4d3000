//! Qwen 3 with experts.

use super::builder::{Builder, Dim, same};
use super::{Family, Keys, Target, common, qwen3};
use crate::config::{ModelConfig, Moe};
use crate::error::Result;

pub(super) const QWEN3_MOE: Family = Family { model_type: "qwen3_moe", arch: "qwen3moe", tensors, metadata };

fn moe(config: &ModelConfig) -> Result<&Moe> {
    config.moe.as_ref().ok_or_else(|| config.error("num_experts", "is missing"))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let config = b.config;
    let moe = moe(config)?;
    let (hidden, experts) = (config.hidden_dim(), Dim(moe.experts, "num_experts"));
    common::model(b, |b, layer| {
        common::attention(b, &qwen3::ATTENTION)?;
        common::mlp_norm(b)?;
        if moe.has_experts(layer) {
            b.router(same("mlp.gate", "ffn_gate_inp"), experts, hidden, true)?;
            common::experts(b, moe)
        } else if b.target == Target::Gguf {
            let problem = format!("makes layer {layer} dense, which llama.cpp's qwen3moe can't run");
            Err(config.error("mlp_only_layers / decoder_sparse_step", problem))
        } else {
            common::mlp(b)
        }
    })
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    keys.count("expert_feed_forward_length", moe(config)?.intermediate)
}

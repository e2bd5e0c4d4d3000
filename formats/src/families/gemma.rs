//! What Gemma 2 and 3 share: norms before and after attention and MLP, whose gains are stored as the difference from 1.

use super::builder::{Builder, same};
use super::common::{self, Attention};
use super::{Keys, windows};
use crate::config::ModelConfig;
use crate::error::Result;

/// All tensors.
pub(super) fn tensors(b: &mut Builder, attention: &Attention) -> Result<()> {
    b.norms_plus_one();
    common::model(b, |b, _| {
        common::attention(b, attention)?;
        norms(b)?;
        common::mlp(b)
    })
}

/// The norm after attention and those around the MLP.
pub(super) fn norms(b: &mut Builder) -> Result<()> {
    let hidden = b.config.hidden_dim();
    b.norm(same("post_attention_layernorm", "post_attention_norm"), hidden)?;
    b.norm(same("pre_feedforward_layernorm", "ffn_norm"), hidden)?;
    b.norm(same("post_feedforward_layernorm", "post_ffw_norm"), hidden)
}

/// Attention with a window in all but every `period`-th layer, its scale, and the caps of attention scores and logits.
pub(super) fn metadata(config: &ModelConfig, period: u64, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    windows::periodic(config, period, keys)?;
    if let Some(scalar) = config.keys.number("query_pre_attn_scalar")? {
        // llama.cpp knows it by the number of layers.
        keys.number("attention.scale", scalar.powf(-0.5));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = config.keys.number(key)? {
            keys.number(key, cap);
        }
    }
    Ok(())
}

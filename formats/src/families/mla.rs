//! What the models with multi-head latent attention (MLA, <https://arxiv.org/abs/2405.04434>) share.
//!
//! Both consumers run MLA absorbed: keys and values stay in the latent, queries are multiplied into it. So `kv_b_proj`
//! [heads · (nope + v), latent] is cut per head into a transposed key half [heads, latent, nope] and a value half
//! [heads, v, latent], and GGUF describes attention as if it had one key head of width latent + rope.

use super::builder::{Builder, Dim, Module, same};
use super::{Keys, Target, common, mixture};
use crate::config::{Mla, ModelConfig, Moe, RopeScaling, Scoring};
use crate::error::Result;
use crate::output::{Class, Map};

/// ε of the norms of the latents in every implementation, whatever the model's own ε is.
const LATENT_EPS: f64 = 1e-6;

/// What latent attention and the mixture are made of.
pub(super) fn parts(config: &ModelConfig) -> Result<(&Mla, &Moe)> {
    let mla = config.mla.as_ref().ok_or_else(|| config.error("kv_lora_rank", "is missing"))?;
    let moe = config.moe.as_ref().ok_or_else(|| config.error("n_routed_experts", "is missing"))?;
    Ok((mla, moe))
}

/// Embedding, blocks of norm, attention, norm and MLP, and the head. `more` adds to a block's attention what only the family
/// has; `bias` says whether the router has a correction bias.
pub(super) fn model(
    b: &mut Builder,
    bias: bool,
    more: impl Fn(&mut Builder, u32) -> Result<()>,
) -> Result<()> {
    let (mla, moe) = parts(b.config)?;
    common::model(b, |b, layer| {
        attention(b, mla)?;
        more(b, layer)?;
        common::mlp_norm(b)?;
        if moe.has_experts(layer) {
            mixture::tensors(b, moe, bias)
        } else if layer >= moe.first_dense && b.target == Target::Gguf {
            let problem = format!("makes layer {layer} dense, which llama.cpp's graphs with MLA can't run");
            Err(b.config.error("moe_layer_freq", problem))
        } else {
            common::mlp(b)
        }
    })
}

fn attention(b: &mut Builder, mla: &Mla) -> Result<()> {
    let (config, hidden) = (b.config, b.config.hidden_dim());
    let queries = Dim(
        config.heads * (mla.nope + mla.rope),
        "num_attention_heads · (qk_nope_head_dim + qk_rope_head_dim)",
    );
    let latent = Dim(mla.kv_lora, "kv_lora_rank");
    let stride = mla.nope + mla.v;

    b.norm(same("input_layernorm", "attn_norm"), hidden)?;
    if let Some(rank) = mla.q_lora {
        let rank = Dim(rank, "q_lora_rank");
        b.linear(Class::AttnQA, same("self_attn.q_a_proj", "attn_q_a"), rank, hidden)?;
        b.norm(same("self_attn.q_a_layernorm", "attn_q_a_norm"), rank)?;
        b.linear(Class::AttnQB, same("self_attn.q_b_proj", "attn_q_b"), queries, rank)?;
    } else {
        b.linear(Class::AttnQ, same("self_attn.q_proj", "attn_q"), queries, hidden)?;
    }
    let kv_a = Dim(mla.kv_lora + mla.rope, "kv_lora_rank + qk_rope_head_dim");
    b.linear(Class::AttnKvA, same("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"), kv_a, hidden)?;
    b.norm(same("self_attn.kv_a_layernorm", "attn_kv_a_norm"), latent)?;

    let keys = Module { source: "", mlx: "self_attn.embed_q", gguf: "attn_k_b" };
    let values = Module { source: "", mlx: "self_attn.unembed_out", gguf: "attn_v_b" };
    let heads = Dim(config.heads, "num_attention_heads");
    if b.source_is_mlx() {
        b.stacked(Class::AttnKB, keys, [heads, latent, Dim(mla.nope, "qk_nope_head_dim")])?;
        b.stacked(Class::AttnVB, values, [heads, Dim(mla.v, "v_head_dim"), latent])?;
    } else {
        let rows = Dim(heads.0 * stride, "num_attention_heads · (qk_nope_head_dim + v_head_dim)");
        let kv_b = b.take("self_attn.kv_b_proj.weight", &[rows, latent])?;
        b.per_head(Class::AttnKB, keys, kv_b, heads.0, stride, 0..mla.nope, latent.0, Map::Transpose);
        b.per_head(Class::AttnVB, values, kv_b, heads.0, stride, mla.nope..stride, latent.0, Map::Identity);
    }

    let values = Dim(config.heads * mla.v, "num_attention_heads · v_head_dim");
    b.linear(Class::AttnOutput, same("self_attn.o_proj", "attn_output"), hidden, values)
}

/// The hyper-parameters; `scoring` is how the family's router scores where the file doesn't say.
pub(super) fn metadata(config: &ModelConfig, keys: &mut Keys, scoring: Scoring) -> Result<()> {
    let (mla, moe) = parts(config)?;
    common::metadata(config, keys)?;
    keys.count("attention.head_count_kv", 1)?;
    keys.count("attention.key_length", mla.kv_lora + mla.rope)?;
    keys.count("attention.value_length", mla.kv_lora)?;
    keys.count("attention.key_length_mla", mla.nope + mla.rope)?;
    keys.count("attention.value_length_mla", mla.v)?;
    if let Some(rank) = mla.q_lora {
        keys.count("attention.q_lora_rank", rank)?;
    }
    keys.count("attention.kv_lora_rank", mla.kv_lora)?;
    keys.count("rope.dimension_count", mla.rope)?;
    if config.rms_eps != LATENT_EPS {
        // llama.cpp has no key for it and takes the model's own.
        keys.number("attention.latent_layer_norm_rms_epsilon", LATENT_EPS);
    }
    if let RopeScaling::Yarn { mscale_all_dim: Some(mscale), mscale: of_rotation, .. } = config.rope.scaling {
        if of_rotation.is_some_and(|other| other != mscale) {
            return Err(config
                .error("mscale", format!("is not mscale_all_dim, {mscale}: llama.cpp has no key for it")));
        }
        // llama.cpp's deepseek2 reads the key with this factor in it.
        keys.number("rope.scaling.yarn_log_multiplier", 0.1 * mscale);
    }
    mixture::metadata(moe, keys, scoring)
}

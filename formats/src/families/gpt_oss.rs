//! gpt-oss: every other layer has a window, attention can attend to nothing (a sink per head), and everything has a bias.
//!
//! Gates and up-projections of all experts are one tensor in which they alternate; unless it is in MXFP4, the tensor is
//! stored for a product from the left, [experts, in, out].

use super::builder::{Builder, Dim, Module, RotaryOrder, same};
use super::common::{self, Attention};
use super::{Family, Keys, windows};
use crate::config::{ModelConfig, Moe};
use crate::error::Result;
use crate::output::{Class, Content, Map, Part};

pub(super) const GPT_OSS: Family = Family { model_type: "gpt_oss", arch: "gpt-oss", tensors, metadata };

fn moe(config: &ModelConfig) -> Result<&Moe> {
    config.moe.as_ref().ok_or_else(|| config.error("num_local_experts", "is missing"))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let config = b.config;
    let moe = moe(config)?;
    let (hidden, heads) = (config.hidden_dim(), Dim(config.heads, "num_attention_heads"));
    let experts = Dim(moe.experts, "num_local_experts");
    let sinks = Module { source: "self_attn.sinks", mlx: "self_attn.sinks", gguf: "attn_sinks.weight" };
    common::model(b, |b, _| {
        common::attention(b, &Attention { order: RotaryOrder::Halves, bias: true, qk_norm: false })?;
        b.vector(sinks.source, b.name(sinks, "", false), Class::Vector, heads, None)?;
        b.norm(same("post_attention_layernorm", "post_attention_norm"), hidden)?;
        b.router(same("mlp.router", "ffn_gate_inp"), experts, hidden, true)?;
        mixture(b, experts, Dim(moe.intermediate, "intermediate_size"))
    })
}

fn mixture(b: &mut Builder, experts: Dim, inner: Dim) -> Result<()> {
    let hidden = b.config.hidden_dim();
    let both = Dim(2 * inner.0, "2 · intermediate_size");
    let gate_up = b.take("mlp.experts.gate_up_proj", &[experts, hidden, both])?;
    let gate_up_bias = b.take("mlp.experts.gate_up_proj_bias", &[experts, both])?;
    let down = b.take("mlp.experts.down_proj", &[experts, inner, hidden])?;
    let down_bias = b.take("mlp.experts.down_proj_bias", &[experts, hidden])?;

    let gates = Module { source: "", mlx: "mlp.experts.gate_proj", gguf: "ffn_gate_exps" };
    let ups = Module { source: "", mlx: "mlp.experts.up_proj", gguf: "ffn_up_exps" };
    let downs = Module { source: "", mlx: "mlp.experts.down_proj", gguf: "ffn_down_exps" };
    for (class, module, columns, elements) in [
        (Class::ExpertGate, gates, Map::EvenColumns, Map::EvenRows),
        (Class::ExpertUp, ups, Map::OddColumns, Map::OddRows),
    ] {
        b.per_head(class, module, gate_up, experts.0, hidden.0, 0..hidden.0, both.0, columns);
        let bias = Part { source: gate_up_bias, columns: 1, rows: 0..experts.0 * both.0, map: elements };
        let name = b.name(module, ".bias", false);
        b.push(name, Class::Vector, false, &[experts.0, inner.0], Content::Parts(vec![bias]));
    }
    b.per_head(Class::ExpertDown, downs, down, experts.0, inner.0, 0..inner.0, hidden.0, Map::Transpose);
    let bias = Part { source: down_bias, columns: hidden.0, rows: 0..experts.0, map: Map::Identity };
    let name = b.name(downs, ".bias", false);
    b.push(name, Class::Vector, false, &[experts.0, hidden.0], Content::Parts(vec![bias]));
    Ok(())
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    windows::periodic(config, 2, keys)?;
    keys.count("expert_feed_forward_length", moe(config)?.intermediate)?;
    // llama.cpp has these constants in its graph, and bounds YaRN's ramp by whole dimensions.
    for key in ["swiglu_alpha", "swiglu_limit"] {
        if let Some(value) = config.keys.number(key)? {
            keys.number(key, value);
        }
    }
    let rope = match config.keys.object("rope_parameters")? {
        Some(rope) => Some(rope),
        None => config.keys.object("rope_scaling")?,
    };
    if let Some(truncate) = rope.map_or(Ok(None), |rope| rope.flag("truncate"))? {
        keys.flag("rope.scaling.yarn_truncate", truncate);
    }
    Ok(())
}

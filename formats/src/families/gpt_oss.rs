//! gpt-oss: every other layer has a window, attention can attend to nothing (a sink per head), and everything has a bias.
//!
//! Gates and up-projections of all experts are one tensor in which they alternate; unless it is in MXFP4, the tensor is
//! stored for a product from the left, [experts, in, out].

use std::ops::Range;

use super::builder::{Builder, Dim, Module, RotaryOrder, same};
use super::common::{self, Attention};
use super::{Family, Keys, windows};
use crate::config::{ModelConfig, Moe};
use crate::error::Result;
use crate::output::{Class, Content, Map, Part};
use crate::tensor::TensorId;

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
    let gates = Module { source: "", mlx: "mlp.experts.gate_proj", gguf: "ffn_gate_exps" };
    let ups = Module { source: "", mlx: "mlp.experts.up_proj", gguf: "ffn_up_exps" };
    let downs = Module { source: "", mlx: "mlp.experts.down_proj", gguf: "ffn_down_exps" };
    let (gate, up, down) = (Class::ExpertGate, Class::ExpertUp, Class::ExpertDown);
    let (n, h, i) = (experts.0, hidden.0, inner.0);
    if b.source_is_mlx() {
        for (class, module, rows, columns) in
            [(gate, gates, inner, hidden), (up, ups, inner, hidden), (down, downs, hidden, inner)]
        {
            b.stacked(class, module, [experts, rows, columns])?;
            let source = b.take(&format!("{}.bias", module.mlx), &[experts, rows])?;
            bias(b, module, source, rows.0, 0..n, Map::Identity);
        }
        return Ok(());
    }
    if b.has("mlp.experts.gate_up_proj_blocks") {
        let gate_up = b.take("mlp.experts.gate_up_proj_blocks", &[experts, both, hidden])?;
        let back = b.take("mlp.experts.down_proj_blocks", &[experts, hidden, inner])?;
        b.per_head(gate, gates, gate_up, n, 2 * i, 0..2 * i, h, Map::EvenRows);
        b.per_head(up, ups, gate_up, n, 2 * i, 0..2 * i, h, Map::OddRows);
        b.per_head(down, downs, back, n, h, 0..h, i, Map::Identity);
    } else {
        let gate_up = b.take("mlp.experts.gate_up_proj", &[experts, hidden, both])?;
        let back = b.take("mlp.experts.down_proj", &[experts, inner, hidden])?;
        b.per_head(gate, gates, gate_up, n, h, 0..h, 2 * i, Map::EvenColumns);
        b.per_head(up, ups, gate_up, n, h, 0..h, 2 * i, Map::OddColumns);
        b.per_head(down, downs, back, n, i, 0..i, h, Map::Transpose);
    }

    let gate_up_bias = b.take("mlp.experts.gate_up_proj_bias", &[experts, both])?;
    let down_bias = b.take("mlp.experts.down_proj_bias", &[experts, hidden])?;
    bias(b, gates, gate_up_bias, 1, 0..n * 2 * i, Map::EvenRows);
    bias(b, ups, gate_up_bias, 1, 0..n * 2 * i, Map::OddRows);
    bias(b, downs, down_bias, h, 0..n, Map::Identity);
    Ok(())
}

/// The biases of all experts, [experts, width], out of `rows` of `columns` values.
fn bias(b: &mut Builder, module: Module, source: TensorId, columns: u64, rows: Range<u64>, map: Map) {
    let part = Part { source, columns, rows, map };
    let experts = b.config.moe.as_ref().map_or(1, |moe| moe.experts);
    let name = b.name(module, ".bias", false);
    b.push(name, Class::Vector, false, &[experts, part.weights() / experts], Content::Parts(vec![part]));
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

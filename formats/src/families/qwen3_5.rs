//! Qwen 3.5, dense and with experts: in three of four layers gated delta networks (<https://arxiv.org/abs/2412.06464>) in the
//! place of attention, whose own output is gated in the others.
//!
//! A delta network may have several value heads for each key head. The checkpoint has them grouped by key head; llama.cpp's
//! graph takes value head i with key head i modulo their number, so that GGUF has the first of every group, then the second of
//! every group, and so on. Norms but the gated one multiply by 1 + gain, of which both targets have the sum.

use super::builder::{Builder, Dim, Module, same};
use super::{Family, Keys, Target, common};
use crate::config::{ModelConfig, Moe};
use crate::error::Result;
use crate::output::{Class, Content, Map, Part};
use crate::tensor::TensorId;

/// The configuration of the language model alone, and the one around it of the model that sees.
pub(super) const QWEN3_5_TEXT: Family = family("qwen3_5_text", "qwen35");
pub(super) const QWEN3_5: Family = family("qwen3_5", "qwen35");
pub(super) const QWEN3_5_MOE_TEXT: Family = family("qwen3_5_moe_text", "qwen35moe");
pub(super) const QWEN3_5_MOE: Family = family("qwen3_5_moe", "qwen35moe");

const fn family(model_type: &'static str, arch: &'static str) -> Family {
    Family { model_type, arch, tensors, metadata }
}

/// Sizes of a delta network.
struct Delta {
    key_heads: u64,
    value_heads: u64,
    key: u64,
    value: u64,
    taps: u64,
}

impl Delta {
    fn read(config: &ModelConfig) -> Result<Delta> {
        let size = |key| config.keys.size(key);
        let delta = Delta {
            key_heads: size("linear_num_key_heads")?,
            value_heads: size("linear_num_value_heads")?,
            key: size("linear_key_head_dim")?,
            value: size("linear_value_head_dim")?,
            taps: size("linear_conv_kernel_dim")?,
        };
        if !delta.value_heads.is_multiple_of(delta.key_heads) {
            let problem = format!("is {}, no multiple of {} key heads", delta.value_heads, delta.key_heads);
            return Err(config.error("linear_num_value_heads", problem));
        }
        Ok(delta)
    }

    /// Rows of all queries, or of all keys.
    fn keys(&self) -> u64 {
        self.key_heads * self.key
    }

    fn values(&self) -> Dim {
        Dim(self.value_heads * self.value, "linear_num_value_heads · linear_value_head_dim")
    }

    fn mixed(&self) -> Dim {
        Dim(2 * self.keys() + self.values().0, "rows of queries, keys and values")
    }

    fn is_reordered(&self, target: Target) -> bool {
        target == Target::Gguf && self.value_heads != self.key_heads
    }

    /// The value heads, `rows` rows each from row `first` of a tensor on, in the target's order.
    fn heads(
        &self,
        target: Target,
        source: TensorId,
        columns: u64,
        first: u64,
        rows: u64,
        map: Map,
    ) -> Vec<Part> {
        let part = |rows| Part { source, columns, rows, map };
        if !self.is_reordered(target) {
            return vec![part(first..first + self.value_heads * rows)];
        }
        let per_group = self.value_heads / self.key_heads;
        let tiled = (0..per_group).flat_map(|i| (0..self.key_heads).map(move |group| group * per_group + i));
        tiled.map(|head| part(first + head * rows..first + (head + 1) * rows)).collect()
    }
}

/// Every n-th layer has attention.
fn interval(config: &ModelConfig) -> Result<u64> {
    let Some(types) = config.keys.texts("layer_types")? else {
        return Ok(config.keys.optional_size("full_attention_interval")?.unwrap_or(4));
    };
    let full: Vec<bool> = types.iter().map(|kind| kind == "full_attention").collect();
    let interval = full.iter().position(|&full| full).map_or(full.len(), |first| first + 1);
    if (1..).zip(&full).any(|(n, &full)| full != usize::is_multiple_of(n, interval)) {
        let problem = format!("is {types:?}: llama.cpp and mlx-lm know attention in every n-th layer only");
        return Err(config.error("layer_types", problem));
    }
    Ok(interval as u64)
}

fn shared_inner(config: &ModelConfig) -> Result<Dim> {
    let key = "shared_expert_intermediate_size";
    Ok(Dim(config.keys.size(key)?, key))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let (config, hidden) = (b.config, b.config.hidden_dim());
    let (delta, interval) = (Delta::read(config)?, interval(config)?);
    if b.target == Target::Gguf && delta.key != delta.value {
        let problem = format!("is {}, of keys {}: llama.cpp has one width for both", delta.value, delta.key);
        return Err(config.error("linear_value_head_dim", problem));
    }
    b.mlx_root = "language_model.";
    if !b.source_is_mlx() {
        b.norms = Map::PlusOne;
    }
    common::model(b, |b, layer| {
        b.norm(same("input_layernorm", "attn_norm"), hidden)?;
        if (u64::from(layer) + 1).is_multiple_of(interval) {
            attention(b)?;
        } else {
            delta_network(b, &delta)?;
        }
        b.norm(same("post_attention_layernorm", "post_attention_norm"), hidden)?;
        match &config.moe {
            Some(moe) => mixture(b, moe),
            None => common::mlp(b),
        }
    })
}

/// Each query head is followed by the gate of its output.
fn attention(b: &mut Builder) -> Result<()> {
    let (config, hidden, head) = (b.config, b.config.hidden_dim(), Dim(b.config.head_dim, "head_dim"));
    let (q, kv) = (config.query_dim(), config.key_dim());
    let gated = Dim(2 * q.0, "2 · num_attention_heads · head_dim");
    b.linear(Class::AttnQ, same("self_attn.q_proj", "attn_q"), gated, hidden)?;
    b.linear(Class::AttnK, same("self_attn.k_proj", "attn_k"), kv, hidden)?;
    b.linear(Class::AttnV, same("self_attn.v_proj", "attn_v"), kv, hidden)?;
    b.norm(same("self_attn.q_norm", "attn_q_norm"), head)?;
    b.norm(same("self_attn.k_norm", "attn_k_norm"), head)?;
    b.linear(Class::AttnOutput, same("self_attn.o_proj", "attn_output"), hidden, q)
}

fn delta_network(b: &mut Builder, delta: &Delta) -> Result<()> {
    let (target, hidden) = (b.target, b.config.hidden_dim());
    let heads = Dim(delta.value_heads, "linear_num_value_heads");
    let (mixed, values) = (delta.mixed(), delta.values());
    let before_values = 2 * delta.keys();

    let qkv = b.take("linear_attn.in_proj_qkv.weight", &[mixed, hidden])?;
    let mut parts = vec![Part { source: qkv, columns: hidden.0, rows: 0..before_values, map: Map::Identity }];
    parts.extend(delta.heads(target, qkv, hidden.0, before_values, delta.value, Map::Identity));
    let name = b.name(same("linear_attn.in_proj_qkv", "attn_qkv"), ".weight", true);
    b.push(name, Class::AttnQkv, true, &[mixed.0, hidden.0], Content::Parts(parts));
    for (source, gguf, rows, of_head) in [
        ("linear_attn.in_proj_z", "attn_gate", values, delta.value),
        ("linear_attn.in_proj_b", "ssm_beta", heads, 1),
        ("linear_attn.in_proj_a", "ssm_alpha", heads, 1),
    ] {
        let id = b.take(&format!("{source}.weight"), &[rows, hidden])?;
        let parts = delta.heads(target, id, hidden.0, 0, of_head, Map::Identity);
        let name = b.name(same(source, gguf), ".weight", true);
        b.push(name, Class::Other, true, &[rows.0, hidden.0], Content::Parts(parts));
    }
    convolution(b, delta)?;

    let decay = if target == Target::Gguf { Map::NegExp } else { Map::Identity };
    for (source, gguf, class, map) in [
        ("linear_attn.A_log", "ssm_a", Class::Decay, decay),
        ("linear_attn.dt_bias", "ssm_dt.bias", Class::Vector, Map::Identity),
    ] {
        let id = b.take(source, &[heads])?;
        let name = b.name(same(source, gguf), "", false);
        b.push(name, class, false, &[heads.0], Content::Parts(delta.heads(target, id, 1, 0, 1, map)));
    }
    // The gated norm: its gain is what it multiplies by.
    let norm = b.name(same("linear_attn.norm", "ssm_norm"), ".weight", false);
    b.vector(
        "linear_attn.norm.weight",
        norm,
        Class::Vector,
        Dim(delta.value, "linear_value_head_dim"),
        None,
    )?;

    let out = b.take("linear_attn.out_proj.weight", &[hidden, values])?;
    let map = match delta.is_reordered(target) {
        true => Map::DealColumns { groups: delta.key_heads as u32, width: delta.value as u32 },
        false => Map::Identity,
    };
    let parts = vec![Part { source: out, columns: values.0, rows: 0..hidden.0, map }];
    let name = b.name(same("linear_attn.out_proj", "ssm_out"), ".weight", true);
    b.push(name, Class::Other, true, &[hidden.0, values.0], Content::Parts(parts));
    Ok(())
}

/// One filter for each channel: [channels, 1, taps] in the checkpoint, [channels, taps] in GGUF, [channels, taps, 1] in MLX. The
/// elements lie alike in all.
fn convolution(b: &mut Builder, delta: &Delta) -> Result<()> {
    let (channels, one, taps) = (delta.mixed(), Dim(1, "1"), Dim(delta.taps, "linear_conv_kernel_dim"));
    let shape = if b.source_is_mlx() { [channels, taps, one] } else { [channels, one, taps] };
    let source = b.take("linear_attn.conv1d.weight", &shape)?;
    let name = b.name(same("linear_attn.conv1d", "ssm_conv1d"), ".weight", false);
    let before_values = 2 * delta.keys() * taps.0;
    let mut parts = vec![Part { source, columns: 1, rows: 0..before_values, map: Map::Identity }];
    parts.extend(delta.heads(b.target, source, 1, before_values, delta.value * taps.0, Map::Identity));
    let shape = match b.target {
        Target::Gguf => vec![channels.0, taps.0],
        Target::Mlx => vec![channels.0, taps.0, 1],
    };
    b.push(name, Class::Vector, false, &shape, Content::Parts(parts));
    Ok(())
}

/// Experts, and one for all tokens that is scaled for each.
fn mixture(b: &mut Builder, moe: &Moe) -> Result<()> {
    let (config, hidden) = (b.config, b.config.hidden_dim());
    b.router(same("mlp.gate", "ffn_gate_inp"), Dim(moe.experts, "num_experts"), hidden, true)?;
    common::experts(b, moe)?;
    let inner = shared_inner(config)?;
    b.linear(Class::SharedGate, same("mlp.shared_expert.gate_proj", "ffn_gate_shexp"), inner, hidden)?;
    b.linear(Class::SharedUp, same("mlp.shared_expert.up_proj", "ffn_up_shexp"), inner, hidden)?;
    b.linear(Class::SharedDown, same("mlp.shared_expert.down_proj", "ffn_down_shexp"), hidden, inner)?;

    let gate = Module {
        source: "mlp.shared_expert_gate",
        mlx: "mlp.shared_expert_gate",
        gguf: "ffn_gate_inp_shexp",
    };
    let id = b.take("mlp.shared_expert_gate.weight", &[Dim(1, "1"), hidden])?;
    let is_matrix = b.target == Target::Mlx;
    let shape = if is_matrix { vec![1, hidden.0] } else { vec![hidden.0] };
    let parts = vec![Part { source: id, columns: hidden.0, rows: 0..1, map: Map::Identity }];
    b.push(b.name(gate, ".weight", is_matrix), Class::Router, is_matrix, &shape, Content::Parts(parts));
    Ok(())
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    let delta = Delta::read(config)?;
    common::metadata(config, keys)?;
    keys.count("full_attention_interval", interval(config)?)?;
    keys.count("ssm.conv_kernel", delta.taps)?;
    keys.count("ssm.state_size", delta.key)?;
    keys.count("ssm.group_count", delta.key_heads)?;
    keys.count("ssm.time_step_rank", delta.value_heads)?;
    keys.count("ssm.inner_size", delta.values().0)?;

    let partial = config.rope.partial.unwrap_or(0.25);
    keys.count("rope.dimension_count", (config.head_dim as f64 * partial) as u64)?;
    // Which frequencies turn with a picture's time, height and width: of text all are the token's number.
    let rope = match config.keys.object("rope_parameters")? {
        Some(rope) => Some(rope),
        None => config.keys.object("rope_scaling")?,
    };
    let sections = match rope {
        Some(rope) => rope.integers("mrope_section")?,
        None => None,
    };
    let mut sections: Vec<i32> =
        sections.unwrap_or_else(|| vec![11, 11, 10]).into_iter().map(|n| n as i32).collect();
    sections.resize(4, 0);
    keys.set("rope.dimension_sections", sections);
    if let Some(moe) = &config.moe {
        keys.count("expert_feed_forward_length", moe.intermediate)?;
        keys.count("expert_shared_feed_forward_length", shared_inner(config)?.0)?;
    }
    Ok(())
}

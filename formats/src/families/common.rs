//! What the families share: embedding and head, the attention and MLPs of the llama line, and their metadata.

use super::builder::{Builder, Dim, Module, RotaryOrder, same};
use super::{Keys, Target};
use crate::config::{ModelConfig, Moe, RopeScaling, Scoring};
use crate::error::{Error, Result};
use crate::output::{Class, Content, Map};

impl ModelConfig {
    pub(super) fn hidden_dim(&self) -> Dim {
        Dim(self.hidden, "hidden_size")
    }

    pub(super) fn query_dim(&self) -> Dim {
        Dim(self.heads * self.head_dim, "num_attention_heads · head_dim")
    }

    pub(super) fn key_dim(&self) -> Dim {
        Dim(self.kv_heads * self.head_dim, "num_key_value_heads · head_dim")
    }

    /// The rotated dimensions of a head, for a family that rotates the share `default` where the file doesn't say.
    pub(super) fn rotary_width(&self, default: f64) -> u64 {
        // The same truncation as in transformers and in llama.cpp's converter.
        (self.head_dim as f64 * self.rope.partial.unwrap_or(default)) as u64
    }
}

/// Embedding, then `block` for each layer, then the final norm and the head.
pub(super) fn model(b: &mut Builder, block: impl Fn(&mut Builder, u32) -> Result<()>) -> Result<()> {
    let (hidden, vocab) = (b.config.hidden_dim(), Dim(b.config.vocab, "vocab_size"));
    b.linear(Class::Embedding, same("model.embed_tokens", "token_embd"), vocab, hidden)?;
    rope_freqs(b);
    for layer in 0..b.config.layers {
        b.enter(Some(layer));
        block(b, layer)?;
    }
    b.enter(None);
    b.norm(same("model.norm", "output_norm"), hidden)?;
    let tied = b.config.tie.unwrap_or(!b.has("lm_head.weight"));
    if !tied {
        b.linear(Class::Output, same("lm_head", "output"), vocab, hidden)?;
    }
    Ok(())
}

/// GGUF states Llama 3's and LongRoPE's scaling as a divisor for each rotary frequency.
fn rope_freqs(b: &mut Builder) {
    if b.target != Target::Gguf {
        return;
    }
    let config = b.config;
    let mut push = |name: &str, values: Vec<f32>| {
        b.push(name.into(), Class::Vector, false, &[values.len() as u64], Content::Values(values));
    };
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = config.rope.scaling
    else {
        if let RopeScaling::LongRope { short, long, .. } = &config.rope.scaling {
            push("rope_factors_long.weight", long.iter().map(|&factor| factor as f32).collect());
            push("rope_factors_short.weight", short.iter().map(|&factor| factor as f32).collect());
        }
        return;
    };
    let (theta, width, original) = (config.rope.theta, config.head_dim, original as f64);
    let divisor = |i: u64| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / width as f64);
        let turns = original / wavelength;
        if turns > high_freq_factor {
            return 1.0;
        } else if turns < low_freq_factor {
            return factor as f32;
        }
        let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    push("rope_freqs.weight", (0..width / 2).map(divisor).collect());
}

/// What attention has besides its four projections.
pub(super) struct Attention {
    pub order: RotaryOrder,
    /// Queries, keys and values must have a bias (others may).
    pub bias: bool,
    /// Queries and keys are normed per head.
    pub qk_norm: bool,
}

/// Norm and grouped-query attention.
pub(super) fn attention(b: &mut Builder, options: &Attention) -> Result<()> {
    attention_norm(b)?;
    projections(b, options)
}

/// The norm before attention.
pub(super) fn attention_norm(b: &mut Builder) -> Result<()> {
    let hidden = b.config.hidden_dim();
    b.norm(same("input_layernorm", "attn_norm"), hidden)
}

/// Grouped-query attention without a norm before it.
pub(super) fn projections(b: &mut Builder, options: &Attention) -> Result<()> {
    let config = b.config;
    let (hidden, q, kv) = (config.hidden_dim(), config.query_dim(), config.key_dim());
    for name in ["q_proj", "k_proj", "v_proj"] {
        let bias = format!("self_attn.{name}.bias");
        if options.bias && !b.has(&bias) {
            let hint = format!("{} has it in every layer; is a shard missing?", config.model_type);
            return Err(Error::MissingTensor { name: bias, hint });
        }
    }
    b.rotary(Class::AttnQ, same("self_attn.q_proj", "attn_q"), config.heads, q, hidden, options.order)?;
    b.rotary(Class::AttnK, same("self_attn.k_proj", "attn_k"), config.kv_heads, kv, hidden, options.order)?;
    b.linear(Class::AttnV, same("self_attn.v_proj", "attn_v"), kv, hidden)?;
    if options.qk_norm {
        let head = Dim(config.head_dim, "head_dim");
        b.norm(same("self_attn.q_norm", "attn_q_norm"), head)?;
        b.norm(same("self_attn.k_norm", "attn_k_norm"), head)?;
    }
    b.linear(Class::AttnOutput, same("self_attn.o_proj", "attn_output"), hidden, q)
}

/// Norms of queries and keys over all heads together.
pub(super) fn whole_qk_norm(b: &mut Builder) -> Result<()> {
    let (q, kv) = (b.config.query_dim(), b.config.key_dim());
    b.norm(same("self_attn.q_norm", "attn_q_norm"), q)?;
    b.norm(same("self_attn.k_norm", "attn_k_norm"), kv)
}

/// Grouped-query attention whose queries, keys and values are the rows of one matrix, and its norm.
pub(super) fn fused_attention(b: &mut Builder) -> Result<()> {
    let (hidden, q, kv) = (b.config.hidden_dim(), b.config.query_dim(), b.config.key_dim());
    let rows = Dim(q.0 + 2 * kv.0, "(num_attention_heads + 2 · num_key_value_heads) · head_dim");
    attention_norm(b)?;
    b.linear(Class::AttnQkv, same("self_attn.qkv_proj", "attn_qkv"), rows, hidden)?;
    b.linear(Class::AttnOutput, same("self_attn.o_proj", "attn_output"), hidden, q)
}

/// A dense MLP with a gate; its norm comes before.
pub(super) fn mlp(b: &mut Builder) -> Result<()> {
    let (hidden, inner) = (b.config.hidden_dim(), Dim(b.config.intermediate, "intermediate_size"));
    b.linear(Class::FfnGate, same("mlp.gate_proj", "ffn_gate"), inner, hidden)?;
    b.linear(Class::FfnUp, same("mlp.up_proj", "ffn_up"), inner, hidden)?;
    b.linear(Class::FfnDown, same("mlp.down_proj", "ffn_down"), hidden, inner)
}

/// The norm before the MLP.
pub(super) fn mlp_norm(b: &mut Builder) -> Result<()> {
    let hidden = b.config.hidden_dim();
    b.norm(same("post_attention_layernorm", "ffn_norm"), hidden)
}

/// The keys that every architecture has.
pub(super) fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    keys.count("block_count", config.layers.into())?;
    if let Some(positions) = config.max_positions {
        keys.count("context_length", positions)?;
    }
    keys.count("embedding_length", config.hidden)?;
    keys.count("feed_forward_length", config.intermediate)?;
    keys.count("attention.head_count", config.heads)?;
    keys.count("attention.head_count_kv", config.kv_heads)?;
    keys.count("attention.key_length", config.head_dim)?;
    keys.count("attention.value_length", config.head_dim)?;
    keys.number("attention.layer_norm_rms_epsilon", config.rms_eps);
    keys.count("vocab_size", config.vocab)?;
    rope(config, keys)?;
    if let Some(moe) = &config.moe {
        keys.count("expert_count", moe.experts)?;
        keys.count("expert_used_count", moe.per_token)?;
        if let (Some(groups), Some(used)) = (moe.groups, moe.groups_used) {
            keys.count("expert_group_count", groups)?;
            keys.count("expert_group_used_count", used)?;
        }
        if let Some(scoring) = moe.scoring {
            gating(scoring, keys)?;
        }
    }
    Ok(())
}

/// llama.cpp's `llama_expert_gating_func_type`.
pub(super) fn gating(scoring: Scoring, keys: &mut Keys) -> Result<()> {
    keys.count(
        "expert_gating_func",
        match scoring {
            Scoring::Softmax => 1,
            Scoring::Sigmoid => 2,
        },
    )
}

fn rope(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    keys.number("rope.freq_base", config.rope.theta);
    match config.rope.scaling {
        // The latter two are tensors: see `rope_freqs`, and Gemma 4.
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Proportional { .. } => {}
        // Tensors as well, but only one architecture's graph takes them.
        RopeScaling::LongRope { original, attention_factor, .. } if keys.arch == "phi3" => {
            keys.count("rope.scaling.original_context_length", original)?;
            keys.number("rope.scaling.attn_factor", attention_factor);
        }
        RopeScaling::LongRope { .. } => {
            let problem = format!("is `longrope`, which llama.cpp's {} can't run", keys.arch);
            return Err(config.error("rope scaling's type", problem));
        }
        RopeScaling::Linear { factor } => {
            keys.text("rope.scaling.type", "linear");
            keys.number("rope.scaling.factor", factor);
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, .. } => {
            keys.text("rope.scaling.type", "yarn");
            keys.number("rope.scaling.factor", factor);
            keys.count("rope.scaling.original_context_length", original)?;
            let optional = [("attn", attention_factor), ("beta_fast", beta_fast), ("beta_slow", beta_slow)];
            for (name, value) in optional {
                if let Some(value) = value {
                    let name = if name == "attn" { "attn_factor" } else { name };
                    keys.number(&format!("rope.scaling.yarn_{name}"), value);
                }
            }
        }
    }
    Ok(())
}

/// What a router adds to its scores before choosing.
pub(super) fn router_bias(b: &mut Builder, source: &str, experts: Dim) -> Result<()> {
    let name = b.name(Module { source, mlx: source, gguf: "exp_probs_b.bias" }, "", false);
    b.vector(source, name, Class::RouterBias, experts, None)
}

/// The experts of a layer, stacked in both targets. In the checkpoint they are one matrix each or stacked too.
pub(super) fn experts(b: &mut Builder, moe: &Moe) -> Result<()> {
    if b.has("mlp.experts.gate_up_proj") {
        return stacked_experts(b, moe);
    }
    let (hidden, inner) = (b.config.hidden_dim(), Dim(moe.intermediate, "moe_intermediate_size"));
    for (class, source, mlx, gguf, rows, columns) in [
        (Class::ExpertGate, "gate_proj", "mlp.switch_mlp.gate_proj", "ffn_gate_exps", inner, hidden),
        (Class::ExpertUp, "up_proj", "mlp.switch_mlp.up_proj", "ffn_up_exps", inner, hidden),
        (Class::ExpertDown, "down_proj", "mlp.switch_mlp.down_proj", "ffn_down_exps", hidden, inner),
    ] {
        let one = |expert| format!("mlp.experts.{expert}.{source}");
        b.experts(class, one, Module { source, mlx, gguf }, moe.experts, rows, columns)?;
    }
    Ok(())
}

/// `gate_up_proj` [experts, 2 · inner, hidden], in each expert first the gate's rows, then the others, and `down_proj`
/// [experts, hidden, inner].
fn stacked_experts(b: &mut Builder, moe: &Moe) -> Result<()> {
    let (experts, hidden) = (Dim(moe.experts, "number of experts"), b.config.hidden_dim());
    let inner = moe.intermediate;
    let two = Dim(2 * inner, "2 · moe_intermediate_size");
    let gate_up = b.take("mlp.experts.gate_up_proj", &[experts, two, hidden])?;
    let down = b.take("mlp.experts.down_proj", &[experts, hidden, Dim(inner, "moe_intermediate_size")])?;
    for (class, mlx, gguf, source, rows, of, columns) in [
        (Class::ExpertGate, "mlp.switch_mlp.gate_proj", "ffn_gate_exps", gate_up, 0..inner, two.0, hidden.0),
        (Class::ExpertUp, "mlp.switch_mlp.up_proj", "ffn_up_exps", gate_up, inner..two.0, two.0, hidden.0),
        (Class::ExpertDown, "mlp.switch_mlp.down_proj", "ffn_down_exps", down, 0..hidden.0, hidden.0, inner),
    ] {
        let module = Module { source: "", mlx, gguf };
        b.per_head(class, module, source, experts.0, of, rows, columns, Map::Identity);
    }
    Ok(())
}

//! Gemma 4: layers with full attention have larger heads, of which few frequencies turn, and may use their keys as values;
//! the last layers may share the keys and values of earlier ones; small models add an embedding of the token in each layer,
//! large ones have experts beside the MLP.

use super::builder::{Builder, Dim, Module, RotaryOrder, same};
use super::{Family, Keys, Target, common, gemma, gemma3, windows};
use crate::config::{ModelConfig, Moe, RopeScaling};
use crate::error::Result;
use crate::output::{Class, Content, Map};

pub(super) const GEMMA4: Family = Family { model_type: "gemma4_text", arch: "gemma4", tensors, metadata };

/// What differs from layer to layer.
#[derive(Clone, Copy)]
struct Layer {
    /// Attention has a window.
    window: bool,
    head_dim: u64,
    kv_heads: u64,
    /// Keys and values are those of an earlier layer.
    shared: bool,
    /// Values are the keys before their norm.
    keys_are_values: bool,
    intermediate: u64,
}

fn layers(config: &ModelConfig) -> Result<Vec<Layer>> {
    let keys = &config.keys;
    let own = keys.object("per_layer_config")?;
    let keys_are_values = keys.flag("attention_k_eq_v")?.unwrap_or(false);
    let shared = keys.integer("num_kv_shared_layers", 0)?.unwrap_or(0);
    let first_shared = u64::from(config.layers).saturating_sub(shared);
    let wide = keys.flag("use_double_wide_mlp")?.unwrap_or(false);
    // Older files say the same for all layers with full attention.
    let full_head = keys.optional_size("global_head_dim")?.unwrap_or(512);
    let full_kv = keys.optional_size("num_global_key_value_heads")?.filter(|_| keys_are_values);
    let layer = |(i, window): (usize, bool)| {
        let mut layer = Layer {
            window,
            head_dim: config.head_dim,
            kv_heads: config.kv_heads,
            shared: i as u64 >= first_shared,
            keys_are_values: keys_are_values && !window,
            intermediate: config.intermediate,
        };
        if layer.shared && wide {
            layer.intermediate *= 2;
        }
        if let Some(own) = &own {
            if let Some(own) = own.object(&i.to_string())? {
                layer.head_dim = own.optional_size("head_dim")?.unwrap_or(layer.head_dim);
                layer.kv_heads = own.optional_size("num_key_value_heads")?.unwrap_or(layer.kv_heads);
            }
        } else if !window {
            layer.head_dim = full_head;
            layer.kv_heads = full_kv.unwrap_or(layer.kv_heads);
        }
        Ok(layer)
    };
    windows::windows(config, 6)?.into_iter().enumerate().map(layer).collect()
}

/// Width of the embedding that each layer adds, if it does.
fn per_layer_width(config: &ModelConfig) -> Result<u64> {
    Ok(config.keys.integer("hidden_size_per_layer_input", 0)?.unwrap_or(0))
}

fn moe(config: &ModelConfig) -> Result<Option<&Moe>> {
    match config.keys.flag("enable_moe_block")? {
        Some(true) => config.moe.as_ref().map(Some).ok_or_else(|| config.error("num_experts", "is missing")),
        _ => Ok(None),
    }
}

fn tensors(b: &mut Builder) -> Result<()> {
    let config = b.config;
    let (layers, width, moe) = (layers(config)?, per_layer_width(config)?, moe(config)?);
    rope_freqs(b, &layers);
    if width > 0 {
        per_layer_embedding(b, width)?;
    }
    common::model(b, |b, i| {
        let layer = &layers[i as usize];
        attention(b, layer)?;
        gemma::norms(b)?;
        let (hidden, inner) = (config.hidden_dim(), Dim(layer.intermediate, "intermediate_size"));
        b.linear(Class::FfnGate, same("mlp.gate_proj", "ffn_gate"), inner, hidden)?;
        b.linear(Class::FfnUp, same("mlp.up_proj", "ffn_up"), inner, hidden)?;
        b.linear(Class::FfnDown, same("mlp.down_proj", "ffn_down"), hidden, inner)?;
        if let Some(moe) = moe {
            mixture(b, moe)?;
        }
        if width > 0 {
            let width = Dim(width, "hidden_size_per_layer_input");
            b.linear(Class::Other, same("per_layer_input_gate", "inp_gate"), width, hidden)?;
            b.linear(Class::Other, same("per_layer_projection", "proj"), hidden, width)?;
            b.norm(same("post_per_layer_input_norm", "post_norm"), hidden)?;
        }
        let scalar =
            Module { source: "layer_scalar", mlx: "layer_scalar", gguf: "layer_output_scale.weight" };
        b.vector(scalar.source, b.name(scalar, "", false), Class::Vector, Dim(1, "one"), None)
    })
}

/// GGUF states that the last frequencies of a head don't turn by divisors beyond all bounds, for the layers with full attention.
fn rope_freqs(b: &mut Builder, layers: &[Layer]) {
    let RopeScaling::Proportional { factor } = b.config.rope.scaling else { return };
    let Some(layer) = layers.iter().find(|layer| !layer.window) else { return };
    if b.target == Target::Gguf {
        let turning = (b.config.rope.partial.unwrap_or(1.0) * layer.head_dim as f64 / 2.0) as u64;
        let divisor = |i| if i < turning { factor as f32 } else { 1e30 };
        let values: Vec<f32> = (0..layer.head_dim / 2).map(divisor).collect();
        let shape = [values.len() as u64];
        b.push("rope_freqs.weight".into(), Class::Vector, false, &shape, Content::Values(values));
    }
}

/// The tables of which each layer adds its part to the stream.
fn per_layer_embedding(b: &mut Builder, width: u64) -> Result<()> {
    let config = b.config;
    let vocab = config.keys.optional_size("vocab_size_per_layer_input")?.unwrap_or(config.vocab);
    if b.target == Target::Gguf && vocab != config.vocab {
        let problem = format!("is {vocab}, not vocab_size {}, as llama.cpp's gemma4 needs", config.vocab);
        return Err(config.error("vocab_size_per_layer_input", problem));
    }
    let vocab = Dim(vocab, "vocab_size_per_layer_input");
    let all = Dim(width * u64::from(config.layers), "num_hidden_layers · hidden_size_per_layer_input");
    let table = same("model.embed_tokens_per_layer", "per_layer_token_embd");
    b.linear(Class::Embedding, table, vocab, all)?;
    let projection = same("model.per_layer_model_projection", "per_layer_model_proj");
    b.unquantized_in_gguf(projection, all, config.hidden_dim())?;
    let norm = same("model.per_layer_projection_norm", "per_layer_proj_norm");
    b.norm(norm, Dim(width, "hidden_size_per_layer_input"))
}

fn attention(b: &mut Builder, layer: &Layer) -> Result<()> {
    let (config, hidden) = (b.config, b.config.hidden_dim());
    let head = Dim(layer.head_dim, "head_dim");
    let queries = Dim(config.heads * head.0, "num_attention_heads · head_dim");
    let keys = Dim(layer.kv_heads * head.0, "num_key_value_heads · head_dim");
    let order = RotaryOrder::Halves;
    b.norm(same("input_layernorm", "attn_norm"), hidden)?;
    b.rotary(Class::AttnQ, same("self_attn.q_proj", "attn_q"), config.heads, queries, hidden, order)?;
    b.norm(same("self_attn.q_norm", "attn_q_norm"), head)?;
    if layer.shared {
        for name in ["k_proj", "v_proj", "k_norm"] {
            b.skip(&format!("self_attn.{name}.weight"));
        }
    } else {
        b.rotary(Class::AttnK, same("self_attn.k_proj", "attn_k"), layer.kv_heads, keys, hidden, order)?;
        b.norm(same("self_attn.k_norm", "attn_k_norm"), head)?;
        if !layer.keys_are_values {
            b.linear(Class::AttnV, same("self_attn.v_proj", "attn_v"), keys, hidden)?;
        }
    }
    b.linear(Class::AttnOutput, same("self_attn.o_proj", "attn_output"), hidden, queries)
}

/// The experts beside the MLP, with norms of their own around them.
fn mixture(b: &mut Builder, moe: &Moe) -> Result<()> {
    let (hidden, inner) = (b.config.hidden_dim(), Dim(moe.intermediate, "moe_intermediate_size"));
    let (experts, both) = (Dim(moe.experts, "num_experts"), Dim(2 * inner.0, "2 · moe_intermediate_size"));
    b.norm(same("post_feedforward_layernorm_1", "post_ffw_norm_1"), hidden)?;
    b.norm(same("pre_feedforward_layernorm_2", "pre_ffw_norm_2"), hidden)?;
    b.norm(same("post_feedforward_layernorm_2", "post_ffw_norm_2"), hidden)?;
    b.router(same("router.proj", "ffn_gate_inp"), experts, hidden, true)?;
    let scale = Module { source: "router.scale", mlx: "router.scale", gguf: "ffn_gate_inp.scale" };
    b.vector(scale.source, b.name(scale, "", false), Class::Vector, hidden, None)?;
    let name = "router.per_expert_scale";
    let scale = Module { source: name, mlx: name, gguf: "ffn_down_exps.scale" };
    b.vector(scale.source, b.name(scale, "", false), Class::Vector, experts, None)?;

    // llama.cpp's converter keeps gates and up-projections in one tensor, but they needn't be.
    let fused = Module { source: "", mlx: "", gguf: "ffn_gate_up_exps" };
    let gates = Module { source: "", mlx: "experts.switch_glu.gate_proj", gguf: "ffn_gate_exps" };
    let ups = Module { source: "", mlx: "experts.switch_glu.up_proj", gguf: "ffn_up_exps" };
    let downs = Module { source: "", mlx: "experts.switch_glu.down_proj", gguf: "ffn_down_exps" };
    let (gate, up, down) = (Class::ExpertGate, Class::ExpertUp, Class::ExpertDown);
    if b.source_is_mlx() {
        b.stacked(gate, gates, [experts, inner, hidden])?;
        b.stacked(up, ups, [experts, inner, hidden])?;
        return b.stacked(down, downs, [experts, hidden, inner]);
    }
    let gate_up = b.take("experts.gate_up_proj", &[experts, both, hidden])?;
    let back = b.take("experts.down_proj", &[experts, hidden, inner])?;
    let (n, h, i) = (experts.0, hidden.0, inner.0);
    if b.target == Target::Gguf {
        b.per_head(gate, fused, gate_up, n, 2 * i, 0..2 * i, h, Map::Identity);
    } else {
        b.per_head(gate, gates, gate_up, n, 2 * i, 0..i, h, Map::Identity);
        b.per_head(up, ups, gate_up, n, 2 * i, i..2 * i, h, Map::Identity);
    }
    b.per_head(down, downs, back, n, h, 0..h, i, Map::Identity);
    Ok(())
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    let layers = layers(config)?;
    common::metadata(config, keys)?;
    keys.counts("attention.head_count_kv", layers.iter().map(|layer| layer.kv_heads))?;
    if layers.iter().any(|layer| layer.intermediate != config.intermediate) {
        keys.counts("feed_forward_length", layers.iter().map(|layer| layer.intermediate))?;
    }
    // llama.cpp knows two sizes of heads.
    for (window, suffix) in [(false, ""), (true, "_swa")] {
        let mut heads = layers.iter().filter(|layer| layer.window == window).map(|layer| layer.head_dim);
        let head = heads.next().unwrap_or(config.head_dim);
        if heads.any(|other| other != head) {
            return Err(config.error("per_layer_config", "has several head sizes for layers of one type"));
        }
        keys.count(&format!("attention.key_length{suffix}"), head)?;
        keys.count(&format!("attention.value_length{suffix}"), head)?;
        keys.count(&format!("rope.dimension_count{suffix}"), head)?;
    }
    let window = config.sliding_window.ok_or_else(|| config.error("sliding_window", "is missing"))?;
    keys.count("attention.sliding_window", window)?;
    keys.flags("attention.sliding_window_pattern", layers.iter().map(|layer| layer.window).collect());
    keys.count("attention.shared_kv_layers", layers.iter().filter(|layer| layer.shared).count() as u64)?;
    keys.count("embedding_length_per_layer_input", per_layer_width(config)?)?;
    keys.number("rope.freq_base_swa", gemma3::local_theta(config)?);
    // Without the key llama.cpp caps at 30.
    let cap = config.keys.number("final_logit_softcapping")?;
    keys.number("final_logit_softcapping", cap.unwrap_or(0.0));
    if let Some(moe) = moe(config)? {
        keys.count("expert_feed_forward_length", moe.intermediate)?;
    }
    Ok(())
}

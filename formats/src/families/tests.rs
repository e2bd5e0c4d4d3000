//! Plans over the headers of the fixtures and over invented checkpoints: names, shapes and parts, and what is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::order;
use crate::output::{Class, Content, Map, Part};
use crate::tensor::{Dtype, SourceFile, TensorId, TensorMeta};

/// [`super::plan`], of which every GGUF must be in order of execution.
fn plan(config: &ModelConfig, source: &dyn TensorSource, target: Target) -> Result<Vec<OutputTensor>> {
    let tensors = super::plan(config, source, target)?;
    if target == Target::Gguf {
        check_order(&tensors);
    }
    Ok(tensors)
}

/// Embedding, layer by layer attention and MLP or router, experts (together) and shared expert, then norm and head; and no name
/// is unknown to the sorting.
fn check_order(tensors: &[OutputTensor]) {
    if let Some(stray) = tensors.iter().find(|tensor| !order::is_known(tensor)) {
        panic!("{} has no place in the order", stray.name);
    }
    let stage = |tensor: &OutputTensor| match (tensor.layer, tensor.class) {
        (None, Class::Output) => Some((u32::MAX, 9)),
        (None, _) => (tensor.name == "output_norm.weight").then_some((u32::MAX, 8)).or(Some((0, 0))),
        (Some(layer), class) => {
            let part = match class {
                Class::FfnGate | Class::FfnUp | Class::FfnDown => 2,
                Class::Router if tensor.name.ends_with("ffn_gate_inp_shexp.weight") => 6,
                Class::Router | Class::RouterBias => 3,
                Class::ExpertGate | Class::ExpertUp | Class::ExpertDown => 4,
                Class::SharedGate | Class::SharedUp | Class::SharedDown => 5,
                // Norms are everywhere; of the rest only Gemma 4's projections come after the MLP.
                Class::Vector | Class::Other => return None,
                _ => 1,
            };
            Some((layer + 1, part))
        }
    };
    assert_eq!(tensors[0].class, Class::Embedding);
    let stages: Vec<_> = tensors.iter().filter_map(stage).collect();
    let names: Vec<_> = tensors.iter().map(|tensor| &tensor.name).collect();
    assert!(stages.is_sorted(), "{names:#?}");
    let blocks: Vec<_> = tensors.iter().filter_map(|tensor| tensor.layer).collect();
    assert!(blocks.is_sorted(), "{names:#?}");
    for class in [Class::ExpertDown, Class::FfnDown, Class::SharedDown] {
        for (at, down) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.class == class) {
            let before = &tensors[at - 1].name;
            assert!(before.contains("_up"), "{before} lies before {}", down.name);
        }
    }
}

mod llama_like;
mod mla;
mod qwen3_5;
mod windowed;

/// A source that has an index only.
struct Index {
    tensors: Vec<TensorMeta>,
    names: HashMap<String, TensorId>,
}

impl Index {
    fn new(list: impl IntoIterator<Item = (String, Vec<u64>)>) -> Index {
        let dtype = Dtype::Other { name: "BF16", bytes: 2 };
        let meta = |(name, shape)| TensorMeta { name, dtype, shape, file: 0, offset: 0, len: 0 };
        let tensors: Vec<_> = list.into_iter().map(meta).collect();
        let names = tensors.iter().enumerate().map(|(id, t)| (t.name.clone(), TensorId(id))).collect();
        Index { tensors, names }
    }

    /// From the headers of a fixture's safetensors files.
    fn fixture(name: &str) -> Index {
        let mut files: Vec<_> =
            std::fs::read_dir(fixture(name)).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        let mut list = Vec::new();
        for file in files {
            let bytes = std::fs::read(file).unwrap();
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&bytes[8..8 + len]).unwrap();
            for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
                list.push((name, serde_json::from_value(info["shape"].clone()).unwrap()));
            }
        }
        Index::new(list)
    }

    fn without(mut self, name: &str) -> Index {
        self.tensors.retain(|t| t.name != name);
        Index::new(self.tensors.into_iter().map(|t| (t.name, t.shape)))
    }

    fn with(self, name: &str, shape: &[u64]) -> Index {
        let rest = self.tensors.into_iter().filter(|t| t.name != name).map(|t| (t.name, t.shape));
        Index::new(rest.chain([(name.to_owned(), shape.to_vec())]))
    }
}

impl TensorSource for Index {
    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.names.get(name).copied()
    }

    fn files(&self) -> &[SourceFile] {
        &[]
    }

    fn read_at(&self, _: TensorId, _: u64, _: &mut [u8]) -> Result<()> {
        unreachable!("plans are made from headers")
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
}

fn config(name: &str) -> ModelConfig {
    ModelConfig::read(&fixture(name)).unwrap()
}

fn parse(text: &str) -> ModelConfig {
    ModelConfig::parse(Path::new("config.json"), text).unwrap()
}

fn get<'a>(tensors: &'a [OutputTensor], name: &str) -> &'a OutputTensor {
    tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn parts(tensor: &OutputTensor) -> &[Part] {
    match &tensor.content {
        Content::Parts(parts) => parts,
        Content::Values(_) => panic!("{} is computed", tensor.name),
    }
}

/// The checkpoint's tensors of a small model in the llama line, one block.
fn small(attention: &[(&str, &[u64])], mlp: &[(&str, &[u64])]) -> Index {
    let block = [("input_layernorm.weight", &[64][..]), ("post_attention_layernorm.weight", &[64])];
    let projections: [(&str, &[u64]); 4] = [
        ("self_attn.q_proj.weight", &[64, 64]),
        ("self_attn.k_proj.weight", &[32, 64]),
        ("self_attn.v_proj.weight", &[32, 64]),
        ("self_attn.o_proj.weight", &[64, 64]),
    ];
    let inner = block.iter().chain(&projections).chain(attention).chain(mlp);
    let inner = inner.map(|(name, shape)| (format!("model.layers.0.{name}"), shape.to_vec()));
    let outer = [("model.embed_tokens.weight", &[100, 64][..]), ("model.norm.weight", &[64])];
    Index::new(inner.chain(outer.map(|(name, shape)| (name.to_owned(), shape.to_vec()))))
}

const SMALL: &str = r#""hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 100"#;

#[test]
fn llama_in_gguf() {
    let tensors = plan(&config("tiny-llama"), &Index::fixture("tiny-llama"), Target::Gguf).unwrap();
    let names: Vec<_> = tensors.iter().map(|t| t.name.as_str()).collect();
    let first = ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight"];
    assert_eq!(names[..4], first);
    assert_eq!(names[4..6], ["blk.0.attn_v.weight", "blk.0.attn_output.weight"]);
    assert_eq!(names[names.len() - 2..], ["output_norm.weight", "output.weight"]);
    assert_eq!(tensors.len(), 4 * 9 + 3);

    let k = get(&tensors, "blk.1.attn_k.weight");
    assert_eq!((k.shape.as_slice(), k.class, k.layer), (&[128, 256][..], Class::AttnK, Some(1)));
    let heads: Vec<_> = parts(k).iter().map(|p| (p.rows.clone(), p.map, p.columns)).collect();
    assert_eq!(heads, [(0..64, Map::InterleaveHalves, 256), (64..128, Map::InterleaveHalves, 256)]);
    let v = get(&tensors, "blk.1.attn_v.weight");
    assert_eq!((parts(v)[0].rows.clone(), parts(v)[0].map), (0..128, Map::Identity));
    assert!(v.quantizable && !get(&tensors, "blk.1.ffn_norm.weight").quantizable);
}

#[test]
fn llama_in_mlx_keeps_names_and_order() {
    let tensors = plan(&config("tiny-llama"), &Index::fixture("tiny-llama"), Target::Mlx).unwrap();
    assert_eq!(tensors[0].name, "model.embed_tokens");
    assert_eq!(tensors[1].name, "model.layers.0.input_layernorm.weight");
    let q = get(&tensors, "model.layers.0.self_attn.q_proj");
    assert_eq!((parts(q).len(), parts(q)[0].map), (1, Map::Identity));
    assert_eq!(tensors.last().unwrap().name, "lm_head");
}

#[test]
fn deepseek_in_gguf() {
    let source = Index::fixture("tiny-deepseek");
    let tensors = plan(&config("tiny-deepseek"), &source, Target::Gguf).unwrap();
    assert!(tensors.iter().all(|t| !t.name.starts_with("blk.4.")), "the MTP layer is left out");

    let k = get(&tensors, "blk.0.attn_k_b.weight");
    assert_eq!((k.shape.as_slice(), k.class), (&[4, 256, 64][..], Class::AttnKB));
    assert_eq!((parts(k)[1].rows.clone(), parts(k)[1].map), (128..192, Map::Transpose));
    let v = get(&tensors, "blk.0.attn_v_b.weight");
    assert_eq!(
        (v.shape.as_slice(), parts(v)[1].rows.clone(), parts(v)[1].map),
        (&[4, 64, 256][..], 192..256, Map::Identity)
    );

    let gate = get(&tensors, "blk.1.ffn_gate_exps.weight");
    assert_eq!((gate.shape.as_slice(), parts(gate).len()), (&[16, 256, 256][..], 16));
    assert_eq!(source.meta(parts(gate)[7].source).name, "model.layers.1.mlp.experts.7.gate_proj.weight");
    let bias = get(&tensors, "blk.1.exp_probs_b.bias");
    assert_eq!((bias.class, bias.quantizable, bias.shape.as_slice()), (Class::RouterBias, false, &[16][..]));
    assert!(!get(&tensors, "blk.1.ffn_gate_inp.weight").quantizable);
    get(&tensors, "blk.3.ffn_down_shexp.weight");
    get(&tensors, "blk.0.ffn_down.weight");
}

#[test]
fn deepseek_in_mlx() {
    let tensors = plan(&config("tiny-deepseek"), &Index::fixture("tiny-deepseek"), Target::Mlx).unwrap();
    let shape = |name: &str| get(&tensors, name).shape.clone();
    assert_eq!(shape("model.layers.0.self_attn.embed_q"), [4, 256, 64]);
    assert_eq!(shape("model.layers.0.self_attn.unembed_out"), [4, 64, 256]);
    assert_eq!(shape("model.layers.1.mlp.switch_mlp.up_proj"), [16, 256, 256]);
    assert_eq!(shape("model.layers.1.mlp.gate.e_score_correction_bias"), [16]);
    // The gate is no Linear there: it can't be quantized, so its name is whole.
    assert!(!get(&tensors, "model.layers.1.mlp.gate.weight").quantizable);
    get(&tensors, "model.layers.1.mlp.shared_experts.down_proj");
}

#[test]
fn deepseek_metadata() {
    let metadata = gguf_metadata(&config("tiny-deepseek")).unwrap();
    let count = |key: &str| metadata.get(&format!("deepseek2.{key}")).and_then(Value::as_u64);
    for (key, value) in [
        ("block_count", 4),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 288),
        ("attention.value_length", 256),
        ("attention.key_length_mla", 96),
        ("attention.value_length_mla", 64),
        ("rope.dimension_count", 32),
        ("rope.scaling.original_context_length", 1024),
        ("leading_dense_block_count", 1),
        ("expert_count", 16),
        ("expert_used_count", 4),
        ("expert_group_count", 4),
        ("expert_group_used_count", 2),
        ("expert_gating_func", 2),
        ("expert_feed_forward_length", 256),
    ] {
        assert_eq!(count(key), Some(value), "{key}");
    }
    assert_eq!(metadata.get("general.architecture"), Some(&Value::from("deepseek2")));
    assert_eq!(metadata.get("deepseek2.rope.scaling.yarn_log_multiplier"), Some(&Value::F32(0.1)));
    assert_eq!(metadata.get("deepseek2.expert_weights_scale"), Some(&Value::F32(2.5)));
    assert_eq!(metadata.get("deepseek2.expert_weights_norm"), Some(&Value::Bool(true)));
}

/// Expected values: llama.cpp's converter on Llama 3.1 8B.
#[test]
fn llama3_scaling_becomes_a_tensor() {
    let config = parse(&format!(
        r#"{{"model_type": "llama", {SMALL}, "head_dim": 128, "rope_theta": 500000.0, "rope_scaling": {{
        "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}}}"#
    ));
    let mlp: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let source = small(&[], &mlp)
        .with("model.layers.0.self_attn.q_proj.weight", &[512, 64])
        .with("model.layers.0.self_attn.k_proj.weight", &[256, 64])
        .with("model.layers.0.self_attn.v_proj.weight", &[256, 64])
        .with("model.layers.0.self_attn.o_proj.weight", &[64, 512]);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    let Content::Values(values) = &get(&tensors, "rope_freqs.weight").content else { panic!("no values") };
    assert_eq!(values.len(), 64);
    for (i, expected) in
        [(0, 1.0f32), (28, 1.0), (29, 1.2074839), (30, 1.5534146), (34, 5.257327), (35, 8.0), (63, 8.0)]
    {
        assert!((values[i] - expected).abs() < 2e-6, "{i}: {} {expected}", values[i]);
    }
    let tensors = plan(&config, &source, Target::Mlx).unwrap();
    assert!(tensors.iter().all(|t| !t.name.contains("rope")), "mlx-lm computes it");
}

#[test]
fn qwen2_has_biases_and_ties() {
    let config = parse(&format!(r#"{{"model_type": "qwen2", {SMALL}, "tie_word_embeddings": true}}"#));
    let biases: [(&str, &[u64]); 3] = [
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
    ];
    let mlp: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let tensors = plan(&config, &small(&biases, &mlp), Target::Gguf).unwrap();
    assert_eq!(get(&tensors, "blk.0.attn_k.bias").shape, [32]);
    assert_eq!(parts(get(&tensors, "blk.0.attn_q.weight"))[0].map, Map::Identity);
    assert_eq!(tensors.last().unwrap().name, "output_norm.weight");
    // A stored head of a tied model is the embedding again.
    plan(&config, &small(&biases, &mlp).with("lm_head.weight", &[100, 64]), Target::Gguf).unwrap();
    let error = plan(&config, &small(&biases[1..], &mlp), Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("self_attn.q_proj.bias"), "{error}");
}

/// A language model inside of one that sees: both styles of names, and the encoder is left out.
#[test]
fn nested_models_are_found() {
    let mlp: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let config =
        parse(&format!(r#"{{"model_type": "outer", "text_config": {{"model_type": "llama", {SMALL}}}}}"#));
    for (model, head) in [("model.language_model.", ""), ("language_model.model.", "language_model.")] {
        let plain = small(&[], &mlp).with("lm_head.weight", &[100, 64]).tensors.into_iter();
        let nested = plain.map(|t| {
            let name = match t.name.strip_prefix("model.") {
                Some(rest) => format!("{model}{rest}"),
                None => format!("{head}{}", t.name),
            };
            (name, t.shape)
        });
        let source = Index::new(nested).with("model.visual.patch_embed.weight", &[8, 8]);
        let gguf = plan(&config, &source, Target::Gguf).unwrap();
        assert_eq!(
            source.meta(parts(get(&gguf, "output.weight"))[0].source).name,
            format!("{head}lm_head.weight")
        );
        let mlx = plan(&config, &source, Target::Mlx).unwrap();
        get(&mlx, "language_model.model.layers.0.self_attn.q_proj");
        get(&mlx, "language_model.model.norm.weight");
        get(&mlx, "language_model.lm_head");
        let error = plan(&config, &source.with(&format!("{model}adapter.weight"), &[4]), Target::Gguf);
        assert!(error.unwrap_err().to_string().contains("adapter.weight"));
    }
}

/// Llama with biases: their elements move as the rows do.
#[test]
fn biases_are_permuted_like_rows() {
    let config = parse(&format!(r#"{{"model_type": "llama", {SMALL}}}"#));
    let mlp: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let source = small(&[("self_attn.k_proj.bias", &[32])], &mlp);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    let found: Vec<_> = parts(get(&tensors, "blk.0.attn_k.bias"))
        .iter()
        .map(|p| (p.rows.clone(), p.columns, p.map))
        .collect();
    assert_eq!(found, [(0..16, 1, Map::InterleaveHalves), (16..32, 1, Map::InterleaveHalves)]);
}

#[test]
fn experts_of_mixtral_and_qwen3_moe_are_stacked() {
    let moe = r#""num_local_experts": 2, "num_experts_per_tok": 1"#;
    let mixtral: [(&str, &[u64]); 7] = [
        ("block_sparse_moe.gate.weight", &[2, 64]),
        ("block_sparse_moe.experts.0.w1.weight", &[96, 64]),
        ("block_sparse_moe.experts.0.w2.weight", &[64, 96]),
        ("block_sparse_moe.experts.0.w3.weight", &[96, 64]),
        ("block_sparse_moe.experts.1.w1.weight", &[96, 64]),
        ("block_sparse_moe.experts.1.w2.weight", &[64, 96]),
        ("block_sparse_moe.experts.1.w3.weight", &[96, 64]),
    ];
    let config = parse(&format!(r#"{{"model_type": "mixtral", {SMALL}, {moe}}}"#));
    let source = small(&[], &mixtral);
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    let down = get(&gguf, "blk.0.ffn_down_exps.weight");
    assert_eq!((down.shape.as_slice(), down.class), (&[2, 64, 96][..], Class::ExpertDown));
    assert_eq!(
        source.meta(parts(down)[1].source).name,
        "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    );
    assert_eq!(parts(get(&gguf, "blk.0.attn_q.weight")).len(), 4, "permuted per head");
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    let up = get(&mlx, "model.layers.0.block_sparse_moe.switch_mlp.up_proj");
    assert_eq!(source.meta(parts(up)[0].source).name, "model.layers.0.block_sparse_moe.experts.0.w3.weight");
    let error = plan(&config, &small(&[], &mixtral[..6]), Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("experts.1.w3.weight` is missing"), "{error}");

    let norms: [(&str, &[u64]); 2] = [("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])];
    let qwen: [(&str, &[u64]); 7] = [
        ("mlp.gate.weight", &[2, 64]),
        ("mlp.experts.0.gate_proj.weight", &[32, 64]),
        ("mlp.experts.0.up_proj.weight", &[32, 64]),
        ("mlp.experts.0.down_proj.weight", &[64, 32]),
        ("mlp.experts.1.gate_proj.weight", &[32, 64]),
        ("mlp.experts.1.up_proj.weight", &[32, 64]),
        ("mlp.experts.1.down_proj.weight", &[64, 32]),
    ];
    let text = format!(r#"{{"model_type": "qwen3_moe", {SMALL}, {moe}, "moe_intermediate_size": 32}}"#);
    let config = parse(&text);
    let gguf = plan(&config, &small(&norms, &qwen), Target::Gguf).unwrap();
    assert_eq!(get(&gguf, "blk.0.ffn_down_exps.weight").shape, [2, 64, 32]);
    assert_eq!(get(&gguf, "blk.0.attn_k_norm.weight").shape, [16]);
    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("qwen3moe.expert_feed_forward_length"), Some(&Value::U32(32)));
    let mlx = plan(&config, &small(&norms, &qwen), Target::Mlx).unwrap();
    get(&mlx, "model.layers.0.mlp.switch_mlp.gate_proj");

    let config = parse(&text.replace("\"num_local", "\"mlp_only_layers\": [0], \"num_local"));
    let error = plan(&config, &small(&norms, &qwen), Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("makes layer 0 dense"), "{error}");
}

#[test]
fn contradictions_are_named() {
    let llama = || Index::fixture("tiny-llama");
    let refused =
        |config: &ModelConfig, source: &Index| plan(config, source, Target::Gguf).unwrap_err().to_string();
    let good = config("tiny-llama");

    let message = refused(&ModelConfig { heads: 8, ..good.clone() }, &llama());
    assert!(message.contains("`model.layers.0.self_attn.q_proj.weight` has shape [256, 256]"), "{message}");
    assert!(message.contains("[512, 256] (num_attention_heads · head_dim, hidden_size)"), "{message}");
    let message = refused(&ModelConfig { vocab: 2049, ..good.clone() }, &llama());
    assert!(message.contains("`model.embed_tokens.weight` has shape [2048, 256]"), "{message}");
    let message = refused(&ModelConfig { layers: 5, ..good.clone() }, &llama());
    assert!(message.contains("tensor `model.layers.4.input_layernorm.weight` is missing"), "{message}");
    let message = refused(&ModelConfig { layers: 3, ..good.clone() }, &llama());
    assert!(message.contains("9 tensors of the checkpoint are unknown to `llama`"), "{message}");
    let message = refused(&good, &llama().with("model.layers.0.adapter.weight", &[4]));
    assert!(message.contains("model.layers.0.adapter.weight"), "{message}");
    let message = refused(&good, &llama().without("lm_head.weight"));
    assert!(message.contains("tensor `lm_head.weight` is missing"), "{message}");
    let message = refused(&ModelConfig { model_type: "mamba9".into(), ..good.clone() }, &llama());
    assert!(message.contains("`model_type` is `mamba9`; known are deepseek_v3, g"), "{message}");

    let text = std::fs::read_to_string(&good.path).unwrap();
    let hqq = parse(&text.replacen('{', r#"{"quantization_config": {"quant_method": "hqq"},"#, 1));
    let message = refused(&hqq, &llama());
    assert!(message.contains("is `hqq`; read are fp8") && message.contains("full-precision"), "{message}");
    plan(&good, &llama().with("model.layers.0.self_attn.rotary_emb.inv_freq", &[32]), Target::Gguf).unwrap();
}

#[test]
fn a_gguf_sources_tensors_are_put_in_order() {
    let source = Index::new([
        ("output.weight".into(), vec![8, 4]),
        ("blk.3.ffn_gate_inp.weight".into(), vec![2, 4]),
        ("blk.3.attn_q.bias".into(), vec![4]),
        ("blk.3.ssm_in.weight".into(), vec![4, 4]),
        ("blk.3.ssm_conv1d.weight".into(), vec![4, 4]),
    ]);
    let found: Vec<_> =
        gguf_tensors(&source).into_iter().map(|t| (t.name, t.class, t.layer, t.quantizable)).collect();
    let row = |name: &str, class, layer, quantizable| (name.to_owned(), class, layer, quantizable);
    assert_eq!(
        found,
        [
            row("blk.3.attn_q.bias", Class::Vector, Some(3), false),
            row("blk.3.ssm_conv1d.weight", Class::Other, Some(3), false),
            row("blk.3.ssm_in.weight", Class::Other, Some(3), true),
            row("blk.3.ffn_gate_inp.weight", Class::Router, Some(3), false),
            row("output.weight", Class::Output, None, true),
        ]
    );
}

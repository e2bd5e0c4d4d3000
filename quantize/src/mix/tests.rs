//! The rules on invented tensors, and the sizes of files that others have published.

use std::collections::HashMap;
use std::path::Path;

use formats::families::{self, Target};
use formats::tensor::{Dtype, SourceFile, TensorId, TensorMeta, TensorSource};

use super::*;

/// A source that has an index only.
struct Index {
    tensors: Vec<TensorMeta>,
    names: HashMap<String, TensorId>,
}

impl Index {
    fn new(list: Vec<(String, Vec<u64>)>) -> Index {
        let dtype = Dtype::Other { name: "BF16", bytes: 2 };
        let meta = |(name, shape)| TensorMeta { name, dtype, shape, file: 0, offset: 0, len: 0 };
        let tensors: Vec<_> = list.into_iter().map(meta).collect();
        let names = tensors.iter().enumerate().map(|(id, t)| (t.name.clone(), TensorId(id))).collect();
        Index { tensors, names }
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

    fn read_at(&self, _: TensorId, _: u64, _: &mut [u8]) -> formats::Result<()> {
        unreachable!("types are chosen from headers")
    }
}

fn config(text: &str) -> ModelConfig {
    ModelConfig::parse(Path::new("config.json"), text).expect("config")
}

/// DeepSeek-R1 (671B), from its configuration.
fn r1() -> (ModelConfig, Vec<OutputTensor>) {
    let config = config(
        r#"{"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "vocab_size": 129280, "rope_theta": 10000,
        "tie_word_embeddings": false}"#,
    );
    let mut list = vec![
        ("model.embed_tokens.weight".to_owned(), vec![129280, 7168]),
        ("model.norm.weight".to_owned(), vec![7168]),
        ("lm_head.weight".to_owned(), vec![129280, 7168]),
    ];
    for layer in 0..61 {
        let mut add = |name: &str, shape: &[u64]| {
            list.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()))
        };
        add("input_layernorm", &[7168]);
        add("post_attention_layernorm", &[7168]);
        add("self_attn.q_a_proj", &[1536, 7168]);
        add("self_attn.q_a_layernorm", &[1536]);
        add("self_attn.q_b_proj", &[128 * 192, 1536]);
        add("self_attn.kv_a_proj_with_mqa", &[576, 7168]);
        add("self_attn.kv_a_layernorm", &[512]);
        add("self_attn.kv_b_proj", &[128 * 256, 512]);
        add("self_attn.o_proj", &[7168, 128 * 128]);
        let mut mlp = |prefix: &str, inner: u64| {
            add(&format!("{prefix}.gate_proj"), &[inner, 7168]);
            add(&format!("{prefix}.up_proj"), &[inner, 7168]);
            add(&format!("{prefix}.down_proj"), &[7168, inner]);
        };
        if layer < 3 {
            mlp("mlp", 18432);
            continue;
        }
        mlp("mlp.shared_experts", 2048);
        for expert in 0..256 {
            mlp(&format!("mlp.experts.{expert}"), 2048);
        }
        add("mlp.gate", &[256, 7168]);
        list.push((format!("model.layers.{layer}.mlp.gate.e_score_correction_bias"), vec![256]));
    }
    let tensors = families::plan(&config, &Index::new(list), Target::Gguf).expect("plan");
    (config, tensors)
}

/// A llama of these sizes.
fn llama(
    layers: u64,
    hidden: u64,
    inner: u64,
    heads: u64,
    kv: u64,
    vocab: u64,
) -> (ModelConfig, Vec<OutputTensor>) {
    let config = config(&format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "num_hidden_layers": {layers}, "intermediate_size": {inner},
        "num_attention_heads": {heads}, "num_key_value_heads": {kv}, "vocab_size": {vocab}}}"#
    ));
    let kv = hidden / heads * kv;
    let mut list = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            list.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let tensors = families::plan(&config, &Index::new(list), Target::Gguf).expect("plan");
    (config, tensors)
}

fn choices(mix: &str, config: &ModelConfig, tensors: &[OutputTensor]) -> Choices {
    let facts = ModelFacts::of_config(config);
    choose(Mix::find(mix).expect("mix"), tensors, &facts, &Overrides::default()).expect("choices")
}

fn bytes(choices: &Choices, tensors: &[OutputTensor]) -> u64 {
    let sizes =
        tensors.iter().zip(&choices.formats).map(|(t, f)| f.plane_bytes(0, t.elements()).expect("blocks"));
    sizes.sum()
}

fn of(choices: &Choices, tensors: &[OutputTensor], name: &str) -> &'static str {
    let index = tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"));
    choices.formats[index].name
}

/// Published: Q4_K_M 404.43 GB, IQ4_XS 357.13 GB (made with importance, which spares the first layers' Q5_K).
#[test]
fn r1_has_the_published_sizes() {
    let (config, tensors) = r1();
    let chosen = choices("q4_k_m", &config, &tensors);
    let gb = bytes(&chosen, &tensors) as f64 / 1e9;
    assert!((gb / 404.43 - 1.0).abs() < 0.01, "Q4_K_M: {gb:.2} GB");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_k_b.weight"), "q8_0");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_kv_a_mqa.weight"), "q6_k");
    assert_eq!(of(&chosen, &tensors, "blk.3.ffn_gate_inp.weight"), "f32");
    assert_eq!(of(&chosen, &tensors, "blk.3.exp_probs_b.bias"), "f32");
    assert_eq!(of(&chosen, &tensors, "blk.3.ffn_down_exps.weight"), "q6_k");
    assert_eq!(of(&chosen, &tensors, "blk.7.ffn_down_exps.weight"), "q4_k");
    assert_eq!(chosen.fallbacks, []);

    let facts = ModelFacts { importance: true, ..ModelFacts::of_config(&config) };
    let chosen =
        choose(Mix::find("iq4_xs").expect("mix"), &tensors, &facts, &Overrides::default()).expect("choices");
    let gb = bytes(&chosen, &tensors) as f64 / 1e9;
    assert!((gb / 357.13 - 1.0).abs() < 0.01, "IQ4_XS: {gb:.2} GB");
}

/// Published: 40,543 MiB.
#[test]
fn llama_70b_has_the_published_size() {
    let (config, tensors) = llama(80, 8192, 28672, 64, 8, 128256);
    let chosen = choices("q4_k_m", &config, &tensors);
    let mib = bytes(&chosen, &tensors) as f64 / f64::from(1 << 20);
    assert_eq!(mib.round(), 40_543.0);
    assert_eq!(of(&chosen, &tensors, "blk.10.attn_v.weight"), "q5_k", "raised for its size");
}
/// What llama-quantize wrote, with importance: its files are longer than our tensors by the header, always the same.
#[test]
fn sizes_equal_those_of_llama_quantize() {
    let tiny = [
        ("q8_0", 4_527_456),
        ("q6_k", 3_511_648),
        ("q5_k_m", 3_085_152),
        ("q4_k_m", 2_683_744),
        ("q4_k_s", 2_581_856),
        ("iq4_xs", 2_450_784),
        ("q4_0", 2_565_472),
        ("q3_k_m", 2_242_912),
    ];
    // SmolLM2-135M: rows of 576 hold no K-quant.
    let smol = [
        ("q5_k_m", 112_103_552),
        ("q4_k_m", 105_454_208),
        ("q4_1", 98_362_496),
        ("q3_k_m", 93_510_272),
        ("q4_0", 91_892_864),
        ("iq4_nl", 91_726_976),
        ("iq4_xs", 90_897_536),
    ];
    let (smol_config, mut smol_tensors) = llama(30, 576, 1536, 9, 3, 49152);
    smol_tensors.retain(|tensor| tensor.class != Class::Output);
    let (tiny_config, tiny_tensors) = llama(4, 256, 768, 4, 2, 2048);
    for (sizes, header, config, tensors) in
        [(&tiny[..], 61_792, tiny_config, tiny_tensors), (&smol[..], 1_785_728, smol_config, smol_tensors)]
    {
        for (mix, size) in sizes {
            let facts = ModelFacts { importance: true, ..ModelFacts::of_config(&config) };
            let mix = Mix::find(mix).expect("mix");
            let chosen = choose(mix, &tensors, &facts, &Overrides::default()).expect("choices");
            assert_eq!(bytes(&chosen, &tensors) + header, *size, "{}", mix.name);
        }
    }
}

#[test]
fn rows_that_do_not_fit_fall_back_and_are_reported() {
    let (config, tensors) = llama(1, 96, 80, 3, 3, 100);
    let fell = |mix: &str| {
        let chosen = choices(mix, &config, &tensors);
        let one = |f: &Fallback| (f.tensor.clone(), f.wanted.name, f.got.name, f.columns);
        chosen.fallbacks.iter().map(one).collect::<Vec<_>>()
    };
    let q5 = fell("q5_k_s");
    assert_eq!(q5[1], ("blk.0.attn_q.weight".into(), "q5_k", "q5_1", 96));
    assert_eq!(q5.last(), Some(&("output.weight".into(), "q6_k", "q8_0", 96)));
    assert!(q5.contains(&("blk.0.ffn_down.weight".into(), "q5_k", "f16", 80)), "80 is no multiple of 32");
    assert!(fell("q4_k_s").contains(&("blk.0.attn_k.weight".into(), "q4_k", "q5_0", 96)));
    assert!(fell("iq4_xs").contains(&("blk.0.attn_q.weight".into(), "iq4_xs", "iq4_nl", 96)));
    assert_eq!(fell("bf16"), []);
}

#[test]
fn the_first_override_decides() {
    let (config, tensors) = llama(2, 256, 512, 4, 4, 256);
    let facts = ModelFacts::of_config(&config);
    let run = |texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        choose(Mix::find("Q4_K_M")?, &tensors, &facts, &Overrides::gguf(&texts)?)
    };
    let chosen = run(&["^blk.0.*ffn_down=Q6_K", "ffn_down=f16", "=bf16"]).expect("choices");
    assert_eq!(of(&chosen, &tensors, "blk.0.ffn_down.weight"), "q6_k");
    assert_eq!(of(&chosen, &tensors, "blk.1.ffn_down.weight"), "f16");
    assert_eq!(of(&chosen, &tensors, "output.weight"), "bf16");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_norm.weight"), "f32", "norms are left alone");
    for (text, problem) in [
        ("ffn_down", "has no `=`"),
        ("ffn_(=q6_k", "unclosed group"),
        ("ffn=q9", "unknown type `q9`; known are f32"),
        ("attn_norm=q6_k", "no tensor that can be quantized"),
    ] {
        let message = run(&[text]).expect_err(text).to_string();
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn mixes_are_found_by_name() {
    assert_eq!(Mix::find("Q4_K_M").map(|mix| mix.file_type).ok(), Some(15));
    assert_eq!(Mix::find("q5_k").map(|mix| mix.name).ok(), Some("q5_k_m"));
    let message = Mix::find("q4").expect_err("q4").to_string();
    assert!(message.contains("unknown GGUF format `q4`; known are q2_k_s, q2_k,"), "{message}");
}

/// A model of eight experts gets more bits where they are cheap; FP4 goes to experts only, or to all but the ends.
#[test]
fn mixtures() {
    let (config, mut tensors) = llama(1, 256, 512, 4, 4, 256);
    let facts = ModelFacts { experts: 8, ..ModelFacts::of_config(&config) };
    for tensor in &mut tensors {
        if tensor.class == Class::FfnUp {
            (tensor.class, tensor.name) = (Class::ExpertUp, "blk.0.ffn_up_exps.weight".into());
        }
    }
    let run = |mix: &str| {
        choose(Mix::find(mix).expect("mix"), &tensors, &facts, &Overrides::default()).expect("choices")
    };
    let chosen = run("q4_k_m");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_v.weight"), "q8_0");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_k.weight"), "q8_0");
    assert_eq!(of(&chosen, &tensors, "blk.0.attn_output.weight"), "q5_k");
    let chosen = run("mxfp4_moe");
    assert_eq!(of(&chosen, &tensors, "blk.0.ffn_up_exps.weight"), "mxfp4");
    assert_eq!(of(&chosen, &tensors, "blk.0.ffn_gate.weight"), "q8_0");
    let chosen = run("mxfp4");
    assert_eq!(of(&chosen, &tensors, "blk.0.ffn_gate.weight"), "mxfp4");
    assert_eq!(of(&chosen, &tensors, "token_embd.weight"), "q8_0");
}

/// llama.cpp gives queries, keys and values in one matrix a rule of their own, the same in every layer.
#[test]
fn fused_attention() {
    let (config, mut tensors) = llama(8, 256, 512, 4, 4, 256);
    tensors.retain(|tensor| ![Class::AttnQ, Class::AttnK].contains(&tensor.class));
    for tensor in tensors.iter_mut().filter(|tensor| tensor.class == Class::AttnV) {
        tensor.class = Class::AttnQkv;
    }
    for (mix, expected) in [
        ("q2_k", "q2_k"),
        ("q3_k_s", "q3_k"),
        ("q3_k_m", "q4_k"),
        ("q3_k_l", "q4_k"),
        ("q4_k_s", "q4_k"),
        ("q4_k_m", "q5_k"),
        ("q5_k_m", "q6_k"),
        ("q8_0", "q8_0"),
    ] {
        let chosen = choices(mix, &config, &tensors);
        let found: Vec<_> =
            (0..8).map(|i| of(&chosen, &tensors, &format!("blk.{i}.attn_v.weight"))).collect();
        assert_eq!(found, [expected; 8], "{mix}");
    }
}

#[test]
fn mlx_leaves_norms_routers_and_odd_rows_in_full() {
    let (_, mut tensors) = llama(1, 256, 512, 4, 4, 256);
    tensors[2].class = Class::Router;
    tensors[3].shape = vec![256, 40];
    tensors[1].class = Class::RouterBias;
    let run = |spec: &str, texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        mlx_formats(spec, &tensors, Some(FloatType::F16), &Overrides::mlx(&texts)?)
    };
    let chosen = run("mxfp4", &["output=mxfp8", "token_embd=bf16"]).expect("choices");
    let names: Vec<_> = chosen.formats.iter().map(|format| format.name).collect();
    assert_eq!(names[..5], ["bf16", "f32", "f16", "f16", "mxfp4"]);
    assert_eq!(names[names.len() - 2..], ["f16", "mxfp8"], "a norm, then the head");
    assert_eq!(chosen.fallbacks.len(), 1);
    assert_eq!((chosen.fallbacks[0].wanted.name, chosen.fallbacks[0].got.name), ("mxfp4", "f16"));
    let message = run("9bit", &[]).expect_err("9bit").to_string();
    assert!(message.contains("unknown type `9bit`; known are"), "{message}");
}

#[test]
fn affine_scales_are_of_the_models_own_type() {
    let (_, tensors) = llama(1, 256, 512, 4, 4, 256);
    let run = |spec: &str, dtype, texts: &[&str]| {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        let chosen = mlx_formats(spec, &tensors, dtype, &Overrides::mlx(&texts).expect("overrides"));
        let chosen = chosen.expect("choices").formats;
        [chosen[0].name, chosen[chosen.len() - 1].name]
    };
    assert_eq!(run("4bit-g64", Some(FloatType::F16), &["output=8bit-g32"]), ["4bit-g64-f16", "8bit-g32-f16"]);
    assert_eq!(run("4bit-g64", Some(FloatType::F32), &[]), ["4bit-g64-f32"; 2]);
    assert_eq!(run("4bit-g64", Some(FloatType::Bf16), &[]), ["4bit-g64"; 2]);
    assert_eq!(run("4bit-g64", None, &["output=6bit-g64-f32"]), ["4bit-g64", "6bit-g64-f32"]);
    assert_eq!(run("nvfp4", Some(FloatType::F16), &["output=bf16"]), ["nvfp4", "bf16"]);
}

//! Figures that were computed by hand for models at their real size.

use std::path::Path;

use formats::{Content, ModelConfig, families};
use kernels::{float, table};

use super::*;
use crate::budget::{Engine, KvType, cache};
use crate::target::{Catalog, machine::ThisMachine};

const MIB: u64 = 1 << 20;

const LLAMA_8B: &str = r#"{"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}"#;
const LLAMA_70B: &str = r#"{"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}"#;
const DEEPSEEK_R1: &str = r#"{"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "intermediate_size": 18432,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid",
    "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1}"#;
const GEMMA_27B: &str = r#"{"model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62, "intermediate_size": 21504,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208, "sliding_window": 1024,
    "query_pre_attn_scalar": 168}"#;

fn hyper(config: &str) -> Hyper {
    let config = ModelConfig::parse(Path::new("config.json"), config).expect("configuration");
    Hyper::new(families::gguf_metadata(&config).expect("metadata"), "model").expect("architecture")
}

fn run() -> Run {
    Run { engine: Engine::Vllm, context: 8192, parallel: 1, kv: KvType::F16 }
}

fn tensor(name: String, class: Class, layer: Option<u32>, shape: &[u64]) -> OutputTensor {
    let quantizable = shape.len() == 2 && layer.is_some();
    OutputTensor {
        name,
        shape: shape.to_vec(),
        class,
        layer,
        quantizable,
        content: Content::Values(Vec::new()),
    }
}

/// The tensors of a Llama with heads of 128.
fn llama(layers: u32, width: u64, keys: u64, inner: u64) -> Vec<OutputTensor> {
    let vocabulary = [128_256, width];
    let mut all = vec![
        tensor("model.embed_tokens.weight".into(), Class::Embedding, None, &vocabulary),
        tensor("lm_head.weight".into(), Class::Output, None, &vocabulary),
        tensor("model.norm.weight".into(), Class::Vector, None, &[width]),
    ];
    for layer in 0..layers {
        for (name, class, shape) in [
            ("input_layernorm", Class::Vector, &[width][..]),
            ("post_attention_layernorm", Class::Vector, &[width]),
            ("self_attn.q_proj", Class::AttnQ, &[width, width]),
            ("self_attn.k_proj", Class::AttnK, &[keys, width]),
            ("self_attn.v_proj", Class::AttnV, &[keys, width]),
            ("self_attn.o_proj", Class::AttnOutput, &[width, width]),
            ("mlp.gate_proj", Class::FfnGate, &[inner, width]),
            ("mlp.up_proj", Class::FfnUp, &[inner, width]),
            ("mlp.down_proj", Class::FfnDown, &[width, inner]),
        ] {
            all.push(tensor(format!("model.layers.{layer}.{name}.weight"), class, Some(layer), shape));
        }
    }
    all
}

/// Linears in `scheme`, the rest in BF16, on each of some cards.
fn loaded(outputs: &[OutputTensor], scheme: &str, cache: &[LayerCache], cards: u64) -> Loaded {
    let scheme = table::compressed_tensors(scheme).expect("scheme");
    let formats: Vec<&'static Format> =
        outputs.iter().map(|output| if output.quantizable { scheme } else { &float::BF16 }).collect();
    let bytes = |(output, format): (&OutputTensor, &&Format)| {
        (0..format.planes.len()).filter_map(|plane| format.plane_bytes(plane, output.elements())).sum()
    };
    let bytes: Vec<u64> = outputs.iter().zip(&formats).map(bytes).collect();
    Loaded::new(outputs, &bytes, &formats, cache, cards)
}

fn size_of(budget: &Budget, name: &str) -> Bytes {
    budget.buffers.iter().find(|buffer| buffer.name == name).unwrap_or_else(|| panic!("{name}")).bytes
}

#[test]
fn an_8b_on_one_card() {
    let (hyper, run) = (hyper(LLAMA_8B), run());
    let cache = cache(&hyper, &run).expect("cache");
    let loaded = loaded(&llama(32, 4096, 1024, 14336), "w4a16-g128", &cache, 1);
    // 32 layers of 218,103,808 weights in 4.125 bits; embedding and head; 65 norms.
    let weights = 32 * 218_103_808 * 33 / 64 + 2 * 2 * 128_256 * 4096 + 65 * 2 * 4096;
    assert_eq!((loaded.weights, weights), (weights, 5_700_591_616));
    // The codes of gate and up, once; their transposed copy besides.
    assert_eq!(loaded.repacking, Bytes { low: 14336 * 4096, high: 2 * 14336 * 4096 });
    let budget = budget(&hyper, &run, &cache, &loaded, 1).expect("budget");
    // 512 blocks, and the one that stays empty, of 16 tokens of 131,072 bytes.
    assert_eq!(budget.cache, 513 * 16 * 131_072);
    // 2048 tokens of the stream, its norm, gate and up.
    assert_eq!(size_of(&budget, "activations").low, 2048 * 2 * (2 * 4096 + 2 * 14336));
    assert_eq!(size_of(&budget, "logits").low, 4 * 128_256);
    // Batches of 1 and 2.
    assert_eq!(size_of(&budget, "graphs").low, 2 * 23 * MIB);
    assert_eq!(size_of(&budget, "workspace").low, 7 * 32 * 1024);
    // Cache and buffers take more, later.
    assert_eq!(size_of(&budget, "repacking"), Bytes::default());

    let half = Run { kv: KvType::Q8_0, ..run };
    let bytes: u64 = super::super::cache(&hyper, &half).expect("cache").iter().map(|layer| layer.bytes).sum();
    assert_eq!(bytes, budget.cache / 2);
}

#[test]
fn a_70b_on_two_cards() {
    let (hyper, run) = (hyper(LLAMA_70B), run());
    let cache = cache(&hyper, &run).expect("cache");
    check_cards(&hyper, &cache, 2).expect("divisible");
    let loaded = loaded(&llama(80, 8192, 1024, 28672), "w4a16-g128", &cache, 2);
    // Half of 80 layers of 855,638,016 weights in 4.125 bits, half of embedding and head; each has all of 161 norms.
    let half = (80 * 855_638_016 * 33 / 64 + 2 * 2 * 128_256 * 8192) / 2;
    assert_eq!(loaded.weights, half + 161 * 2 * 8192);
    let budget = budget(&hyper, &run, &cache, &loaded, 2).expect("budget");
    assert_eq!(budget.cache, 513 * 16 * 327_680 / 2);
    assert_eq!(size_of(&budget, "communication"), NCCL);
    // The largest step is divided, the stream is not.
    assert_eq!(size_of(&budget, "activations").low, 2048 * 2 * (2 * 8192 + 28672));

    for cards in [3, 128] {
        let refused = check_cards(&hyper, &cache, cards).expect_err("64 heads").to_string();
        assert!(refused.contains(&format!("64 heads among {cards} cards")), "{refused}");
    }
    // More cards than heads of keys: each has one.
    check_cards(&hyper, &cache, 16).expect("keys are repeated");
    assert_eq!(part(&cache[0], 16).bytes, cache[0].bytes / 8);
}

#[test]
fn experts_of_a_layer_are_repacked_whole() {
    let (hyper, run) = (hyper(LLAMA_8B), Run { context: 16, ..run() });
    let cache = cache(&hyper, &run).expect("cache");
    let mut outputs = Vec::new();
    for layer in 0..4 {
        for expert in 0..64 {
            for (name, class, shape) in [
                ("gate_proj", Class::ExpertGate, [4096, 4096]),
                ("up_proj", Class::ExpertUp, [4096, 4096]),
                ("down_proj", Class::ExpertDown, [4096, 4096]),
            ] {
                let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}.weight");
                outputs.push(tensor(name, class, Some(layer), &shape));
            }
        }
    }
    let loaded = loaded(&outputs, "w4a16-g64", &cache, 1);
    // 4.25 bits; and the orders of all four layers, two for each input of 64 experts.
    let layer = 3 * 64 * 4096 * 4096 * 17 / 32;
    assert_eq!(loaded.weights, 4 * layer);
    assert_eq!(loaded.repacking, Bytes { low: layer, high: layer + 4 * 64 * 2 * 8 * 4096 });
    let budget = budget(&hyper, &run, &cache, &loaded, 1).expect("budget");
    let later = budget.total().high - size_of(&budget, "repacking").high - size_of(&budget, "driver").high;
    // The peak is the larger of the two, not their sum.
    assert!(loaded.repacking.high > later - loaded.weights);
    assert_eq!(budget.total().high, loaded.weights + loaded.repacking.high + size_of(&budget, "driver").high);
}

#[test]
fn latents_are_kept_by_every_card_and_unfolded_for_prompts() {
    let (hyper, run) = (hyper(DEEPSEEK_R1), run());
    let cache = cache(&hyper, &run).expect("cache");
    assert_eq!(cache.iter().map(|layer| layer.bytes).sum::<u64>(), 513 * 16 * 70_272);
    assert_eq!(part(&cache[0], 8), cache[0]);
    let budget = budget(&hyper, &run, &cache, &Loaded::default(), 8).expect("budget");
    // 64k tokens of 16 heads of 128 + 128, and of the latent with its rotated part.
    assert_eq!(size_of(&budget, "context").low, (64 << 10) * 2 * (16 * 256 + 576));
    let quantized = Run { kv: KvType::Q8_0, ..run };
    assert!(super::super::cache(&hyper, &quantized).expect_err("16 bits").to_string().contains("choose f16"));

    let kv_b =
        [tensor("model.layers.0.self_attn.kv_b_proj.weight".into(), Class::AttnKB, Some(0), &[32768, 512])];
    assert_eq!(loaded(&kv_b, "w4a16-g128", &cache, 8).absorbed, 2 * 32768 * 512 / 8);
}

#[test]
fn windows_are_blocks_of_their_own_and_groups_are_filled_up() {
    let (hyper, run) = (hyper(GEMMA_27B), Run { context: 128 << 10, ..run() });
    let cache = cache(&hyper, &run).expect("cache");
    // 1023 tokens of the window and 2048 that are computed at once, in blocks of 16, and one more.
    assert_eq!((cache[0].cells, cache[5].cells), (3072 + 16, 128 << 10));
    assert_eq!(cache[0].bytes, (3072 + 16 + 16) * 2 * 16 * 128 * 2);
    // 10 layers see all; 52 have windows, in groups of 10.
    assert_eq!(padding(&cache), 8 * cache[0].bytes);
    assert_eq!(padding(&cache[..1]), 0);
    let four = Run { kv: KvType::Q4_0, ..run };
    assert!(
        super::super::cache(&hyper, &four).expect_err("refused").to_string().contains("no cache of 4 bits")
    );
}

#[test]
fn layers_that_predict_further_tokens_are_not_loaded() {
    for (name, is) in [
        ("model.layers.60.mlp.gate.weight", true),
        ("model.layers.61.eh_proj.weight", false),
        ("mtp.layers.0.mlp.gate_proj.weight", false),
        ("model.visual.vision.layers.70.weight", true),
        ("lm_head.weight", true),
    ] {
        assert_eq!(is_loaded(&tensor(name.into(), Class::Other, None, &[2]), 61), is, "{name}");
    }
}

#[test]
fn a_share_is_of_what_the_driver_shows() {
    let device = |fit: &str| Catalog::presets().fit(fit, &ThisMachine).expect("target").devices[0].clone();
    assert_eq!(share(&device("vram-48")), (90, 48_508 * MIB * 9 / 10));
    assert_eq!(share(&device("40GiB")), (90, 36 << 30));
    // Another program has half of it.
    let busy = Device { usable: 20 << 30, ..device("vram-48") };
    assert_eq!(share(&busy), (41, (21 << 30) * 9 / 10));
}

#[test]
fn graphs_are_captured_of_as_many_sizes_as_vllm_lists() {
    for (sequences, sizes) in [(1, 2), (2, 3), (16, 7), (64, 19), (256, 51), (1024, 51)] {
        assert_eq!(graph_sizes(sequences), sizes, "{sequences}");
    }
}

#[test]
fn no_more_tokens_than_the_model_was_made_for() {
    let allowed = |more: &str| {
        let config = LLAMA_8B.replace("\"vocab_size\"", &format!("{more} \"vocab_size\""));
        allowed(&hyper(&config), &Run { context: 131_072, ..run() }).expect("run").context
    };
    assert_eq!(allowed("\"max_position_embeddings\": 8192,"), 8192);
    assert_eq!(allowed("\"max_position_embeddings\": 262144,"), 131_072);
}

#[test]
fn flags_say_how_it_was_planned() {
    let run = Run { parallel: 4, kv: KvType::Q8_0, ..run() };
    assert_eq!(
        flags(&run, 90, 2).join(" "),
        "--max-model-len 8192 --gpu-memory-utilization 0.90 --max-num-seqs 4 --max-num-batched-tokens 2048 \
         --kv-cache-dtype fp8 --tensor-parallel-size 2"
    );
}

#[test]
fn rows_are_multiples_of_what_the_kernels_take_on_each_card() {
    let outputs = llama(1, 4096, 1024, 14336);
    let formats: Vec<_> =
        outputs.iter().map(|_| table::compressed_tensors("w4a16-g128").expect("known")).collect();
    check_rows(&outputs[3..], &formats[3..], 16).expect("14336 is 16 times 896");
    let refused = check_rows(&outputs[3..], &formats[3..], 32).expect_err("448").to_string();
    assert!(refused.contains("down_proj") && refused.contains("128"), "{refused}");
}

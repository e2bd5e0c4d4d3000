//! Figures that are known, estimates that are known to be wrong, and metadata that can't be.

use std::path::Path;

use formats::{ModelConfig, families, gguf::Metadata};
use verify::hyper::Hyper;

use super::*;

const MIB: u64 = 1 << 20;
const LONG: u64 = 128 << 10;

const LLAMA_3_70B: &str = r#"{"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}"#;
const QWEN_3_235B: &str = r#"{"model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "intermediate_size": 12288,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1536}"#;
const DEEPSEEK_R1: &str = r#"{"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "intermediate_size": 18432,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid",
    "norm_topk_prob": true, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1}"#;
const GEMMA_3_27B: &str = r#"{"model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62, "intermediate_size": 21504,
    "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208, "sliding_window": 1024,
    "query_pre_attn_scalar": 168}"#;
const QWEN_3_5_27B: &str = r#"{"model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "intermediate_size": 17408,
    "num_attention_heads": 24, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128}"#;
const MISTRAL: &str = r#"{"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 4096}"#;

fn hyper(config: &str) -> Hyper {
    let config = ModelConfig::parse(Path::new("config.json"), config).expect("configuration");
    Hyper::new(families::gguf_metadata(&config).expect("metadata"), "model").expect("architecture")
}

/// A GGUF's metadata that states counts alone.
fn counts(arch: &str, counts: &[(&str, u32)]) -> Hyper {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", arch);
    counts.iter().for_each(|(key, count)| metadata.set(format!("{arch}.{key}"), *count));
    Hyper::new(metadata, "model").expect("architecture")
}

fn run(context: u64) -> Run {
    Run { engine: Engine::LlamaCpp, context, parallel: 1, kv: KvType::F16 }
}

fn bytes(hyper: &Hyper, run: Run) -> u64 {
    cache(hyper, &run).expect("cache").iter().map(|layer| layer.bytes).sum()
}

#[test]
fn bytes_for_each_token_are_those_of_the_published_figures() {
    for (config, figure) in [
        // 2 · 80 layers · 8 heads · 128 · 2 bytes.
        (LLAMA_3_70B, 327_680),
        // 2 · 94 layers · 4 heads · 128 · 2 bytes.
        (QWEN_3_235B, 192_512),
        // 61 layers · (512 + 64) · 2 bytes.
        (DEEPSEEK_R1, 70_272),
        // 2 · 32 layers · 8 heads · 128 · 2 bytes: llama.cpp makes no use of the window.
        (MISTRAL, 131_072),
    ] {
        assert_eq!(bytes(&hyper(config), run(LONG)), LONG * figure);
    }
    let gib = |context| bytes(&hyper(DEEPSEEK_R1), run(context)) as f64 / (1u64 << 30) as f64;
    assert_eq!(
        (format!("{:.2}", gib(32 << 10)), format!("{:.2}", gib(LONG))),
        ("2.14".into(), "8.58".into())
    );
}

/// `llama_kv_cache: size` and `llama_memory_recurrent: size` of llama.cpp 0.5 for the same models at their real size.
#[test]
fn caches_are_as_large_as_llama_cpp_says() {
    for (config, kv, context, parallel, printed) in [
        (LLAMA_3_70B, KvType::F16, LONG, 1, &[40_960.0][..]),
        (QWEN_3_235B, KvType::F16, LONG, 1, &[24_064.0]),
        (DEEPSEEK_R1, KvType::F16, LONG, 1, &[8784.0]),
        (GEMMA_3_27B, KvType::F16, LONG, 1, &[10_240.0, 624.0]),
        (GEMMA_3_27B, KvType::F16, 32 << 10, 1, &[2560.0, 624.0]),
        (QWEN_3_5_27B, KvType::F16, LONG, 1, &[8192.0, 149.625]),
    ] {
        let run = Run { kv, parallel, ..run(context) };
        let mib = bytes(&hyper(config), run) as f64 / MIB as f64;
        assert_eq!(mib, printed.iter().sum::<f64>(), "{config}");
    }
}

#[test]
fn the_famous_wrong_estimates() {
    let off = |estimate: u64, is: u64| (100.0 * (estimate as f64 / is as f64 - 1.0)).round();
    // DeepSeek: GGUF's one key head taken for GQA with heads of 7168 / 128.
    let naive = 2 * 61 * (7168 / 128) * 2 * LONG;
    assert_eq!(off(naive, bytes(&hyper(DEEPSEEK_R1), run(LONG))), -81.0);
    // Gemma 3: all layers see all, with heads of 5376 / 32. It is 682 % if windows held no micro-batch besides.
    let naive = 2 * 62 * 16 * (5376 / 32) * 2 * LONG;
    let found = bytes(&hyper(GEMMA_3_27B), run(LONG));
    assert_eq!(off(naive, found), 667.0);
    assert_eq!(off(naive, found - 52 * 2 * 16 * 128 * 2 * 512), 682.0);
    // Qwen 3.5: all layers have keys and values.
    let naive = 2 * 64 * 4 * 256 * 2 * LONG;
    assert_eq!(off(naive, bytes(&hyper(QWEN_3_5_27B), run(LONG))), 293.0);
}

#[test]
fn cells_are_padded_and_windows_hold_a_micro_batch() {
    let gemma = hyper(GEMMA_3_27B);
    let cells = |engine, context| {
        let layers = cache(&gemma, &Run { engine, ..run(context) }).expect("cache");
        (layers[0].cells, layers[5].cells)
    };
    assert_eq!(cells(Engine::LlamaCpp, 1), (256, 256));
    assert_eq!(cells(Engine::LlamaCpp, 5000), (1536, 5120));
    assert_eq!(cells(Engine::Mlx, 5000), (1024 + 2047, 5120));
    assert_eq!(cells(Engine::Mlx, 300), (300, 512));
}

#[test]
fn quantized_caches_have_scales() {
    let llama = hyper(LLAMA_3_70B);
    let values = 2 * 80 * 8 * 128 * 4096;
    for (engine, kv, bits) in [
        (Engine::LlamaCpp, KvType::Q8_0, 8.5),
        (Engine::LlamaCpp, KvType::Q4_0, 4.5),
        (Engine::Mlx, KvType::Q8_0, 8.5),
        (Engine::Mlx, KvType::Q4_0, 4.5),
    ] {
        let found = bytes(&llama, Run { engine, kv, ..run(4096) });
        assert_eq!(found as f64 * 8.0 / f64::from(values), bits);
    }
    // The states of delta networks stay in single precision.
    let states = |kv| cache(&hyper(QWEN_3_5_27B), &Run { kv, ..run(4096) }).expect("cache")[0];
    assert_eq!(states(KvType::Q4_0), states(KvType::F16));
}

#[test]
fn each_sequence_has_cells_of_its_own() {
    for config in [LLAMA_3_70B, QWEN_3_5_27B, GEMMA_3_27B] {
        let four = bytes(&hyper(config), Run { parallel: 4, ..run(4000) });
        assert_eq!(four, 4 * bytes(&hyper(config), run(4000)));
    }
}

#[test]
fn a_layer_that_shares_has_no_cache() {
    let own = |window: bool| if window { 2 * 64 * 2 } else { 2 * 128 * 2 };
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "gemma4");
    for (key, count) in [
        ("block_count", 4u32),
        ("embedding_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 128),
        ("attention.key_length_swa", 64),
        ("attention.sliding_window", 16),
        ("attention.shared_kv_layers", 2),
    ] {
        metadata.set(format!("gemma4.{key}"), count);
    }
    metadata.set("gemma4.attention.sliding_window_pattern", vec![true, false, true, false]);
    let layers = cache(&Hyper::new(metadata, "model").expect("architecture"), &run(4096)).expect("cache");
    let found: Vec<u64> = layers.iter().map(|layer| layer.bytes).collect();
    assert_eq!(found, [768 * own(true), 4096 * own(false), 0, 0]);
    assert_eq!(layers[3].kind(), "another layer's");
}

#[test]
fn what_an_engine_cant_quantize_is_refused() {
    let refused = |config, engine, kv| {
        let error = cache(&hyper(config), &Run { engine, kv, ..run(4096) }).expect_err("refused").to_string();
        assert!(error.contains("choose f16"), "{error}");
        error
    };
    assert!(refused(DEEPSEEK_R1, Engine::Mlx, KvType::Q8_0).contains("deepseek2"));
    assert!(refused(GEMMA_3_27B, Engine::Mlx, KvType::Q4_0).contains("sliding windows"));
    let quantized = Run { engine: Engine::Mlx, kv: KvType::Q8_0, ..run(4096) };
    assert!(cache(&counts("gemma2", &SMALL), &quantized).is_err());
    let narrow = LLAMA_3_70B.replace("\"hidden_size\": 8192", "\"hidden_size\": 8192, \"head_dim\": 80");
    assert!(refused(&narrow, Engine::LlamaCpp, KvType::Q8_0).contains("heads of 80"));
}

const SMALL: [(&str, u32); 4] = [
    ("block_count", 4),
    ("embedding_length", 64),
    ("attention.head_count", 4),
    ("attention.head_count_kv", 2),
];

#[test]
fn hostile_metadata_gives_errors() {
    let large = u32::MAX;
    for (arch, more) in [
        ("llama", &[("block_count", large)][..]),
        ("llama", &[("block_count", 0)]),
        ("llama", &[("attention.head_count", 0)]),
        ("llama", &[("attention.head_count_kv", 0)]),
        (
            "llama",
            &[
                ("attention.head_count", large),
                ("attention.head_count_kv", large),
                ("attention.key_length", large),
            ],
        ),
        ("gpt-oss", &[("attention.sliding_window", 0), ("attention.head_count_kv", 3)]),
        ("gemma4", &[("attention.sliding_window", 1)]),
        ("deepseek2", &[]),
        ("qwen35", &[("ssm.state_size", large)]),
        ("llama", &[("nextn_predict_layers", 5)]),
    ] {
        let hyper = counts(arch, &[&SMALL[..], more].concat());
        let long = Run { parallel: u32::MAX.into(), ..run(u32::MAX.into()) };
        cache(&hyper, &long).expect_err(arch);
        buffers(&hyper, &long, &Device::default()).expect_err(arch);
    }
    for wrong in [run(0), run(1 << 32), Run { parallel: 0, ..run(1) }] {
        assert!(
            cache(&counts("llama", &SMALL), &wrong)
                .expect_err("refused")
                .to_string()
                .contains("not a number from 1")
        );
    }
}

/// `compute buffer size` of llama.cpp 0.5 for the same models at their real size, by `llama-server` on the CPU.
#[test]
fn compute_buffers_are_in_their_range() {
    for (config, context, printed) in [
        (LLAMA_3_70B, 32 << 10, 280.02),
        (LLAMA_3_70B, LONG, 376.02),
        (DEEPSEEK_R1, 32 << 10, 438.01),
        (DEEPSEEK_R1, LONG, 534.01),
        (GEMMA_3_27B, LONG, 308.03),
        (QWEN_3_5_27B, LONG, 280.02),
        (QWEN_3_235B, LONG, 304.02),
    ] {
        let all = buffers(&hyper(config), &run(context), &Device::default()).expect("buffers");
        let compute = all.iter().find(|buffer| buffer.name == "compute").expect("compute").bytes;
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        assert!((mib(compute.low)..mib(compute.high)).contains(&printed), "{compute:?} {printed}");
        // So that the range says something.
        assert!(compute.high < 4 * compute.low);
    }
}

#[test]
fn buffers_depend_on_the_device() {
    let model = hyper(DEEPSEEK_R1);
    let sum = |device: &Device| {
        let buffers = buffers(&model, &run(LONG), device).expect("buffers");
        Budget::new(0, &[], buffers, 0).total()
    };
    let plain = sum(&Device::default());
    let card = sum(&Device { is_card: true, ..Device::default() });
    assert_eq!(card.high - plain.high, 550_000_000);
    let experts = sum(&Device { largest_on_host: 3_000_000_000, ..Device::default() });
    assert_eq!((experts.low - plain.low, experts.high - plain.high), (3_000_000_000, 6_000_000_000));
    let shared = sum(&Device { shares_layers: true, ..Device::default() });
    // Three more copies of a mask of 128k cells and of the stream.
    assert_eq!(shared.high - plain.high, 3 * (2 * LONG * 512 + 4 * 512 * 7168));
}

/// Scores of 128 heads that mlx-lm doesn't fuse make a long context of DeepSeek's expensive.
#[test]
fn mlx_holds_scores_where_attention_is_not_fused() {
    let scores = |config, kv| {
        let run = Run { engine: Engine::Mlx, kv, ..run(LONG) };
        let all = buffers(&hyper(config), &run, &Device::default()).expect("buffers");
        all.iter().find(|buffer| buffer.name == "scores").expect("scores").bytes
    };
    assert_eq!(scores(DEEPSEEK_R1, KvType::F16).low, 128 * 2048 * LONG * 2);
    assert_eq!(scores(LLAMA_3_70B, KvType::F16), Bytes::exactly(0));
    assert_eq!(scores(LLAMA_3_70B, KvType::Q8_0).low, 64 * 2048 * LONG * 2);
}

#[test]
fn a_budget_says_by_how_much_it_does_not_fit() {
    let layers = cache(&hyper(DEEPSEEK_R1), &run(LONG)).expect("cache");
    let buffer = Buffer { name: "compute", bytes: Bytes { low: 10, high: 30 }, basis: "measured".into() };
    let budget = Budget::new(1000, &layers[..2], vec![buffer], 5);
    let cache = 2 * 576 * 2 * LONG;
    assert_eq!(budget.cache, cache);
    assert_eq!(budget.total(), Bytes { low: 1015 + cache, high: 1035 + cache });
    assert_eq!((budget.excess(1035 + cache), budget.excess(1000 + cache)), (0, 35));
    assert!(budget.fits(1035 + cache) && !budget.fits(1034 + cache));
}

#[test]
fn cache_types_are_found_by_name() {
    assert_eq!(KvType::find("Q8_0").expect("known"), KvType::Q8_0);
    assert!(KvType::find("q5_1").expect_err("unknown").to_string().contains("f16, q8_0, q4_0"));
}

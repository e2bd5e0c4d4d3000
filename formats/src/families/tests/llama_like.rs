//! Families that vary Llama's graph: `phi3`, `smollm3`, `olmo2`, `glm4_moe`, `minimax_m2`.

use super::*;

const MLP: [(&str, &[u64]); 3] = [
    ("mlp.gate_proj.weight", &[96, 64]),
    ("mlp.up_proj.weight", &[96, 64]),
    ("mlp.down_proj.weight", &[64, 96]),
];

fn family(model_type: &str, keys: &str) -> ModelConfig {
    parse(&format!(r#"{{"model_type": "{model_type}", {SMALL}{keys}}}"#))
}

fn names(config: &ModelConfig, source: &Index, target: Target) -> Vec<String> {
    let mut names: Vec<_> = plan(config, source, target).unwrap().into_iter().map(|t| t.name).collect();
    names.sort();
    names
}

#[test]
fn phi3_is_fused() {
    let source = small(&[], &[])
        .without("model.layers.0.self_attn.q_proj.weight")
        .without("model.layers.0.self_attn.k_proj.weight")
        .without("model.layers.0.self_attn.v_proj.weight")
        .with("model.layers.0.self_attn.qkv_proj.weight", &[128, 64])
        .with("model.layers.0.mlp.gate_up_proj.weight", &[192, 64])
        .with("model.layers.0.mlp.down_proj.weight", &[64, 96]);
    let config = family("phi3", "");
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    let qkv = get(&tensors, "blk.0.attn_qkv.weight");
    assert_eq!(
        (qkv.class, qkv.shape.as_slice(), parts(qkv)[0].map),
        (Class::AttnQkv, &[128, 64][..], Map::Identity)
    );
    assert_eq!(get(&tensors, "blk.0.ffn_up.weight").shape, [192, 64]);
    assert_eq!(get(&tensors, "blk.0.attn_output.weight").class, Class::AttnOutput);
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    get(&mlx, "model.layers.0.self_attn.qkv_proj");
    get(&mlx, "model.layers.0.mlp.gate_up_proj");

    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("phi3.rope.dimension_count"), Some(&Value::U32(16)));
    assert_eq!(metadata.get("phi3.attention.sliding_window"), Some(&Value::U32(0)));
    assert_eq!(metadata.get("phi3.rope.scaling.attn_factor"), None);
    let config = family("phi3", r#", "sliding_window": 2047"#);
    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("phi3.attention.sliding_window"), Some(&Value::U32(2047)));

    // Phi 3.5's way, with the part of a head that Phi 4 mini rotates.
    let rope = r#", "partial_rotary_factor": 0.75, "max_position_embeddings": 131072, "original_max_position_embeddings":
        4096, "rope_scaling": {"type": "longrope", "long_factor": [1, 1.5, 2, 3, 4, 64], "short_factor": [1, 1, 1, 1, 1, 2]}"#;
    let config = family("phi3", rope);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    let values = |name: &str| match &get(&tensors, name).content {
        Content::Values(values) => values.clone(),
        Content::Parts(_) => panic!("{name} is computed"),
    };
    assert_eq!(values("rope_factors_long.weight"), [1.0, 1.5, 2.0, 3.0, 4.0, 64.0]);
    assert_eq!(values("rope_factors_short.weight"), [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]);
    assert!(plan(&config, &source, Target::Mlx).unwrap().iter().all(|t| !t.name.contains("factors")));
    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("phi3.rope.dimension_count"), Some(&Value::U32(12)));
    assert_eq!(metadata.get("phi3.rope.scaling.original_context_length"), Some(&Value::U32(4096)));
    assert_eq!(metadata.get("phi3.rope.scaling.attn_factor"), Some(&Value::F32(1.190_238_1)));

    let whole = family("phi3", &rope.replace("0.75", "1.0"));
    let error = plan(&whole, &source, Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("`short_factor` has 6 numbers, but a head 8 pairs"), "{error}");
    let error = gguf_metadata(&family("llama", rope)).unwrap_err().to_string();
    assert!(error.contains("is `longrope`, which llama.cpp's llama can't run"), "{error}");
}

/// Queries and keys are permuted as Llama's, also where nothing is rotated; other layers than every fourth are refused.
#[test]
fn smollm3_skips_every_fourth_layer() {
    let source = small(&[], &MLP);
    let config = family("smollm3", r#", "no_rope_layers": [1]"#);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    assert_eq!(parts(get(&tensors, "blk.0.attn_k.weight"))[1].map, Map::InterleaveHalves);
    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("smollm3.rope.dimension_count"), Some(&Value::U32(16)));
    assert_eq!(metadata.get("general.architecture"), Some(&Value::from("smollm3")));
    plan(&family("smollm3", ""), &source, Target::Gguf).unwrap();

    let message = "no rotation in every 4th layer, which llama.cpp's smollm3 can't run";
    for (key, keys) in [
        ("no_rope_layers", r#", "no_rope_layers": [0]"#),
        ("no_rope_layers", r#", "no_rope_layers": [1, 1]"#),
        ("no_rope_layer_interval", r#", "no_rope_layer_interval": 3"#),
    ] {
        let config = family("smollm3", keys);
        let error = plan(&config, &source, Target::Gguf).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(message), "{error}");
        plan(&config, &source, Target::Mlx).unwrap();
    }
}

#[test]
fn olmo2_has_norms_behind() {
    let attention: [(&str, &[u64]); 3] = [
        ("self_attn.q_norm.weight", &[64]),
        ("self_attn.k_norm.weight", &[32]),
        ("post_feedforward_layernorm.weight", &[64]),
    ];
    let source = small(&attention, &MLP).without("model.layers.0.input_layernorm.weight");
    let config = family("olmo2", "");
    let gguf = names(&config, &source, Target::Gguf);
    for name in ["attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm", "ffn_gate", "attn_v"] {
        assert!(gguf.contains(&format!("blk.0.{name}.weight")), "{name} is not in {gguf:?}");
    }
    assert_eq!(gguf.len(), 11 + 2);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    assert_eq!(parts(get(&tensors, "blk.0.attn_q.weight"))[0].map, Map::Identity);
    let mlx = names(&config, &source, Target::Mlx);
    assert!(mlx.contains(&"model.layers.0.post_feedforward_layernorm.weight".to_owned()), "{mlx:?}");
    assert_eq!(gguf_metadata(&config).unwrap().get("general.architecture"), Some(&Value::from("olmo2")));
}

#[test]
fn glm4_moe_rotates_a_half_and_leaves_mtp_out() {
    let attention: [(&str, &[u64]); 5] = [
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
        ("self_attn.q_norm.weight", &[16]),
        ("self_attn.k_norm.weight", &[16]),
    ];
    let experts: [(&str, &[u64]); 8] = [
        ("mlp.gate.weight", &[1, 64]),
        ("mlp.gate.e_score_correction_bias", &[1]),
        ("mlp.experts.0.gate_proj.weight", &[32, 64]),
        ("mlp.experts.0.up_proj.weight", &[32, 64]),
        ("mlp.experts.0.down_proj.weight", &[64, 32]),
        ("mlp.shared_experts.gate_proj.weight", &[32, 64]),
        ("mlp.shared_experts.up_proj.weight", &[32, 64]),
        ("mlp.shared_experts.down_proj.weight", &[64, 32]),
    ];
    let keys = r#", "n_routed_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "n_shared_experts": 1,
        "attention_bias": true, "use_qk_norm": true, "num_nextn_predict_layers": 1, "first_k_dense_replace": 0,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 1.5"#;
    let config = family("glm4_moe", keys);
    let source = small(&attention, &experts).with("model.layers.1.eh_proj.weight", &[64, 128]);
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    for name in [
        "post_attention_norm.weight",
        "attn_q.bias",
        "attn_q_norm.weight",
        "exp_probs_b.bias",
        "ffn_down_shexp.weight",
    ] {
        get(&tensors, &format!("blk.0.{name}"));
    }
    assert!(tensors.iter().all(|t| !t.name.starts_with("blk.1.") && !t.name.contains("ffn_norm")));
    assert_eq!(parts(get(&tensors, "blk.0.attn_k.weight"))[0].map, Map::Identity);

    let metadata = gguf_metadata(&config).unwrap();
    let get = |key: &str| metadata.get(&format!("glm4moe.{key}"));
    for (key, value) in [
        ("block_count", 1),
        ("rope.dimension_count", 8),
        ("expert_count", 1),
        ("expert_shared_count", 1),
        ("leading_dense_block_count", 0),
        ("expert_gating_func", 2),
        ("expert_feed_forward_length", 32),
    ] {
        assert_eq!(get(key), Some(&Value::U32(value)), "{key}");
    }
    assert_eq!(get("expert_weights_scale"), Some(&Value::F32(1.5)));
    assert_eq!(get("expert_weights_norm"), Some(&Value::Bool(true)));
    assert_eq!(get("nextn_predict_layers"), None);

    // Without the flags: neither biases nor norms, and what the file has of them is unknown.
    let plain = family("glm4_moe", &keys.replace("true", "false"));
    plan(&plain, &small(&[], &experts), Target::Gguf).unwrap();
    let error = plan(&plain, &small(&attention[3..], &experts), Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("2 tensors of the checkpoint are unknown"), "{error}");

    // A dense layer.
    let dense = family("glm4_moe", &keys.replace("_replace\": 0", "_replace\": 1"));
    assert!(
        names(&dense, &small(&attention, &MLP), Target::Gguf).contains(&"blk.0.ffn_gate.weight".to_owned())
    );
}

#[test]
fn minimax_m2_norms_all_heads_together() {
    let norms: [(&str, &[u64]); 2] = [("self_attn.q_norm.weight", &[64]), ("self_attn.k_norm.weight", &[32])];
    let experts: [(&str, &[u64]); 5] = [
        ("block_sparse_moe.gate.weight", &[1, 64]),
        ("block_sparse_moe.e_score_correction_bias", &[1]),
        ("block_sparse_moe.experts.0.w1.weight", &[96, 64]),
        ("block_sparse_moe.experts.0.w2.weight", &[64, 96]),
        ("block_sparse_moe.experts.0.w3.weight", &[96, 64]),
    ];
    let keys = r#", "num_local_experts": 1, "num_experts_per_tok": 1, "rotary_dim": 6"#;
    let (config, source) = (family("minimax_m2", keys), small(&norms, &experts));
    let tensors = plan(&config, &source, Target::Gguf).unwrap();
    assert_eq!(get(&tensors, "blk.0.attn_k_norm.weight").shape, [32]);
    assert_eq!(get(&tensors, "blk.0.ffn_norm.weight").shape, [64]);
    assert_eq!(get(&tensors, "blk.0.exp_probs_b.bias").class, Class::RouterBias);
    assert_eq!(get(&tensors, "blk.0.ffn_down_exps.weight").shape, [1, 64, 96]);
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    get(&mlx, "model.layers.0.block_sparse_moe.e_score_correction_bias");
    get(&mlx, "model.layers.0.block_sparse_moe.switch_mlp.down_proj");

    let metadata = gguf_metadata(&config).unwrap();
    let get = |key: &str| metadata.get(&format!("minimax-m2.{key}"));
    assert_eq!(get("rope.dimension_count"), Some(&Value::U32(6)));
    assert_eq!(get("expert_feed_forward_length"), Some(&Value::U32(96)));
    assert_eq!(get("expert_gating_func"), Some(&Value::U32(2)));
    let shares = family("minimax_m2", &keys.replace("\"rotary_dim\": 6", "\"partial_rotary_factor\": 0.5"));
    assert_eq!(gguf_metadata(&shares).unwrap().get("minimax-m2.rope.dimension_count"), Some(&Value::U32(8)));
}

//! The models with latent attention beside DeepSeek V3, whose fixture is in the parent's tests.

use super::*;

const SMALL: &str = r#""hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "vocab_size": 100, "q_lora_rank": 32, "kv_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5"#;

/// A dense layer and one with experts, all of whose attention has `extra`.
fn checkpoint(extra: &[(&str, &[u64])], experts: &[(&str, &[u64])]) -> Index {
    let attention: [(&str, &[u64]); 9] = [
        ("input_layernorm.weight", &[64]),
        ("post_attention_layernorm.weight", &[64]),
        ("self_attn.q_a_proj.weight", &[32, 64]),
        ("self_attn.q_a_layernorm.weight", &[32]),
        ("self_attn.q_b_proj.weight", &[96, 32]),
        ("self_attn.kv_a_proj_with_mqa.weight", &[56, 64]),
        ("self_attn.kv_a_layernorm.weight", &[48]),
        ("self_attn.kv_b_proj.weight", &[112, 48]),
        ("self_attn.o_proj.weight", &[64, 48]),
    ];
    let dense: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let sparse: [(&str, &[u64]); 4] = [
        ("mlp.gate.weight", &[2, 64]),
        ("mlp.shared_experts.gate_proj.weight", &[24, 64]),
        ("mlp.shared_experts.up_proj.weight", &[24, 64]),
        ("mlp.shared_experts.down_proj.weight", &[64, 24]),
    ];
    let layer = |layer: u32, mlp: &[&[(&str, &[u64])]]| {
        let tensors = [&[&attention[..], extra], mlp].concat().concat();
        let name = |(name, shape): (&str, &[u64])| (format!("model.layers.{layer}.{name}"), shape.to_vec());
        tensors.into_iter().map(name).collect::<Vec<_>>()
    };
    let outer = [
        ("model.embed_tokens.weight", &[100, 64][..]),
        ("model.norm.weight", &[64]),
        ("lm_head.weight", &[100, 64]),
    ];
    let outer = outer.map(|(name, shape)| (name.to_owned(), shape.to_vec()));
    Index::new([layer(0, &[&dense]), layer(1, &[&sparse, experts]), outer.to_vec()].concat())
}

/// Each expert's gate and up projection lie in one tensor, the gate's rows first.
#[test]
fn mistral4_has_stacked_experts() {
    let config = parse(&format!(
        r#"{{"model_type": "mistral4", {SMALL}, "first_k_dense_replace": 1, "rope_parameters": {{"rope_type": "yarn",
        "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1}}}}"#
    ));
    let source = checkpoint(
        &[],
        &[("mlp.experts.gate_up_proj", &[2, 48, 64]), ("mlp.experts.down_proj", &[2, 64, 24])],
    );
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    let rows = |name: &str| parts(get(&gguf, name)).iter().map(|part| part.rows.clone()).collect::<Vec<_>>();
    assert_eq!(get(&gguf, "blk.1.ffn_up_exps.weight").shape, [2, 24, 64]);
    assert_eq!(rows("blk.1.ffn_gate_exps.weight"), [0..24, 48..72]);
    assert_eq!(rows("blk.1.ffn_up_exps.weight"), [24..48, 72..96]);
    assert_eq!(rows("blk.1.ffn_down_exps.weight"), [0..64, 64..128]);
    assert_eq!(get(&gguf, "blk.1.ffn_down_exps.weight").shape, [2, 64, 24]);
    assert_eq!(get(&gguf, "blk.1.attn_k_b.weight").shape, [4, 48, 16]);
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    assert_eq!(get(&mlx, "model.layers.1.mlp.switch_mlp.gate_proj").shape, [2, 24, 64]);

    let metadata = gguf_metadata(&config).unwrap();
    for (key, value) in [
        ("attention.temperature_scale", Value::F32(0.1)),
        ("attention.temperature_length", Value::U32(8192)),
        ("rope.scaling.yarn_log_multiplier", Value::F32(0.1)),
        ("expert_gating_func", Value::U32(1)),
        ("attention.key_length_mla", Value::U32(24)),
    ] {
        assert_eq!(metadata.get(&format!("mistral4.{key}")), Some(&value), "{key}");
    }
    assert_eq!(metadata.get("mistral4.attention.latent_layer_norm_rms_epsilon"), None, "the model's own");
}

#[test]
fn glm5_has_indexers_in_some_layers() {
    let text = format!(
        r#"{{"model_type": "glm_moe_dsa", {SMALL}, "mlp_layer_types": ["dense", "sparse"], "rms_norm_eps": 1e-5,
        "index_n_heads": 3, "index_head_dim": 16, "index_topk": 2048, "indexer_types": ["full", "shared"],
        "num_nextn_predict_layers": 1}}"#
    );
    let config = parse(&text);
    let indexer: [(&str, &[u64]); 5] = [
        ("self_attn.indexer.wq_b.weight", &[48, 32]),
        ("self_attn.indexer.wk.weight", &[16, 64]),
        ("self_attn.indexer.k_norm.weight", &[16]),
        ("self_attn.indexer.k_norm.bias", &[16]),
        ("self_attn.indexer.weights_proj.weight", &[3, 64]),
    ];
    let experts: [(&str, &[u64]); 7] = [
        ("mlp.gate.e_score_correction_bias", &[2]),
        ("mlp.experts.0.gate_proj.weight", &[24, 64]),
        ("mlp.experts.0.up_proj.weight", &[24, 64]),
        ("mlp.experts.0.down_proj.weight", &[64, 24]),
        ("mlp.experts.1.gate_proj.weight", &[24, 64]),
        ("mlp.experts.1.up_proj.weight", &[24, 64]),
        ("mlp.experts.1.down_proj.weight", &[64, 24]),
    ];
    let both = checkpoint(&indexer, &experts).with("model.layers.2.eh_proj.weight", &[64, 128]);
    let source =
        indexer.iter().fold(both, |source, (name, _)| source.without(&format!("model.layers.1.{name}")));
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    for (name, shape) in [
        ("attn_q_b.weight", &[48, 32][..]),
        ("attn_k.weight", &[16, 64]),
        ("k_norm.weight", &[16]),
        ("k_norm.bias", &[16]),
        ("proj.weight", &[3, 64]),
    ] {
        assert_eq!(get(&gguf, &format!("blk.0.indexer.{name}")).shape, shape);
    }
    assert!(gguf.iter().all(|t| !t.name.starts_with("blk.1.indexer") && !t.name.starts_with("blk.2")));
    get(&plan(&config, &source, Target::Mlx).unwrap(), "model.layers.0.self_attn.indexer.k_norm.bias");

    let metadata = gguf_metadata(&config).unwrap();
    for (key, value) in [
        ("attention.indexer.head_count", Value::U32(3)),
        ("attention.indexer.key_length", Value::U32(16)),
        ("attention.indexer.top_k", Value::U32(2048)),
        ("attention.indexer.types", Value::from(vec![true, false])),
        ("attention.latent_layer_norm_rms_epsilon", Value::F32(1e-6)),
        ("expert_gating_func", Value::U32(2)),
        ("leading_dense_block_count", Value::U32(1)),
        ("block_count", Value::U32(2)),
    ] {
        assert_eq!(metadata.get(&format!("glm-dsa.{key}")), Some(&value), "{key}");
    }
    let error =
        plan(&parse(&text.replace(r#""full", "shared""#, r#""shared", "full""#)), &source, Target::Gguf);
    assert!(error.unwrap_err().to_string().contains("of which the first is full"));
}

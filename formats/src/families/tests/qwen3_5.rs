//! Qwen 3.5: one layer with a delta network, one with attention.

use super::*;

const SIZES: &str = r#""hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 96, "vocab_size": 100, "full_attention_interval": 2, "linear_num_key_heads": 2,
    "linear_num_value_heads": 6, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1]}"#;

fn checkpoint(mlp: &[(&str, &[u64])]) -> Index {
    let norms: [(&str, &[u64]); 2] =
        [("input_layernorm.weight", &[64]), ("post_attention_layernorm.weight", &[64])];
    let delta: [(&str, &[u64]); 9] = [
        ("linear_attn.in_proj_qkv.weight", &[80, 64]),
        ("linear_attn.in_proj_z.weight", &[48, 64]),
        ("linear_attn.in_proj_b.weight", &[6, 64]),
        ("linear_attn.in_proj_a.weight", &[6, 64]),
        ("linear_attn.conv1d.weight", &[80, 1, 4]),
        ("linear_attn.A_log", &[6]),
        ("linear_attn.dt_bias", &[6]),
        ("linear_attn.norm.weight", &[8]),
        ("linear_attn.out_proj.weight", &[64, 48]),
    ];
    let attention: [(&str, &[u64]); 6] = [
        ("self_attn.q_proj.weight", &[128, 64]),
        ("self_attn.k_proj.weight", &[32, 64]),
        ("self_attn.v_proj.weight", &[32, 64]),
        ("self_attn.q_norm.weight", &[16]),
        ("self_attn.k_norm.weight", &[16]),
        ("self_attn.o_proj.weight", &[64, 64]),
    ];
    let layer = |layer: u32, mixer: &[(&str, &[u64])]| {
        let tensors = [&norms, mixer, mlp].concat().into_iter();
        let name = |(name, shape): (&str, &[u64])| (format!("model.layers.{layer}.{name}"), shape.to_vec());
        tensors.map(name).collect::<Vec<_>>()
    };
    let outer = [("model.embed_tokens.weight", &[100, 64][..]), ("model.norm.weight", &[64])];
    let outer = outer.map(|(name, shape)| (name.to_owned(), shape.to_vec()));
    Index::new([layer(0, &delta), layer(1, &attention), outer.to_vec()].concat())
}

fn rows(tensor: &OutputTensor) -> Vec<std::ops::Range<u64>> {
    parts(tensor).iter().map(|part| part.rows.clone()).collect()
}

#[test]
fn dense() {
    let mlp: [(&str, &[u64]); 3] = [
        ("mlp.gate_proj.weight", &[96, 64]),
        ("mlp.up_proj.weight", &[96, 64]),
        ("mlp.down_proj.weight", &[64, 96]),
    ];
    let source = checkpoint(&mlp).with("mtp.fc.weight", &[64, 128]);
    let config = parse(&format!(r#"{{"model_type": "qwen3_5_text", {SIZES}}}"#));
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    let map = |name: &str| parts(get(&gguf, name))[0].map;

    // Three value heads for each of two key heads: 0 1 2 | 3 4 5 becomes 0 3 1 4 2 5.
    assert_eq!(rows(get(&gguf, "blk.0.ssm_alpha.weight")), [0..1, 3..4, 1..2, 4..5, 2..3, 5..6]);
    assert_eq!(
        rows(get(&gguf, "blk.0.attn_qkv.weight")),
        [0..32, 32..40, 56..64, 40..48, 64..72, 48..56, 72..80]
    );
    assert_eq!(rows(get(&gguf, "blk.0.ssm_conv1d.weight"))[..3], [0..128, 128..160, 224..256]);
    assert_eq!(rows(get(&gguf, "blk.0.attn_gate.weight"))[1], 24..32);
    assert_eq!(map("blk.0.ssm_out.weight"), Map::DealColumns { groups: 2, width: 8 });
    assert_eq!((map("blk.0.ssm_a"), get(&gguf, "blk.0.ssm_a").class), (Map::NegExp, Class::Decay));
    assert_eq!(rows(get(&gguf, "blk.0.ssm_dt.bias"))[1], 3..4);

    assert_eq!(map("blk.0.attn_norm.weight"), Map::PlusOne);
    assert_eq!(map("blk.1.attn_q_norm.weight"), Map::PlusOne);
    assert_eq!(map("output_norm.weight"), Map::PlusOne);
    assert_eq!(map("blk.0.ssm_norm.weight"), Map::Identity, "the gated norm");
    assert_eq!(get(&gguf, "blk.1.attn_q.weight").shape, [128, 64], "queries and gates");
    get(&gguf, "blk.1.post_attention_norm.weight");

    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    let inner = "language_model.model.layers.0";
    assert_eq!(get(&mlx, &format!("{inner}.linear_attn.conv1d.weight")).shape, [80, 4, 1]);
    assert_eq!(rows(get(&mlx, &format!("{inner}.linear_attn.in_proj_qkv"))), [0..32, 32..80]);
    assert_eq!(parts(get(&mlx, &format!("{inner}.linear_attn.A_log")))[0].map, Map::Identity);
    assert_eq!(parts(get(&mlx, &format!("{inner}.input_layernorm.weight")))[0].map, Map::PlusOne);

    let metadata = gguf_metadata(&config).unwrap();
    for (key, value) in [
        ("full_attention_interval", Value::U32(2)),
        ("ssm.conv_kernel", Value::U32(4)),
        ("ssm.state_size", Value::U32(8)),
        ("ssm.group_count", Value::U32(2)),
        ("ssm.time_step_rank", Value::U32(6)),
        ("ssm.inner_size", Value::U32(48)),
        ("rope.dimension_count", Value::U32(4)),
        ("rope.dimension_sections", Value::from(vec![2, 1, 1, 0])),
    ] {
        assert_eq!(metadata.get(&format!("qwen35.{key}")), Some(&value), "{key}");
    }
    let text = format!(
        r#"{{"model_type": "qwen3_5_text", {SIZES}, "layer_types": ["full_attention", "linear_attention"]}}"#
    );
    let error = plan(&parse(&text), &source, Target::Gguf).unwrap_err().to_string();
    assert!(error.contains("every n-th layer only"), "{error}");
}

#[test]
fn with_experts() {
    let mlp: [(&str, &[u64]); 7] = [
        ("mlp.gate.weight", &[2, 64]),
        ("mlp.experts.gate_up_proj", &[2, 64, 64]),
        ("mlp.experts.down_proj", &[2, 64, 32]),
        ("mlp.shared_expert.gate_proj.weight", &[40, 64]),
        ("mlp.shared_expert.up_proj.weight", &[40, 64]),
        ("mlp.shared_expert.down_proj.weight", &[64, 40]),
        ("mlp.shared_expert_gate.weight", &[1, 64]),
    ];
    let config = parse(&format!(
        r#"{{"model_type": "qwen3_5_moe_text", {SIZES}, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}}"#
    ));
    let source = checkpoint(&mlp);
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    assert_eq!(rows(get(&gguf, "blk.1.ffn_up_exps.weight")), [32..64, 96..128]);
    let gate = get(&gguf, "blk.0.ffn_gate_inp_shexp.weight");
    assert_eq!((gate.shape.as_slice(), gate.quantizable), (&[64][..], false));
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    assert_eq!(get(&mlx, "language_model.model.layers.0.mlp.shared_expert_gate").shape, [1, 64]);
    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("qwen35moe.expert_shared_feed_forward_length"), Some(&Value::U32(40)));
    assert_eq!(metadata.get("qwen35moe.expert_feed_forward_length"), Some(&Value::U32(32)));
}

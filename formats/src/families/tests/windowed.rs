//! The families with windows in some layers: Gemma 2 to 4 and gpt-oss.

use super::*;

/// A checkpoint of layers that all have these tensors.
fn checkpoint(layers: u32, outer: &[(&str, &[u64])], inner: &[(&str, &[u64])]) -> Index {
    let block =
        |i| inner.iter().map(move |(name, shape)| (format!("model.layers.{i}.{name}"), shape.to_vec()));
    let outer = outer.iter().map(|(name, shape)| (format!("model.{name}"), shape.to_vec()));
    Index::new(outer.chain((0..layers).flat_map(block)))
}

const OUTER: &[(&str, &[u64])] = &[("embed_tokens.weight", &[100, 64]), ("norm.weight", &[64])];

const GEMMA: &[(&str, &[u64])] = &[
    ("input_layernorm.weight", &[64]),
    ("self_attn.q_proj.weight", &[64, 64]),
    ("self_attn.k_proj.weight", &[32, 64]),
    ("self_attn.v_proj.weight", &[32, 64]),
    ("self_attn.o_proj.weight", &[64, 64]),
    ("post_attention_layernorm.weight", &[64]),
    ("pre_feedforward_layernorm.weight", &[64]),
    ("post_feedforward_layernorm.weight", &[64]),
    ("mlp.gate_proj.weight", &[96, 64]),
    ("mlp.up_proj.weight", &[96, 64]),
    ("mlp.down_proj.weight", &[64, 96]),
];

const QK_NORMS: &[(&str, &[u64])] = &[("self_attn.q_norm.weight", &[16]), ("self_attn.k_norm.weight", &[16])];

fn sizes(layers: u32) -> String {
    SMALL.replace("\"num_hidden_layers\": 1", &format!("\"num_hidden_layers\": {layers}, \"head_dim\": 16"))
}

fn number(metadata: &Metadata, key: &str) -> f32 {
    match metadata.get(key) {
        Some(&Value::F32(number)) => number,
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn gemma2_norms_get_one_added_in_gguf_only() {
    let text = format!(
        r#"{{"model_type": "gemma2", {}, "query_pre_attn_scalar": 64, "sliding_window": 8,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}}"#,
        sizes(2)
    );
    let (config, source) = (parse(&text), checkpoint(2, OUTER, GEMMA));
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    for name in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
        assert_eq!(parts(get(&gguf, &format!("blk.1.{name}.weight")))[0].map, Map::PlusOne, "{name}");
    }
    assert_eq!(parts(get(&gguf, "output_norm.weight"))[0].map, Map::PlusOne);
    assert_eq!(parts(get(&gguf, "blk.1.attn_q.weight"))[0].map, Map::Identity);
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    assert!(mlx.iter().all(|tensor| parts(tensor)[0].map == Map::Identity));
    get(&mlx, "model.layers.0.pre_feedforward_layernorm.weight");

    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("gemma2.attention.sliding_window"), Some(&Value::U32(8)));
    assert_eq!(metadata.get("gemma2.attention.sliding_window_pattern"), Some(&Value::U32(2)));
    assert_eq!(number(&metadata, "gemma2.attention.scale"), 0.125);
    assert_eq!(number(&metadata, "gemma2.attn_logit_softcapping"), 50.0);
    assert_eq!(number(&metadata, "gemma2.final_logit_softcapping"), 30.0);
}

/// The Hub's files before transformers 5, those of today, and what the large models' leave to defaults.
#[test]
fn gemma3_in_both_styles() {
    let old = r#""rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 3"#;
    let new = r#""layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "rope_parameters": {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}"#;
    let scaling = r#""rope_scaling": {"rope_type": "linear", "factor": 8.0}"#;
    let text =
        |more: &str| format!(r#"{{"model_type": "gemma3_text", {}, "sliding_window": 8, {more}}}"#, sizes(3));
    let metadata = gguf_metadata(&parse(&text(new))).unwrap();
    assert_eq!(metadata, gguf_metadata(&parse(&text(&format!("{old}, {scaling}")))).unwrap());
    assert_eq!(metadata.get("gemma3.attention.sliding_window_pattern"), Some(&Value::U32(3)));
    assert_eq!(number(&metadata, "gemma3.rope.freq_base"), 1e6);
    assert_eq!(number(&metadata, "gemma3.rope.freq_base_swa"), 1e4);
    assert_eq!(number(&metadata, "gemma3.rope.scaling.factor"), 8.0);

    let norms = [GEMMA, QK_NORMS].concat();
    let gguf = plan(&parse(&text(new)), &checkpoint(3, OUTER, &norms), Target::Gguf).unwrap();
    assert_eq!(parts(get(&gguf, "blk.2.attn_k_norm.weight"))[0].map, Map::PlusOne);

    let uneven = new.replacen("sliding", "full", 1);
    let error = gguf_metadata(&parse(&text(&uneven))).unwrap_err().to_string();
    assert!(error.contains("breaks the pattern of every 1-th layer at layer 1"), "{error}");

    let config = parse(
        r#"{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
        "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}}"#,
    );
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.vocab), (8, 4, 256, 262_208));
    assert_eq!(config.rope.theta, 1e6);
}

const GEMMA4: &str = r#""sliding_window": 8, "global_head_dim": 32, "num_global_key_value_heads": 1,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
                        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}"#;

/// Keys as values and larger heads in layers with full attention, experts beside the MLP: the larger models.
#[test]
fn gemma4_with_experts() {
    let text = format!(
        r#"{{"model_type": "gemma4_text", {}, {GEMMA4}, "attention_k_eq_v": true, "enable_moe_block": true,
        "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "hidden_size_per_layer_input": 0}}"#,
        sizes(4)
    );
    let own: &[(&str, &[u64])] = &[
        ("layer_scalar", &[1]),
        ("post_feedforward_layernorm_1.weight", &[64]),
        ("pre_feedforward_layernorm_2.weight", &[64]),
        ("post_feedforward_layernorm_2.weight", &[64]),
        ("router.proj.weight", &[4, 64]),
        ("router.scale", &[64]),
        ("router.per_expert_scale", &[4]),
        ("experts.gate_up_proj", &[4, 64, 64]),
        ("experts.down_proj", &[4, 64, 32]),
    ];
    let mut source = checkpoint(4, OUTER, &[GEMMA, QK_NORMS, own].concat());
    for layer in [1, 3] {
        let name = |end: &str| format!("model.layers.{layer}.self_attn.{end}.weight");
        source = source
            .without(&name("v_proj"))
            .with(&name("q_proj"), &[128, 64])
            .with(&name("k_proj"), &[32, 64])
            .with(&name("o_proj"), &[64, 128])
            .with(&name("q_norm"), &[32])
            .with(&name("k_norm"), &[32]);
    }
    let config = parse(&text);
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    let Content::Values(values) = &get(&gguf, "rope_freqs.weight").content else { panic!("no values") };
    assert_eq!((values.len(), &values[3..5]), (16, &[1.0, 1e30][..]));
    assert_eq!(get(&gguf, "blk.1.ffn_gate_up_exps.weight").shape, [4, 64, 64]);
    assert_eq!(get(&gguf, "blk.1.ffn_down_exps.scale").shape, [4]);
    assert_eq!(get(&gguf, "blk.0.layer_output_scale.weight").shape, [1]);
    assert_eq!(parts(get(&gguf, "blk.0.attn_norm.weight"))[0].map, Map::Identity, "nothing is added");
    assert!(gguf.iter().all(|tensor| tensor.name != "blk.1.attn_v.weight"));

    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    let up = get(&mlx, "model.layers.0.experts.switch_glu.up_proj");
    assert_eq!((up.shape.as_slice(), parts(up)[1].rows.clone()), (&[4, 32, 64][..], 96..128));
    get(&mlx, "model.layers.0.layer_scalar");

    let metadata = gguf_metadata(&config).unwrap();
    let get = |key: &str| metadata.get(&format!("gemma4.{key}"));
    assert_eq!(get("attention.head_count_kv"), Some(&vec![2u32, 1, 2, 1].into()));
    assert_eq!(get("attention.sliding_window_pattern"), Some(&vec![true, false, true, false].into()));
    assert_eq!(
        (get("attention.key_length"), get("attention.key_length_swa")),
        (Some(&32u32.into()), Some(&16u32.into()))
    );
    assert_eq!(get("final_logit_softcapping"), Some(&0.0f32.into()), "else llama.cpp caps at 30");
    assert_eq!((get("expert_used_count"), get("expert_count")), (Some(&2u32.into()), Some(&4u32.into())));
}

/// An embedding in each layer, and last layers with the keys and values of earlier ones: the smaller models.
#[test]
fn gemma4_with_shared_keys() {
    let text = format!(
        r#"{{"model_type": "gemma4_text", {}, {}, "num_kv_shared_layers": 2, "use_double_wide_mlp": true,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 100}}"#,
        sizes(4),
        GEMMA4.replace("\"global_head_dim\": 32", "\"global_head_dim\": 16")
    );
    let own: &[(&str, &[u64])] = &[
        ("layer_scalar", &[1]),
        ("per_layer_input_gate.weight", &[8, 64]),
        ("per_layer_projection.weight", &[64, 8]),
        ("post_per_layer_input_norm.weight", &[64]),
    ];
    let outer: &[(&str, &[u64])] = &[
        ("embed_tokens_per_layer.weight", &[100, 32]),
        ("per_layer_model_projection.weight", &[32, 64]),
        ("per_layer_projection_norm.weight", &[8]),
    ];
    let mut source = checkpoint(4, &[OUTER, outer].concat(), &[GEMMA, QK_NORMS, own].concat());
    for layer in [2, 3] {
        for (name, shape) in [("gate", [192, 64]), ("up", [192, 64]), ("down", [64, 192])] {
            source = source.with(&format!("model.layers.{layer}.mlp.{name}_proj.weight"), &shape);
        }
    }
    let config = parse(&text);
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    assert!(
        gguf.iter().all(|tensor| !tensor.name.starts_with("blk.2.attn_k")),
        "it has keys but doesn't use them"
    );
    assert_eq!(get(&gguf, "per_layer_token_embd.weight").class, Class::Embedding);
    assert!(!get(&gguf, "per_layer_model_proj.weight").quantizable);
    get(&gguf, "blk.3.inp_gate.weight");
    get(&gguf, "blk.3.proj.weight");
    get(&gguf, "blk.3.post_norm.weight");
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    assert!(get(&mlx, "model.per_layer_model_projection").quantizable);

    let metadata = gguf_metadata(&config).unwrap();
    let get = |key: &str| metadata.get(&format!("gemma4.{key}"));
    assert_eq!(get("feed_forward_length"), Some(&vec![96u32, 96, 192, 192].into()));
    assert_eq!(get("attention.head_count_kv"), Some(&vec![2u32; 4].into()), "only where keys are values");
    assert_eq!(get("attention.shared_kv_layers"), Some(&2u32.into()));
    assert_eq!(get("embedding_length_per_layer_input"), Some(&8u32.into()));
}

#[test]
fn gpt_oss_experts_are_taken_apart() {
    let text = format!(
        r#"{{"model_type": "gpt_oss", {}, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8,
        "tie_word_embeddings": true, "rope_scaling": {{"rope_type": "yarn", "factor": 32.0, "truncate": false,
        "original_max_position_embeddings": 4096}}}}"#,
        sizes(2)
    );
    let inner: &[(&str, &[u64])] = &[
        ("self_attn.q_proj.bias", &[64]),
        ("self_attn.k_proj.bias", &[32]),
        ("self_attn.v_proj.bias", &[32]),
        ("self_attn.o_proj.bias", &[64]),
        ("self_attn.sinks", &[4]),
        ("mlp.router.weight", &[2, 64]),
        ("mlp.router.bias", &[2]),
        ("mlp.experts.gate_up_proj", &[2, 64, 192]),
        ("mlp.experts.gate_up_proj_bias", &[2, 192]),
        ("mlp.experts.down_proj", &[2, 96, 64]),
        ("mlp.experts.down_proj_bias", &[2, 64]),
    ];
    let mut source = checkpoint(2, OUTER, &[&GEMMA[..6], inner].concat());
    let config = parse(&text);
    let gguf = plan(&config, &source, Target::Gguf).unwrap();
    let up = get(&gguf, "blk.1.ffn_up_exps.weight");
    assert_eq!((up.shape.as_slice(), up.class), (&[2, 96, 64][..], Class::ExpertUp));
    assert_eq!((parts(up)[1].rows.clone(), parts(up)[1].map), (64..128, Map::OddColumns));
    let bias = get(&gguf, "blk.1.ffn_gate_exps.bias");
    assert_eq!((bias.shape.as_slice(), parts(bias)[0].map), (&[2, 96][..], Map::EvenRows));
    assert_eq!((parts(bias)[0].columns, parts(bias)[0].weights()), (1, 192));
    let down = get(&gguf, "blk.0.ffn_down_exps.weight");
    assert_eq!((down.shape.as_slice(), parts(down)[1].map), (&[2, 64, 96][..], Map::Transpose));
    for name in ["attn_sinks.weight", "attn_output.bias", "ffn_gate_inp.bias", "post_attention_norm.weight"] {
        get(&gguf, &format!("blk.0.{name}"));
    }
    let mlx = plan(&config, &source, Target::Mlx).unwrap();
    for name in ["mlp.experts.up_proj", "mlp.experts.down_proj.bias", "self_attn.sinks", "mlp.router"] {
        get(&mlx, &format!("model.layers.0.{name}"));
    }

    let metadata = gguf_metadata(&config).unwrap();
    assert_eq!(metadata.get("gpt-oss.rope.scaling.yarn_truncate"), Some(&Value::Bool(false)));
    assert_eq!(metadata.get("gpt-oss.expert_feed_forward_length"), Some(&Value::U32(96)));
    assert_eq!(metadata.get("gpt-oss.attention.sliding_window_pattern"), Some(&Value::U32(2)));

    for layer in [0, 1] {
        let name = |end: &str| format!("model.layers.{layer}.mlp.experts.{end}");
        source = source
            .without(&name("gate_up_proj"))
            .without(&name("down_proj"))
            .with(&name("gate_up_proj_blocks"), &[2, 192, 64])
            .with(&name("down_proj_blocks"), &[2, 64, 96]);
    }
    let mxfp4 = plan(&config, &source, Target::Gguf).unwrap();
    let up = get(&mxfp4, "blk.1.ffn_up_exps.weight");
    assert_eq!(up.shape, [2, 96, 64]);
    assert_eq!((parts(up)[1].rows.clone(), parts(up)[1].map), (192..384, Map::OddRows));
    assert_eq!(parts(get(&mxfp4, "blk.0.ffn_down_exps.weight"))[1].map, Map::Identity);

    source = source.without("model.layers.1.self_attn.sinks");
    assert!(plan(&config, &source, Target::Gguf).unwrap_err().to_string().contains("sinks"));
}

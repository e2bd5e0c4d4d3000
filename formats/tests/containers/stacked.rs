//! Experts that lie stacked in the checkpoint, for containers that have a matrix for each.

use std::fs;

use halfbyte_formats::families::as_stored;
use halfbyte_formats::output::Class;
use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::{Content, ModelConfig, TensorSource};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::safetensors_file;

/// A model of one layer with two experts, whose tensors are all zeros.
fn checkpoint() -> TempDir {
    let (hidden, inner, vocab) = (8, 4, 16);
    let tensors: [(&str, &[u64]); 14] = [
        ("model.embed_tokens.weight", &[vocab, hidden]),
        ("model.layers.0.input_layernorm.weight", &[hidden]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, hidden]),
        ("model.layers.0.self_attn.k_proj.weight", &[4, hidden]),
        ("model.layers.0.self_attn.v_proj.weight", &[4, hidden]),
        ("model.layers.0.self_attn.o_proj.weight", &[hidden, 8]),
        ("model.layers.0.self_attn.q_norm.weight", &[4]),
        ("model.layers.0.self_attn.k_norm.weight", &[4]),
        ("model.layers.0.post_attention_layernorm.weight", &[hidden]),
        ("model.layers.0.mlp.gate.weight", &[2, hidden]),
        ("model.layers.0.mlp.experts.gate_up_proj", &[2, 2 * inner, hidden]),
        ("model.layers.0.mlp.experts.down_proj", &[2, hidden, inner]),
        ("model.norm.weight", &[hidden]),
        ("lm_head.weight", &[vocab, hidden]),
    ];
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<u64>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.to_owned(), entry);
    }
    let folder = TempDir::new().unwrap();
    let file = safetensors_file(&Value::from(header).to_string(), &vec![0; end as usize]);
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    let config = json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16", "hidden_size": hidden,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "intermediate_size": 16, "moe_intermediate_size": inner, "num_experts": 2, "num_experts_per_tok": 1,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [], "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "vocab_size": vocab,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn each_gets_its_rows_and_its_name() {
    let folder = checkpoint();
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let config = ModelConfig::read(folder.path()).unwrap();
    let outputs = as_stored(&config, &source).unwrap();
    let experts = outputs.iter().filter(|output| output.class.is_routed_expert());
    let found: Vec<_> = experts
        .map(|output| {
            let Content::Parts(parts) = &output.content else { panic!("parts") };
            let [part] = &parts[..] else { panic!("one part") };
            let of = source.meta(part.source).name.rsplit_once('.').unwrap().1;
            assert!(output.quantizable && output.layer == Some(0));
            (output.name.strip_prefix("model.layers.0.mlp.experts.").unwrap(), of, part.rows.clone())
        })
        .collect();
    let due = [
        ("0.gate_proj.weight", "gate_up_proj", 0..4),
        ("1.gate_proj.weight", "gate_up_proj", 8..12),
        ("0.up_proj.weight", "gate_up_proj", 4..8),
        ("1.up_proj.weight", "gate_up_proj", 12..16),
        ("0.down_proj.weight", "down_proj", 0..8),
        ("1.down_proj.weight", "down_proj", 8..16),
    ];
    assert_eq!(found, due);
    let shapes: Vec<_> =
        outputs.iter().filter(|o| o.class == Class::ExpertDown).map(|o| &o.shape[..]).collect();
    assert_eq!(shapes, [[8, 4]; 2]);
    assert_eq!(outputs.len(), 12 + 6);
}

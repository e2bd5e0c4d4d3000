//! Folders of GPTQ, packed here as GPTQModel does.

use halfbyte_formats::families::{self, Target};
use halfbyte_formats::joined::{Convention, Joined};
use halfbyte_formats::{Checkpoint, Dtype, Error, ModelConfig, TensorSource};
use kernels::{float, w4a16_asym::w4a16_asym};
use serde_json::{Value, json};

use crate::names;
use crate::packed::{self, Entry, Weight, try_values, values, words};

/// Codes along the columns, zero points less `less` along the rows.
fn entries(weight: &Weight, less: u32) -> [Entry; 4] {
    let rows = Weight::ROWS;
    let codes = (0..weight.columns / 8 * rows).map(|i| {
        let (word, row) = (i / rows, i % rows);
        (0..8).map(|k| weight.code(row, word * 8 + k) << (4 * k)).sum()
    });
    let zeros = (0..weight.groups() * rows / 8).map(|i| {
        let (group, word) = (i / (rows / 8), i % (rows / 8));
        (0..8).map(|k| (weight.zero(word * 8 + k, group) - less) << (4 * k)).sum()
    });
    let (code_shape, zero_shape, scale_shape, index_shape): (&[u64], &[u64], &[u64], &[u64]) =
        match weight.columns {
            64 => (&[8, 16], &[2, 2], &[2, 16], &[64]),
            _ => (&[32, 16], &[8, 2], &[8, 16], &[256]),
        };
    [
        ("a.qweight", "I32", code_shape, words(codes)),
        ("a.qzeros", "I32", zero_shape, words(zeros)),
        ("a.scales", "BF16", scale_shape, weight.scales()),
        ("a.g_idx", "I32", index_shape, words(weight.index.iter().copied())),
    ]
}

/// The folder of such tensors, whose configuration is what GPTQModel states, changed.
fn open(tensors: &[Entry], change: impl FnOnce(&mut Value)) -> Result<Joined, Error> {
    let mut quantization = json!({
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": false, "checkpoint_format": "gptq",
    });
    change(&mut quantization);
    packed::open(tensors, &json!({ "quantization_config": quantization }))
}

fn first_version(_: &mut Value) {}

fn second_version(quantization: &mut Value) {
    quantization["checkpoint_format"] = "gptq_v2".into();
}

fn desc_act(quantization: &mut Value) {
    quantization["desc_act"] = true.into();
}

/// Groups that have their columns from everywhere.
fn scattered(columns: usize) -> Weight {
    let mut weight = Weight::new(columns);
    let groups = weight.groups();
    weight.index = (0..columns).map(|column| ((column * 5 + column / groups) % groups) as u32).collect();
    weight
}

#[test]
fn both_versions_and_autorounds_are_read_as_they_were_packed() {
    let weight = Weight::new(64);
    let autoround = |packing: &'static str| {
        move |q: &mut Value| {
            *q = json!({ "quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": packing })
        }
    };
    let check = |tensors: &[Entry], change: &dyn Fn(&mut Value)| {
        let source = open(tensors, change).unwrap();
        assert_eq!((source.convention(), source.tensors().len()), (Convention::Gptq, 1));
        let meta = source.meta(source.find("a.weight").unwrap());
        assert_eq!(meta.dtype, Dtype::Block(w4a16_asym(32, &float::BF16).unwrap()));
        assert_eq!(meta.shape, [16, 64]);
        assert_eq!(values(&source, "a.weight"), weight.values());
    };
    check(&entries(&weight, 1), &first_version);
    check(&entries(&weight, 1), &autoround("auto_round:auto_gptq"));
    check(&entries(&weight, 0), &second_version);
    check(&entries(&weight, 0), &autoround("auto_round"));
    check(&entries(&weight, 0)[..3], &second_version);
}

#[test]
fn columns_out_of_order_are_decoded() {
    for columns in [64, 256] {
        let weight = scattered(columns);
        let source = open(&entries(&weight, 1), desc_act).unwrap();
        let id = source.find("a.weight").unwrap();
        assert_eq!(source.meta(id).dtype, Dtype::Block(&float::BF16));
        let stored: usize = entries(&weight, 1).iter().map(|(.., bytes)| bytes.len()).sum();
        assert_eq!(source.decoded_from(id), Some(("w4a16-desc_act", stored as u64)));
        let expected = weight.values();
        assert_eq!(values(&source, "a.weight"), expected);
        // From the middle of a row to the middle of another.
        let mut bytes = vec![0; 3 * columns];
        source.read_at(id, columns as u64 + 3, &mut bytes).unwrap();
        let all: Vec<u8> = expected.iter().copied().flat_map(packed::bf16).collect();
        assert_eq!(bytes, all[columns + 3..][..3 * columns]);
    }
    // In order they are as well, if that is what they are.
    let weight = Weight::new(64);
    assert_eq!(values(&open(&entries(&weight, 1), desc_act).unwrap(), "a.weight"), weight.values());
}

#[test]
fn a_group_may_be_a_whole_row() {
    // The groups of 32 of 256 columns, read as one of 256.
    let weight = Weight::new(256);
    let [codes, zeros, scales, _] = entries(&weight, 1);
    let first = |(name, dtype, _, bytes): Entry, shape: &'static [u64], len: usize| {
        (name, dtype, shape, bytes[..len].to_vec())
    };
    let tensors = [codes, first(zeros, &[1, 2], 8), first(scales, &[1, 16], 32)];
    let source = open(&tensors, |q| q["group_size"] = json!(-1)).unwrap();
    assert_eq!(source.meta(source.find("a.weight").unwrap()).dtype, Dtype::Block(&float::BF16));
    let one = Weight { columns: 256, index: vec![0; 256] };
    assert_eq!(values(&source, "a.weight"), one.values());
    names(&open(&tensors, first_version).unwrap_err(), &["groups of 256", "group_size 32"]);
}

#[test]
fn an_index_that_is_no_permutation_is_refused() {
    let refused = |change: &dyn Fn(&mut Vec<u32>), config: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut weight = Weight::new(64);
        change(&mut weight.index);
        let mut tensors = entries(&Weight::new(64), 1);
        tensors[3].3 = words(weight.index);
        let error = try_values(&open(&tensors, config).unwrap(), "a.weight").unwrap_err();
        names(&error, parts);
        names(&error, &["model.safetensors", "a.g_idx"]);
    };
    let unequal = |index: &mut Vec<u32>| index[5] = 1;
    for config in [&first_version as &dyn Fn(&mut Value), &desc_act] {
        refused(&unequal, config, &["no permutation", "group 0 has 31 columns instead of 32"]);
        refused(&|index| index[7] = 2, config, &["column 7 is in group 2 of 2"]);
        refused(&|index| index[7] = u32::MAX, config, &["column 7 is in group -1 of 2"]);
    }
    refused(
        &|index| index.swap(3, 40),
        &first_version,
        &["column 3 is in group 1", "desc_act should be true"],
    );
}

#[test]
fn a_zero_point_of_16_is_refused() {
    let weight = Weight::new(64);
    let mut tensors = entries(&weight, 1);
    // Group 1, rows 8 to 15: the fourth of them.
    tensors[1].3[13] |= 0xf0;
    let error = try_values(&open(&tensors, first_version).unwrap(), "a.weight").unwrap_err();
    let parts = ["model.safetensors", "a.qzeros", "row 11, group 1", "GPTQ v1 zero point of 16", "gptq_v2"];
    names(&error, &parts);
    names(&try_values(&open(&tensors, desc_act).unwrap(), "a.weight").unwrap_err(), &parts);
    assert!(try_values(&open(&tensors, second_version).unwrap(), "a.weight").is_ok());
}

#[test]
fn what_is_missing_or_contradicts_is_named() {
    let weight = Weight::new(64);
    let refused = |change: &dyn Fn(&mut Vec<Entry>), config: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut tensors = entries(&weight, 1).to_vec();
        change(&mut tensors);
        names(&open(&tensors, config).unwrap_err(), parts);
    };
    let plain = &first_version;
    refused(&|t| drop(t.remove(2)), plain, &["a.qweight", "no a.scales", "fetch all shards"]);
    refused(&|t| drop(t.remove(1)), plain, &["a.qweight", "no a.qzeros"]);
    refused(&|t| drop(t.remove(3)), &desc_act, &["g_idx", "desc_act"]);
    refused(&|t| t[0].1 = "F32", plain, &["a.qweight f32", "I32"]);
    refused(&|t| t[2].1 = "I16", plain, &["a.scales I16", "neither BF16 nor F16 nor F32"]);
    refused(&|t| t[3] = ("a.g_idx", "I32", &[32], vec![0; 128]), plain, &["a.g_idx is I32 [32]", "[64]"]);
    refused(&|t| t[1].2 = &[4, 1], plain, &["a.qzeros I32 [4, 1]", "have 2 bits: read are 4"]);
    refused(&|t| t[2].2 = &[32], plain, &["a.scales bf16 [32]", "no matrix"]);
    refused(&|t| t.push(("a.weight", "BF16", &[1], vec![0; 2])), plain, &["a.weight beside a.qweight"]);
    let of_16 = |t: &mut Vec<Entry>| {
        t[1] = ("a.qzeros", "I32", &[4, 2], vec![0; 32]);
        t[2] = ("a.scales", "BF16", &[4, 16], vec![0; 128]);
    };
    refused(&of_16, plain, &["groups of 16", "group_size 32"]);
    refused(&of_16, &|q| q["group_size"] = 16.into(), &["groups of 16", "32, 64 and 128"]);
    // Where modules may differ, tensors decide: here they have 8 bits.
    let of_8_bits = |t: &mut Vec<Entry>| t[1] = ("a.qzeros", "I32", &[2, 4], vec![0; 32]);
    refused(&of_8_bits, &|q| q["dynamic"] = json!({}), &["a.qzeros I32 [2, 4]", "have 8 bits"]);
}

/// The tensors of a qwen3_moe of one layer and two experts, whose linears are in GPTQ.
fn qwen3_moe() -> Vec<(String, &'static str, Vec<u64>, Vec<u8>)> {
    let mut tensors = Vec::new();
    let mut add = |name: String, dtype, shape: &[u64]| {
        let size = if dtype == "I32" { 4 } else { 2 };
        tensors.push((name, dtype, shape.to_vec(), vec![0; shape.iter().product::<u64>() as usize * size]));
    };
    for (name, shape) in [("model.embed_tokens", &[8, 64][..]), ("model.norm", &[64]), ("lm_head", &[8, 64])]
    {
        add(format!("{name}.weight"), "BF16", shape);
    }
    let vectors = [
        ("input_layernorm", 64),
        ("post_attention_layernorm", 64),
        ("self_attn.q_norm", 32),
        ("self_attn.k_norm", 32),
    ];
    for (name, size) in vectors {
        add(format!("model.layers.0.{name}.weight"), "BF16", &[size]);
    }
    add("model.layers.0.mlp.gate.weight".into(), "BF16", &[2, 64]);
    let attention = ["q", "k", "v", "o"].map(|name| format!("self_attn.{name}_proj"));
    let expert = |expert| ["gate", "up", "down"].map(|name| format!("mlp.experts.{expert}.{name}_proj"));
    for module in attention.into_iter().chain(expert(0)).chain(expert(1)) {
        let module = format!("model.layers.0.{module}");
        add(format!("{module}.qweight"), "I32", &[8, 64]);
        add(format!("{module}.qzeros"), "I32", &[2, 8]);
        add(format!("{module}.scales"), "F16", &[2, 64]);
    }
    tensors
}

#[test]
fn a_mixtures_experts_are_put_together_and_a_missing_one_is_named() {
    let config = json!({
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32,
        "num_key_value_heads": 2, "intermediate_size": 64, "moe_intermediate_size": 64, "num_experts": 2,
        "num_experts_per_tok": 1, "vocab_size": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "norm_topk_prob": true, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "quantization_config": { "quant_method": "gptq", "bits": 4, "group_size": 32 },
    });
    let plan = |tensors: &[(String, &'static str, Vec<u64>, Vec<u8>)]| {
        let folder = packed::folder(tensors, &config);
        let checkpoint = Checkpoint::open(&folder.path().into())?;
        families::plan(&ModelConfig::read(folder.path())?, checkpoint.source(), Target::Gguf)
    };
    let tensors = qwen3_moe();
    let outputs = plan(&tensors).unwrap();
    let experts = outputs.iter().find(|output| output.name == "blk.0.ffn_up_exps.weight").unwrap();
    assert_eq!(experts.shape, [2, 64, 64]);
    let lost = "model.layers.0.mlp.experts.1.up_proj";
    let rest: Vec<_> = tensors.into_iter().filter(|(name, ..)| !name.starts_with(lost)).collect();
    names(&plan(&rest).unwrap_err(), &[&format!("{lost}.weight"), "missing", "shard"]);
}

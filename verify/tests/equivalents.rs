//! Llama's fixture, rewritten as families that can express it: each graph must compute what Llama's computes.

use std::path::{Path, PathBuf};

use halfbyte_verify::Precision;
use halfbyte_verify::forward::Forward;
use halfbyte_verify::store::Space;
use halfbyte_verify::weights::Weights;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

type Tensor = (String, Vec<usize>, Vec<u8>);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-llama")
}

/// Logits of one sequence of 24 tokens, for the first of the vocabulary.
fn logits(model: &Path) -> Vec<f32> {
    let weights = Weights::open(&model.into()).expect("model");
    let tokens = vec![(0..24u32).map(|i| (i * 97 + 13) % 2048).collect::<Vec<_>>()];
    let mut forward =
        Forward::on_cpu(&weights, Precision::F32, &tokens, &Space::new(1 << 30), 1 << 30).expect("embedding");
    for layer in 0..forward.layers() {
        forward.layer(layer).expect("layer");
    }
    let rows: Vec<usize> = (0..24).collect();
    forward.logits(&forward.finish(&rows).expect("norm"), 0..256).expect("head")
}

/// A copy of the fixture with other keys and tensors.
fn rewritten(keys: Value, change: impl Fn(Vec<Tensor>) -> Vec<Tensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = std::fs::read_to_string(fixture().join("config.json")).expect("configuration");
    let mut config: Map<String, Value> = serde_json::from_str(&text).expect("configuration");
    config.extend(keys.as_object().expect("keys").clone());
    std::fs::write(folder.path().join("config.json"), Value::from(config).to_string())
        .expect("configuration");

    let file = std::fs::read(fixture().join("model.safetensors")).expect("weights");
    let file = SafeTensors::deserialize(&file).expect("weights");
    let tensors = file.tensors().into_iter().map(|(name, t)| (name, t.shape().to_vec(), t.data().to_vec()));
    let tensors = change(tensors.collect());
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), data).expect("tensor"))
    });
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).expect("weights");
    folder
}

/// The rows of several matrices in one.
fn fuse(tensors: Vec<Tensor>, parts: &[&str], whole: &str) -> Vec<Tensor> {
    let (taken, mut rest): (Vec<_>, Vec<_>) =
        tensors.into_iter().partition(|(name, ..)| parts.iter().any(|part| name.contains(part)));
    for (name, shape, data) in taken.iter().filter(|(name, ..)| name.contains(parts[0])) {
        let mut fused = (name.replace(parts[0], whole), shape.clone(), data.clone());
        for part in &parts[1..] {
            let other = name.replace(parts[0], part);
            let (_, shape, data) = taken.iter().find(|(name, ..)| *name == other).expect("part");
            fused.1[0] += shape[0];
            fused.2.extend(data);
        }
        rest.push(fused);
    }
    rest
}

fn phi3(keys: Value) -> tempfile::TempDir {
    rewritten(keys, |tensors| {
        let tensors = fuse(tensors, &["q_proj", "k_proj", "v_proj"], "qkv_proj");
        fuse(tensors, &["gate_proj", "up_proj"], "gate_up_proj")
    })
}

fn assert_same(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let off = found.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest;
    assert!(off <= 1e-5, "logits are off by {off:.1e} of the largest");
}

#[test]
fn fused_matrices() {
    let model = phi3(json!({"model_type": "phi3"}));
    assert_same(&logits(model.path()), &logits(&fixture()));
}

/// Up to the original context the short list counts, past it the long one: equal divisors are linear scaling.
#[test]
fn long_rope() {
    let linear = rewritten(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), |tensors| tensors);
    let stretched = logits(linear.path());
    for (original, expected) in [(23, &stretched), (24, &logits(&fixture()))] {
        let rope = json!({"type": "longrope", "attention_factor": 1.0, "short_factor": vec![1; 32],
            "long_factor": vec![4; 32], "original_max_position_embeddings": original});
        let model = phi3(json!({"model_type": "phi3", "rope_scaling": rope}));
        assert_same(&logits(model.path()), expected);
    }
}

/// GLM 4 MoE with nothing but dense layers whose heads rotate whole.
#[test]
fn glm4_moe_without_experts() {
    let model = rewritten(
        json!({"model_type": "glm4_moe", "first_k_dense_replace": 4, "partial_rotary_factor": 1.0,
            "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 64}),
        |tensors| tensors,
    );
    assert_same(&logits(model.path()), &logits(&fixture()));
}

/// SmolLM3 with rotations of almost nothing: where none is, is all the same.
#[test]
fn smollm3_at_a_standstill() {
    let base = json!({"rope_scaling": {"type": "linear", "factor": 1e9}});
    let still = rewritten(base.clone(), |tensors| tensors);
    let still = logits(still.path());
    let model = |rope: Value| {
        let mut keys = json!({"model_type": "smollm3"});
        keys.as_object_mut().expect("keys").extend(rope.as_object().expect("keys").clone());
        logits(rewritten(keys, |tensors| tensors).path())
    };
    assert_same(&model(base), &still);
    // Turning, it differs from Llama: the fourth layer stands still.
    let (turning, llama) = (model(json!({})), logits(&fixture()));
    assert!(turning.iter().zip(&llama).any(|(a, b)| (a - b).abs() > 0.1));
}

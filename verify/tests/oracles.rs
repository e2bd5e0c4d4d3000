//! Forward passes against logits stored from transformers. The oracles are no part of the repository: these tests are run by
//! `HALFBYTE_ORACLES=<folder> cargo test -p halfbyte-verify --test oracles -- --ignored`, where the folder holds one checkpoint for
//! each family with an `expected.safetensors` (`input_ids` [n, length], `logits` [n, length, vocabulary]).

#[cfg(feature = "gpu")]
mod device;

use std::path::{Path, PathBuf};

use formats::TensorSource;
use formats::safetensors::Safetensors;
use halfbyte_verify::forward::Forward;
use halfbyte_verify::store::Space;
use halfbyte_verify::weights::Weights;
use halfbyte_verify::{Precision, Processor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn folder(family: &str) -> PathBuf {
    let root = std::env::var_os("HALFBYTE_ORACLES").expect("HALFBYTE_ORACLES names the folder of oracles");
    Path::new(&root).join(family)
}

fn bytes(source: &Safetensors, name: &str) -> (Vec<u8>, Vec<usize>) {
    let id = source.find(name).expect(name);
    let meta = source.meta(id);
    let mut bytes = vec![0; meta.len as usize];
    source.read_at(id, 0, &mut bytes).expect(name);
    (bytes, meta.shape.iter().map(|&n| n as usize).collect())
}

/// MiniMax M2's logits were computed before the routers' biases were rounded to BF16. In layer 0, for token 1 of sequence 0, two
/// experts' scores lie within 5e-6 of each other, and the rounding exchanges them, with all tokens after. In this copy the bias of
/// one is in F32 and moved by 1e-5, a ninth of what the rounding may have taken.
fn minimax_m2_before_rounding(folder: &Path, copy: &Path) {
    let name = "model.layers.0.block_sparse_moe.e_score_correction_bias";
    let file = std::fs::read(folder.join("model.safetensors")).expect("checkpoint");
    let file = SafeTensors::deserialize(&file).expect("checkpoint");
    let bias = file.tensor(name).expect(name);
    let widened = bias.data().as_chunks::<2>().0.iter();
    let mut widened: Vec<f32> = widened.map(|&[a, b]| f32::from_le_bytes([0, 0, a, b])).collect();
    widened[2] += 1e-5;
    let bytes: Vec<u8> = widened.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut tensors = file.tensors();
    for (_, tensor) in tensors.iter_mut().filter(|(found, _)| found == name) {
        *tensor = TensorView::new(safetensors::Dtype::F32, bias.shape().to_vec(), &bytes).expect("bias");
    }
    safetensors::serialize_to_file(tensors, None, &copy.join("model.safetensors")).expect("copy");
    std::fs::copy(folder.join("config.json"), copy.join("config.json")).expect("copy");
}

/// Largest difference of a logit, over the largest logit.
fn difference(family: &str, processor: &Processor, precision: Precision) -> f64 {
    let folder = folder(family);
    let expected = Safetensors::open_file(&folder.join("expected.safetensors")).expect("expected");
    let (ids, shape) = bytes(&expected, "input_ids");
    let ids: Vec<u32> =
        ids.as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes) as u32).collect();
    let tokens: Vec<Vec<u32>> = ids.chunks_exact(shape[1]).map(<[u32]>::to_vec).collect();
    let (logits, shape) = bytes(&expected, "logits");
    let logits: Vec<f32> = logits.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();

    let copy = tempfile::tempdir().expect("temporary folder");
    let model = if family == "minimax_m2" {
        minimax_m2_before_rounding(&folder, copy.path());
        copy.path()
    } else {
        &folder
    };
    let weights = Weights::open(&model.into()).expect("model");
    let (space, memory) = (Space::new(1 << 30), 1 << 30);
    let forward = Forward::new(&weights, &weights, processor, precision, &tokens, &space, memory);
    let mut forward = forward.expect("embedding");
    for layer in 0..forward.layers() {
        forward.layer(layer).expect("layer");
    }
    let rows: Vec<usize> = (0..ids.len()).collect();
    let found = forward.logits(&forward.finish(&rows).expect("norm"), 0..shape[2]).expect("head");
    assert_eq!(found.len(), logits.len());
    let largest = logits.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let off = found.iter().zip(&logits).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    f64::from(off / largest)
}

macro_rules! oracles {
    ($($family:ident)*) => {$(
        #[test]
        #[ignore = "needs HALFBYTE_ORACLES"]
        fn $family() {
            check(stringify!($family), "the processor", &Processor::Cpu);
            #[cfg(feature = "gpu")]
            check(stringify!($family), "a graphics processor", &device::GPU);
        }
    )*};
}

fn check(family: &str, on: &str, processor: &Processor) {
    let off = difference(family, processor, Precision::F32);
    // For information: where experts tie, rounding may exchange them.
    let fast = difference(family, processor, Precision::Fixed);
    eprintln!("{family} on {on}: {off:.1e}, multiplying fast {fast:.1e}");
    assert!(off <= 2e-4, "on {on} logits are off by {off:.1e} of the largest");
}

/// Up to `index_topk` tokens, GLM 5's sparse attention is the plain one.
#[test]
#[ignore = "needs HALFBYTE_ORACLES"]
fn sparse_attention_is_refused_where_it_would_leave_tokens_out() {
    let weights = Weights::open(&folder("glm_moe_dsa").into()).expect("model");
    let run = |length: usize| {
        let tokens = vec![vec![1; length]];
        Forward::on_cpu(&weights, Precision::F32, &tokens, &Space::new(1 << 30), 1 << 30)
            .expect("embedding")
            .layer(0)
    };
    run(100).expect("plain attention");
    let error = run(2049).expect_err("sparse attention").to_string();
    assert!(error.contains("2049 tokens, and beyond 2048"), "{error}");
}

oracles! {
    deepseek_v3 gemma2 gemma3 gemma4 glm4_moe glm_moe_dsa gpt_oss llama3 minimax_m2 mistral mistral4 mixtral olmo2 phi3 qwen2
    qwen3 qwen3_5 qwen3_5_moe qwen3_moe smollm3
}

use std::fs;
use std::path::Path;

use halfbyte_formats::checkpoint::Checkpoint;
use halfbyte_formats::summary::{Summary, Tensor, Total, summarize};
use halfbyte_formats::{Error, gguf, mlx};
use kernels::{float, table};
use serde_json::json;
use tempfile::TempDir;

use crate::{names, write};

fn open(path: &Path) -> Result<Summary, Error> {
    Checkpoint::open(&path.into()).and_then(|checkpoint| summarize(&checkpoint))
}

fn tensor(name: &str, format: &str, shape: &[u64], bytes: u64, bits_per_weight: f64) -> Tensor {
    Tensor { name: name.to_owned(), format: format.to_owned(), shape: shape.to_vec(), bytes, bits_per_weight }
}

fn mlx_folder(config: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let options = mlx::Options { shard_size: 300, shard_after: &[], metadata: &[("recipe", "abc")] };
    let module = |name, shape, format| mlx::Tensor { name, module: true, layer: None, shape, format };
    let tensors = [
        module("a", &[2, 2, 128], table::mlx("4bit-g64").unwrap()),
        module("b", &[2, 32], table::mlx("mxfp4").unwrap()),
        module("c", &[2, 32], &float::BF16),
    ];
    write(folder.path(), &mlx::layout(&tensors, &options).unwrap());
    let config = mlx::config(Path::new("config.json"), config, &tensors).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

#[test]
fn a_quantized_module_is_one_tensor() {
    let summary = open(mlx_folder("{}").path()).unwrap();
    assert_eq!(summary.container, "mlx");
    assert_eq!(summary.files.len(), 2);
    assert_eq!(summary.metadata["recipe"], json!("abc"));
    let mut tensors = summary.tensors.clone();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(
        tensors,
        [
            tensor("a.weight", "4bit-g64", &[2, 2, 128], 288, 4.5),
            tensor("b.weight", "mxfp4", &[2, 32], 34, 4.25),
            tensor("c.weight", "bf16", &[2, 32], 128, 16.0),
        ]
    );
    assert_eq!((summary.weights(), summary.bytes()), (640, 450));
    let totals = summary.totals();
    assert_eq!(totals[0], Total { format: "4bit-g64".to_owned(), tensors: 1, weights: 512, bytes: 288 });
    assert_eq!(totals.len(), 3);
}

#[test]
fn a_configuration_that_contradicts_the_shapes_is_refused() {
    let folder = mlx_folder("{}");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replacen("\"bits\": 4", "\"bits\": 3", 1)).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["config.json", "a.weight", "3 bits", "[2, 2, 16]", "[2, 2, 2]"]);
}

#[test]
fn a_configuration_without_possible_numbers_is_refused() {
    let folder = mlx_folder("{}");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replacen("\"group_size\": 64", "\"group_size\": 0", 1)).unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["config.json", "group_size", "quantization of a"]);
}

#[test]
fn an_fp8_weight_and_its_scales_are_one_tensor() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let summary = open(&models.join("tiny-deepseek")).unwrap();
    assert_eq!(summary.container, "safetensors");
    assert!(summary.tensors.iter().all(|t| !t.name.ends_with("_scale_inv")));
    let down = summary.tensors.iter().find(|t| t.name == "model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!(*down, tensor(&down.name, "f8_e4m3", &[256, 768], 256 * 768 + 12 * 4, 8.001953125));
}

#[test]
fn a_gguf_shows_its_keys_and_types() {
    let folder = TempDir::new().unwrap();
    let mut metadata = gguf::Metadata::new();
    metadata.set("a", 0.1f32);
    metadata.set("b", vec!["x".to_owned()]);
    metadata.set("c", f32::NAN);
    let tensors = [
        gguf::write::Tensor {
            name: "x",
            layer: None,
            shape: &[2, 256],
            format: table::gguf("q4_k").unwrap(),
        },
        gguf::write::Tensor { name: "y", layer: None, shape: &[3], format: &float::F32 },
    ];
    let options = gguf::write::Options { stem: "m", alignment: 32, shard_size: None, shard_after: &[] };
    write(folder.path(), &gguf::write::layout(&metadata, &tensors, &options).unwrap());
    let summary = open(&folder.path().join("m.gguf")).unwrap();
    assert_eq!(summary.container, "gguf");
    assert_eq!(json!(summary.metadata), json!({ "a": 0.1, "b": ["x"], "c": null }));
    assert_eq!(
        summary.tensors,
        [tensor("x", "q4_k", &[2, 256], 288, 4.5), tensor("y", "f32", &[3], 12, 32.0)]
    );
}

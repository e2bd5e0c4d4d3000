use std::fs;
use std::path::Path;

use halfbyte_formats::mlx::{Options, SHARD_SIZE, Tensor, config, layout};
use halfbyte_formats::safetensors::{INDEX_NAME, Safetensors};
use halfbyte_formats::{Error, Layout, TensorSource};
use kernels::{Format, float, table};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{names, write};

fn mode(name: &str) -> &'static Format {
    table::mlx(name).unwrap()
}

fn options() -> Options<'static> {
    Options { shard_size: SHARD_SIZE, shard_after: &[], metadata: &[] }
}

fn module<'a>(name: &'a str, shape: &'a [u64], format: &'static Format) -> Tensor<'a> {
    Tensor { name, module: true, layer: None, shape, format }
}

fn plain<'a>(name: &'a str, shape: &'a [u64]) -> Tensor<'a> {
    Tensor { name, module: false, layer: None, shape, format: &float::BF16 }
}

fn written(layout: &Layout) -> (TempDir, Safetensors) {
    let folder = TempDir::new().unwrap();
    write(folder.path(), layout);
    for file in layout.files.iter().filter(|f| f.name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.path().join(&file.name)).unwrap();
        ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    }
    let source = Safetensors::open_folder(folder.path()).unwrap();
    (folder, source)
}

#[test]
fn planes_have_mlx_names_types_and_shapes() {
    let tensors = [
        module("a", &[2, 3, 128], mode("4bit-g64")),
        module("b", &[3, 64], mode("3bit-g32")),
        module("c", &[3, 32], mode("mxfp8")),
        module("d", &[3, 32], &float::F16),
        plain("e.bias", &[5]),
    ];
    let layout = layout(&tensors, &options()).unwrap();
    let (_folder, source) = written(&layout);
    let mut found: Vec<_> =
        source.tensors().iter().map(|t| format!("{} {} {:?}", t.name, t.dtype, t.shape)).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "a.biases bf16 [2, 3, 2]",
            "a.scales bf16 [2, 3, 2]",
            "a.weight U32 [2, 3, 16]",
            "b.biases bf16 [3, 2]",
            "b.scales bf16 [3, 2]",
            "b.weight U32 [3, 6]",
            "c.scales U8 [3, 1]",
            "c.weight U32 [3, 8]",
            "d.weight f16 [3, 32]",
            "e.bias bf16 [5]",
        ]
    );
    let planes = |i: usize, ends: &[&str]| {
        assert_eq!(layout.planes[i].len(), ends.len());
        for (place, end) in layout.planes[i].iter().zip(ends) {
            let meta = source.meta(source.find(&format!("{}{end}", tensors[i].name)).unwrap());
            assert_eq!((place.file, place.offset, place.len), (meta.file, meta.offset, meta.len));
        }
    };
    planes(0, &[".weight", ".scales", ".biases"]);
    planes(2, &[".weight", ".scales"]);
    planes(4, &[""]);
    assert_eq!(source.metadata().get("format").map(String::as_str), Some("mlx"));
}

#[test]
fn strings_of_the_caller_are_in_every_header() {
    let tensors = [plain("a", &[32]), plain("b", &[32])];
    let options = Options { shard_size: 64, shard_after: &[], metadata: &[("recipe", "ü\"")] };
    let layout = layout(&tensors, &options).unwrap();
    for file in &layout.files[..2] {
        let text = String::from_utf8(file.header[8..].to_vec()).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["__metadata__"], json!({ "format": "mlx", "recipe": "ü\"" }));
    }
}

#[test]
fn shards_and_index_are_those_of_mlx_lm() {
    let tensors = [plain("a", &[32]), plain("b", &[32]), plain("c", &[200]), plain("d", &[3])];
    let layout = layout(&tensors, &Options { shard_size: 128, ..options() }).unwrap();
    let files: Vec<_> = layout.files.iter().map(|f| f.name.as_str()).collect();
    let shards = [1, 2, 3].map(|i| format!("model-0000{i}-of-00003.safetensors"));
    assert_eq!(files, [&shards[0], &shards[1], &shards[2], INDEX_NAME]);
    let index: Value = serde_json::from_slice(&layout.files[3].header).unwrap();
    assert_eq!(
        index,
        json!({
            "metadata": { "total_size": 534, "total_parameters": 267 },
            "weight_map": { "a": shards[0], "b": shards[0], "c": shards[1], "d": shards[2] },
        })
    );
    assert_eq!(written(&layout).1.files().len(), 3);
}

#[test]
fn shards_end_with_layers_and_keep_the_order() {
    let layer = |layer, name| Tensor { layer, ..plain(name, &[64]) };
    let tensors =
        [layer(None, "a"), layer(Some(0), "b"), layer(Some(0), "c"), layer(Some(1), "d"), layer(None, "e")];
    let places = |shard_size, shard_after: &[u32]| {
        let layout = layout(&tensors, &Options { shard_size, shard_after, ..options() }).unwrap();
        layout.planes.iter().map(|planes| (planes[0].file, planes[0].offset)).collect::<Vec<_>>()
    };
    let files = |places: Vec<(usize, u64)>| places.into_iter().map(|place| place.0).collect::<Vec<_>>();
    assert_eq!(files(places(256, &[])), [0, 1, 1, 2, 2], "a and one half of layer 0 would fit");
    assert_eq!(files(places(1 << 20, &[0])), [0, 0, 0, 1, 1]);
    assert!(places(1 << 20, &[]).is_sorted());
}

#[test]
fn a_single_file_has_an_index_too() {
    let layout = layout(&[module("a", &[2, 64], mode("4bit-g64"))], &options()).unwrap();
    let files: Vec<_> = layout.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(files, ["model.safetensors", INDEX_NAME]);
    let index: Value = serde_json::from_slice(&layout.files[1].header).unwrap();
    assert_eq!(index["metadata"], json!({ "total_size": 72, "total_parameters": 128 }));
}

#[test]
fn the_mode_of_most_weights_is_the_default() {
    let tensors = [
        module("embed", &[4, 64], mode("mxfp4")),
        module("a.x", &[4, 64], mode("4bit-g64")),
        module("b.x", &[4, 64], mode("4bit-g64")),
        module("c.x", &[4, 64], &float::BF16),
        plain("norm.weight", &[64]),
    ];
    let source = r#"{"model_type":"llama","quantization_config":{"quant_method":"fp8"},"vocab_size":4}"#;
    let text = config(Path::new("config.json"), source, &tensors).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    let quantization = json!({
        "group_size": 64, "bits": 4, "mode": "affine",
        "embed": { "group_size": 32, "bits": 4, "mode": "mxfp4" },
        "c.x": false,
    });
    assert_eq!(
        found,
        json!({
            "model_type": "llama", "vocab_size": 4, "quantization": quantization, "quantization_config": quantization,
        })
    );
    assert!(text.find("model_type") < text.find("vocab_size"), "the source's order is kept");
}

#[test]
fn a_model_without_quantized_modules_says_nothing_of_quantization() {
    let source = r#"{"quantization_config":{},"text_config":{"quantization_config":{},"x":1}}"#;
    let text = config(Path::new("config.json"), source, &[module("a", &[4, 64], &float::BF16)]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({ "text_config": { "x": 1 } }));
}

#[test]
fn a_config_that_is_no_object_is_refused() {
    let error = config(Path::new("config.json"), "[]", &[]).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["config.json", "object"]);
}

fn refused(tensors: &[Tensor<'_>], options: &Options<'_>) -> Error {
    layout(tensors, options).unwrap_err()
}

#[test]
fn a_name_twice_is_refused() {
    let error = refused(&[module("a", &[2, 64], &float::BF16), plain("a.weight", &[64])], &options());
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor a.weight"]);
}

#[test]
fn a_format_of_another_container_is_refused() {
    let error = refused(&[module("a", &[256], table::gguf("q4_k").unwrap())], &options());
    assert!(matches!(error, Error::NotInContainer { .. }));
    names(&error, &["tensor a", "MLX", "q4_k"]);
}

#[test]
fn only_modules_are_quantized() {
    let error = refused(&[Tensor { module: false, ..module("a", &[2, 64], mode("4bit-g64")) }], &options());
    assert!(matches!(error, Error::NotInContainer { .. }));
    names(&error, &["tensor a", "module", "4bit-g64"]);
}

#[test]
fn scales_have_the_type_that_the_format_says() {
    let shape = [2, 64];
    let tensors = [
        module("a", &shape, mode("4bit-g64")),
        module("b", &shape, mode("4bit-g64-f16")),
        module("c", &shape, mode("4bit-g64-f32")),
    ];
    let (_folder, source) = written(&layout(&tensors, &options()).unwrap());
    for (name, dtype) in [("a", "bf16"), ("b", "f16"), ("c", "f32")] {
        for plane in ["scales", "biases"] {
            let meta = source.meta(source.find(&format!("{name}.{plane}")).unwrap());
            assert_eq!((meta.dtype.to_string(), meta.shape.as_slice()), (dtype.to_owned(), &[2, 1][..]));
        }
    }
}

#[test]
fn every_mode_of_the_table_can_be_laid_out() {
    for format in table::MLX {
        let shape = [2, 256];
        let layout = layout(&[module("a", &shape, format)], &options()).unwrap();
        let (_folder, source) = written(&layout);
        assert_eq!(source.tensors().len(), format.planes.len(), "{format:?}");
    }
}

#[test]
fn rows_that_a_mode_can_not_hold_are_refused() {
    let error = refused(&[module("a", &[2, 96], mode("4bit-g64"))], &options());
    assert!(matches!(error, Error::RaggedRow { .. }));
    names(&error, &["tensor a", "96", "4bit-g64", "64"]);
}

#[test]
fn impossible_shapes_are_refused() {
    for shape in [&[][..], &[0], &[1 << 32, 1 << 32], &[1 << 60]] {
        let error = refused(&[plain("a", shape)], &options());
        assert!(matches!(error, Error::BadShape { .. }), "{shape:?}: {error}");
    }
}

proptest! {
    #[test]
    fn every_layout_is_accepted_by_the_reference_and_aligned(
        sizes in prop::collection::vec((1u64..5, 0usize..6), 0..12), shard_size in 1u64..2000,
    ) {
        let names: Vec<_> = (0..sizes.len()).map(|i| format!("t{i}")).collect();
        let shapes: Vec<_> = sizes.iter().map(|(n, kind)| match kind {
            0 | 1 => vec![*n, 64],
            2 => vec![*n, 96],
            _ => vec![*n * *n],
        }).collect();
        let tensors: Vec<_> = names.iter().zip(&shapes).zip(&sizes).map(|((name, shape), (_, kind))| match kind {
            0 => module(name, shape, mode("4bit-g64")),
            1 => module(name, shape, mode("nvfp4")),
            2 => module(name, shape, mode("3bit-g32")),
            _ => plain(name, shape),
        }).collect();
        let layout = layout(&tensors, &Options { shard_size, ..options() }).unwrap();
        let (_folder, source) = written(&layout);
        prop_assert_eq!(source.tensors().len(), layout.planes.iter().map(Vec::len).sum::<usize>());
        for place in layout.planes.iter().flatten() {
            let align = 1 << place.len.trailing_zeros().min(6);
            prop_assert_eq!(place.offset % align, 0, "{} bytes at {}", place.len, place.offset);
        }
        for file in &layout.files[..layout.files.len() - 1] {
            prop_assert_eq!(file.header.len() % 64, 0);
        }
    }
}

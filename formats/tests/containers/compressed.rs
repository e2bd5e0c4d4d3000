//! Folders of compressed-tensors: as they are written, and as a source.

use std::fs;
use std::path::Path;

use halfbyte_formats::checkpoint::{Checkpoint, Weights};
use halfbyte_formats::compressed_tensors::{self, Tensor};
use halfbyte_formats::folder::Options;
use halfbyte_formats::joined::Joined;
use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::{Dtype, Error, TensorSource};
use kernels::{Format, float, table};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::packed::{self, Entry, bf16, values, words};
use crate::{names, write};

fn format(name: &str) -> &'static Format {
    table::compressed_tensors(name).unwrap()
}

fn tensor<'a>(name: &'a str, format: &'static Format) -> Tensor<'a> {
    Tensor { name, linear: true, layer: Some(0), shape: &[3, 128], format }
}

fn layout(tensors: &[Tensor<'_>], shard_size: u64) -> Result<halfbyte_formats::Layout, Error> {
    compressed_tensors::PACKING.layout(tensors, &Options { shard_size, shard_after: &[], metadata: &[] })
}

/// The quantization that config.json states.
fn stated(tensors: &[Tensor<'_>]) -> Value {
    let source = r#"{"quantization_config": {"quant_method": "fp8"}, "model_type": "llama"}"#;
    let text = compressed_tensors::PACKING.config(Path::new("config.json"), source, tensors).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["model_type"], "llama");
    config["quantization_config"].take()
}

fn open(path: &Path) -> Result<Joined, Error> {
    match Checkpoint::open(&path.into())?.weights {
        Weights::Packed(folder) => Ok(folder),
        other => panic!("not packed: {other:?}"),
    }
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let tensors = [
        tensor("a.weight", format("w4a16-g128")),
        tensor("b.weight", format("w4a16-g32-f32")),
        tensor("c.weight", &float::F16),
        Tensor { linear: false, shape: &[5], ..tensor("d.bias", &float::BF16) },
    ];
    for shard_size in [u64::MAX, 300] {
        let folder = TempDir::new().unwrap();
        let layout = layout(&tensors, shard_size).unwrap();
        write(folder.path(), &layout);
        let config = json!({ "quantization_config": stated(&tensors) });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

        // As any reader of safetensors sees it.
        let stored = Safetensors::open_folder(folder.path()).unwrap();
        let shape = |name: &str| {
            let meta = stored.meta(stored.find(name).unwrap());
            (meta.dtype.to_string(), meta.shape.clone())
        };
        assert_eq!(shape("a.weight_packed"), ("I32".to_owned(), vec![3, 16]));
        assert_eq!(shape("a.weight_scale"), ("bf16".to_owned(), vec![3, 1]));
        assert_eq!(shape("b.weight_scale"), ("f32".to_owned(), vec![3, 4]));
        assert_eq!(shape("b.weight_shape"), ("I64".to_owned(), vec![2]));
        let mut sizes = [0; 16];
        stored.read_at(stored.find("b.weight_shape").unwrap(), 0, &mut sizes).unwrap();
        assert_eq!(sizes.as_chunks().0.iter().map(|n| u64::from_le_bytes(*n)).collect::<Vec<_>>(), [3, 128]);

        let source = open(folder.path()).unwrap();
        assert_eq!(source.tensors().len(), 4);
        for (i, tensor) in tensors.iter().enumerate() {
            let id = source.find(tensor.name).unwrap();
            let meta = source.meta(id);
            assert_eq!((meta.dtype, &meta.shape[..]), (Dtype::Block(tensor.format), tensor.shape));
            let mut bytes = vec![0xff; meta.len as usize];
            source.read_at(id, 0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == i as u8), "{}", tensor.name);
        }
    }
}

#[test]
fn planes_are_aligned_behind_the_shapes() {
    let tensors = [tensor("a.weight", format("w4a16-g128")), tensor("b.weight", format("w4a16-g64"))];
    let layout = layout(&tensors, u64::MAX).unwrap();
    for planes in &layout.planes {
        assert!(planes[0].offset.is_multiple_of(64) && planes[1].offset.is_multiple_of(2), "{planes:?}");
    }
    assert_eq!(layout.files[0].header.len() as u64, layout.planes[0][0].offset);
}

#[test]
fn the_configuration_says_what_is_quantized_and_how() {
    let one = stated(&[
        Tensor { linear: false, ..tensor("embed.weight", &float::BF16) },
        tensor("a.weight", format("w4a16-g64-f16")),
        tensor("gate.weight", &float::BF16),
    ]);
    assert_eq!(one["quant_method"], "compressed-tensors");
    assert_eq!(
        (&one["format"], &one["quantization_status"]),
        (&json!("pack-quantized"), &json!("compressed"))
    );
    assert_eq!(one["ignore"], json!(["gate", "lm_head"]));
    let group = &one["config_groups"]["group_0"];
    assert_eq!((&group["targets"], &group["weights"]["group_size"]), (&json!(["Linear"]), &json!(64)));

    let two = stated(&[
        tensor("a.weight", format("w4a16-g64")),
        tensor("b.weight", format("w4a16-g32")),
        tensor("c.weight", format("w4a16-g64")),
        tensor("lm_head.weight", &float::BF16),
    ]);
    assert_eq!(two["ignore"], json!(["lm_head"]));
    assert_eq!(two["config_groups"]["group_0"]["targets"], json!(["a", "c"]));
    assert_eq!(two["config_groups"]["group_1"]["targets"], json!(["b"]));
    assert_eq!(two["config_groups"]["group_1"]["weights"]["group_size"], 32);

    assert!(stated(&[tensor("a.weight", &float::BF16)]).is_null());
}

#[test]
fn what_the_container_has_no_place_for_is_refused() {
    let scheme = format("w4a16-g128");
    let refused = |tensor| layout(&[tensor], u64::MAX).unwrap_err();
    let three = Tensor { shape: &[2, 3, 128], ..tensor("experts.weight", scheme) };
    names(&refused(three), &["experts.weight", "w4a16-g128", "compressed-tensors"]);
    assert!(matches!(
        refused(Tensor { linear: false, ..tensor("a.weight", scheme) }),
        Error::NotInContainer { .. }
    ));
    assert!(matches!(refused(tensor("a.weight", &kernels::q4_0::Q4_0)), Error::NotInContainer { .. }));
    let ragged = Tensor { shape: &[3, 96], ..tensor("a.weight", scheme) };
    names(&refused(ragged), &["a.weight", "96", "128"]);
}

/// A folder of one file with these tensors, `name: (dtype, shape, data)`, whose quantization is what llm-compressor states, changed.
fn foreign(tensors: &[Entry], change: impl FnOnce(&mut Value)) -> Result<Joined, Error> {
    let mut quantization = json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": { "group_0": { "targets": ["Linear"], "input_activations": null, "weights": {
            "num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32, "actorder": null,
        } } },
    });
    change(&mut quantization);
    packed::open(tensors, &json!({ "text_config": { "quantization_config": quantization } }))
}

fn codes() -> Entry {
    ("a.weight_packed", "I32", &[2, 8], vec![1; 64])
}

fn scales() -> Entry {
    ("a.weight_scale", "BF16", &[2, 2], vec![2; 8])
}

fn sizes(rows: i64, columns: i64) -> Entry {
    ("a.weight_shape", "I64", &[2], [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect())
}

fn same(_: &mut Value) {}

#[test]
fn a_foreign_folder_is_read_whatever_integers_its_shapes_are() {
    let short = [2i32, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
    for shape in [sizes(2, 64), ("a.weight_shape", "I32", &[2], short)] {
        let source = foreign(&[codes(), scales(), shape], same).unwrap();
        assert_eq!(source.tensors().len(), 1);
        let id = source.find("a.weight").unwrap();
        assert_eq!(source.meta(id).dtype, Dtype::Block(format("w4a16-g32")));
        assert_eq!(source.meta(id).shape, [2, 64]);
    }
}

#[test]
fn tensors_that_contradict_each_other_are_named() {
    let error = foreign(&[codes()], same).unwrap_err();
    names(&error, &["model.safetensors", "a.weight_packed", "a.weight_scale", "fetch"]);
    let wrong: [(Entry, &[&str]); 6] = [
        (("a.weight_scale", "BF16", &[1, 2], vec![0; 4]), &["[2, 8]", "[1, 2]"]),
        (("a.weight_scale", "BF16", &[2, 3], vec![0; 12]), &["[2, 3]", "groups"]),
        (("a.weight_scale", "BF16", &[2, 4], vec![0; 16]), &["groups of 16", "32, 64 and 128"]),
        (("a.weight_scale", "BF16", &[4], vec![0; 8]), &["no matrix"]),
        (("a.weight_scale", "F8_E4M3", &[2, 2], vec![0; 4]), &["neither BF16 nor F16 nor F32"]),
        (("a.weight_scale", "BF16", &[0, 2], vec![]), &["no matrix"]),
    ];
    for (scales, parts) in wrong {
        names(&foreign(&[codes(), scales], same).unwrap_err(), parts);
    }
    let words = ("a.weight_packed", "U8", &[2, 8][..], vec![0; 16]);
    names(&foreign(&[words, scales()], same).unwrap_err(), &["U8", "I32"]);
    let twice = ("a.weight", "BF16", &[1][..], vec![0; 2]);
    names(&foreign(&[codes(), scales(), twice], same).unwrap_err(), &["a.weight beside a.weight_packed"]);
    let shape = ("a.weight_shape", "I64", &[3][..], vec![0; 24]);
    names(&foreign(&[codes(), scales(), shape], same).unwrap_err(), &["a.weight_shape", "[3]"]);

    // What a shape says is seen when the weight is read.
    for (rows, columns) in [(2, 32), (64, 2), (-2, 64)] {
        let source = foreign(&[codes(), scales(), sizes(rows, columns)], same).unwrap();
        let error = source.read_at(source.find("a.weight").unwrap(), 0, &mut [0; 8]).unwrap_err();
        names(&error, &["model.safetensors", "a.weight_shape", "[2, 64]"]);
    }
}

#[test]
fn schemes_that_are_not_read_are_named() {
    let order = ("a.weight_g_idx", "I32", &[64][..], vec![0; 256]);
    names(&foreign(&[codes(), scales(), order], same).unwrap_err(), &["a.weight_g_idx", "actorder"]);
    for (key, value) in [
        ("num_bits", json!(8)),
        ("type", json!("float")),
        ("strategy", json!("tensor")),
        ("actorder", json!("group")),
    ] {
        let change = |q: &mut Value| q["config_groups"]["group_0"]["weights"][key] = value.clone();
        let error = foreign(&[codes(), scales()], change).unwrap_err();
        names(&error, &["config.json", key, &value.to_string(), "pack-quantized"]);
    }
    for format in ["int-quantized", "marlin-24"] {
        let change = |q: &mut Value| q["format"] = format.into();
        names(
            &foreign(&[codes(), scales()], change).unwrap_err(),
            &["config.json", format, "float-quantized"],
        );
    }
    let change = |q: &mut Value| q["sparsity_config"] = json!({ "format": "sparse-24-bitmask" });
    names(&foreign(&[codes(), scales()], change).unwrap_err(), &["sparsity_config", "sparse-24-bitmask"]);
    let change = |q: &mut Value| q["config_groups"]["group_0"]["weights"]["actorder"] = "weight".into();
    assert!(foreign(&[codes(), scales()], change).is_ok(), "an order of calibration alone");
}

/// Weights of 10 rows, of which the last two share words of zero points with nothing, by hand.
#[test]
fn zero_points_lie_along_rows_and_are_subtracted() {
    let (rows, groups) = (10, 2);
    let code = |row: usize, column: usize| (row * 7 + column * 5 + row * column) as u32 % 16;
    let zero = |row: usize, group: usize| (row + 3 * group) as u32 % 16;
    let scale = |row: usize, group: usize| [0.5, 1.5, -0.25][(row + group) % 3];
    let codes = (0..rows * 8).map(|i| (0..8).map(|k| code(i / 8, i % 8 * 8 + k) << (4 * k)).sum());
    let scales = (0..rows * groups).flat_map(|i| bf16(scale(i / groups, i % groups)));
    let zeros = (0..2 * groups).map(|i| {
        let of = |k: usize| if i / groups * 8 + k < rows { zero(i / groups * 8 + k, i % groups) } else { 0 };
        (0..8).map(|k| of(k) << (4 * k)).sum()
    });
    let tensors = [
        ("a.weight_packed", "I32", &[10, 8][..], words(codes)),
        ("a.weight_scale", "BF16", &[10, 2], scales.collect()),
        ("a.weight_zero_point", "I32", &[2, 2], words(zeros)),
        sizes(10, 64),
    ];
    let asymmetric = |q: &mut Value| q["config_groups"]["group_0"]["weights"]["symmetric"] = false.into();
    let source = foreign(&tensors, asymmetric).unwrap();
    assert_eq!(source.meta(source.find("a.weight").unwrap()).dtype.to_string(), "w4a16-asym-g32");
    let expected = (0..rows * 64).map(|i| {
        let (row, column) = (i / 64, i % 64);
        scale(row, column / 32) * (code(row, column) as f32 - zero(row, column / 32) as f32)
    });
    assert_eq!(values(&source, "a.weight"), expected.collect::<Vec<_>>());

    let said = [
        "a.weight_packed",
        "asymmetric",
        "config.json",
        "symmetric pack-quantized of 4 bits in groups of 32",
    ];
    names(&foreign(&tensors, same).unwrap_err(), &said);
    let wrong = ("a.weight_zero_point", "I32", &[1, 2][..], vec![0; 8]);
    let [codes, scales, ..] = tensors.clone();
    names(&foreign(&[codes.clone(), scales.clone(), wrong], asymmetric).unwrap_err(), &["[1, 2]", "[2, 2]"]);
    // Stated, but not there.
    names(
        &foreign(&[codes, scales], asymmetric).unwrap_err(),
        &["a.weight_scale", "are symmetric", "asymmetric"],
    );
}

/// One scale for a row, which no format of groups has.
#[test]
fn channels_are_decoded() {
    let codes = ("a.weight_packed", "I32", &[2, 12][..], words((0..24).map(|i| 0x7654_3210 + i % 12)));
    let scales = ("a.weight_scale", "BF16", &[2, 1][..], [0.5, 2.0].into_iter().flat_map(bf16).collect());
    let channel = |q: &mut Value| {
        let weights = &mut q["config_groups"]["group_0"]["weights"];
        (weights["strategy"], weights["group_size"]) = ("channel".into(), Value::Null);
    };
    let source = foreign(&[codes, scales], channel).unwrap();
    assert_eq!(source.meta(source.find("a.weight").unwrap()).dtype, Dtype::Block(&float::BF16));
    let found = values(&source, "a.weight");
    assert_eq!(found[..8], [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]);
    // The last word is 0x7654321b.
    assert_eq!(found[96 + 88..], [6.0, -14.0, -12.0, -10.0, -8.0, -6.0, -4.0, -2.0]);
}

#[test]
fn groups_that_config_json_does_not_state_are_refused() {
    let scales = ("a.weight_scale", "BF16", &[2, 1][..], vec![2; 4]);
    names(&foreign(&[codes(), scales], same).unwrap_err(), &["groups of 64", "groups of 32"]);
}

//! Folders of compressed-tensors with weights in floats of four and eight bits.

use halfbyte_formats::checkpoint::Checkpoint;
use halfbyte_formats::joined::Joined;
use halfbyte_formats::summary::summarize;
use halfbyte_formats::{Dtype, Error, TensorSource};
use kernels::{float, table};
use serde_json::{Value, json};

use crate::names;
use crate::packed::{self, Entry, bf16, try_values, values};

/// What the codes 0 to 7 are; the others are their negatives. (OCP Microscaling: E2M1.)
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn config(format: &str) -> Value {
    let (bits, strategy) = if format.starts_with("float") { (8, "channel") } else { (4, "tensor_group") };
    let weights = json!({ "num_bits": bits, "type": "float", "symmetric": true, "strategy": strategy });
    let activations = json!({ "num_bits": 8, "dynamic": true });
    let group = json!({ "targets": ["Linear"], "weights": weights, "input_activations": activations });
    json!({ "quantization_config": {
        "quant_method": "compressed-tensors", "format": format, "config_groups": { "group_0": group },
    } })
}

/// The folder of such tensors whose configuration has one scheme of this format.
fn open(tensors: &[Entry], format: &str) -> Result<Joined, Error> {
    packed::open(tensors, &config(format))
}

/// [2, 64] codes, all of them in order over and over; the first of a pair in the low bits.
fn codes() -> Entry {
    let byte = |i: usize| (2 * i % 16 + (2 * i + 1) % 16 * 16) as u8;
    ("a.weight_packed", "U8", &[2, 32], (0..64).map(byte).collect())
}

/// The values of [`codes`], with the scale of each row's groups of `group`.
fn expected(group: usize, scale: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let value = |i: usize| if i % 16 < 8 { E2M1[i % 8] } else { -E2M1[i % 8] };
    (0..128).map(|i| value(i) * scale(i / 64, i % 64 / group)).collect()
}

#[test]
fn mxfp4_has_powers_of_two_as_scales() {
    let scales = ("a.weight_scale", "U8", &[2, 2][..], vec![127, 125, 130, 128]);
    let source = open(&[codes(), scales], "mxfp4-pack-quantized").unwrap();
    assert_eq!(
        source.meta(source.find("a.weight").unwrap()).dtype,
        Dtype::Block(table::mlx("mxfp4").unwrap())
    );
    let scale = |row: usize, group: usize| [[1.0, 0.25], [8.0, 2.0]][row][group];
    assert_eq!(values(&source, "a.weight"), expected(32, scale));
    let scales = ("a.weight_scale", "U8", &[2, 4][..], vec![127; 8]);
    names(&open(&[codes(), scales], "mxfp4-pack-quantized").unwrap_err(), &["groups of 16", "are 32"]);
}

/// E4M3: 0x38 is 1, 0x30 is 0.5, 0x40 is 2, 0x44 is 3.
fn nvfp4_scales() -> Entry {
    ("a.weight_scale", "F8_E4M3", &[2, 4], vec![0x38, 0x30, 0x40, 0x44, 0x30, 0x30, 0x38, 0x38])
}

fn divisor(value: f32) -> Entry {
    ("a.weight_global_scale", "F32", &[1], value.to_le_bytes().to_vec())
}

#[test]
fn nvfp4s_scales_have_a_divisor() {
    let of_inputs = ("a.input_global_scale", "F32", &[1][..], 3f32.to_le_bytes().to_vec());
    let tensors = [codes(), nvfp4_scales(), divisor(8.0), of_inputs];
    let source = open(&tensors, "nvfp4-pack-quantized").unwrap();
    assert_eq!(source.tensors().len(), 1);
    let id = source.find("a.weight").unwrap();
    assert_eq!(source.meta(id).dtype, Dtype::Block(&float::F32));
    let scale = |row: usize, group: usize| [[1.0, 0.5, 2.0, 3.0], [0.5, 0.5, 1.0, 1.0]][row][group] / 8.0;
    assert_eq!(values(&source, "a.weight"), expected(16, scale));

    let folder = packed::folder(&tensors, &config("nvfp4-pack-quantized"));
    let summary = summarize(&Checkpoint::open(&folder.path().into()).unwrap()).unwrap();
    let tensor = &summary.tensors[0];
    assert_eq!(
        (summary.container, &*tensor.format, tensor.bytes),
        ("compressed-tensors", "nvfp4", 64 + 8 + 4)
    );
}

#[test]
fn a_divisor_that_is_missing_or_impossible_is_named() {
    let open =
        |divisor: &[Entry]| open(&[&[codes(), nvfp4_scales()], divisor].concat(), "nvfp4-pack-quantized");
    names(&open(&[]).unwrap_err(), &["a.weight_packed", "no a.weight_global_scale", "fetch"]);
    let two = ("a.weight_global_scale", "F32", &[2][..], vec![0; 8]);
    names(&open(&[two]).unwrap_err(), &["a.weight_global_scale f32 [2]", "one number in F32"]);
    let half = ("a.weight_global_scale", "F16", &[1][..], vec![0; 2]);
    names(&open(&[half]).unwrap_err(), &["a.weight_global_scale f16 [1]", "F32"]);
    for value in [0.0, f32::NAN, f32::INFINITY] {
        let error = try_values(&open(&[divisor(value)]).unwrap(), "a.weight").unwrap_err();
        names(&error, &["model.safetensors", "a.weight_global_scale", &value.to_string(), "divided"]);
    }
}

#[test]
fn fp8_has_scales_of_rows_or_of_the_tensor() {
    let weight: Entry = ("a.weight", "F8_E4M3", &[2, 2], vec![0x38, 0x30, 0x40, 0xb8]);
    let input = ("a.input_scale", "BF16", &[1][..], vec![0; 2]);
    let rows = ("a.weight_scale", "BF16", &[2, 1][..], [2.0, 0.5].into_iter().flat_map(bf16).collect());
    let one = ("a.weight_scale", "F32", &[1][..], 4f32.to_le_bytes().to_vec());
    let scalar = ("a.weight_scale", "F32", &[][..], 4f32.to_le_bytes().to_vec());
    for (scales, expected) in
        [(rows, [2.0, 1.0, 1.0, -0.5]), (one, [4.0, 2.0, 8.0, -4.0]), (scalar, [4.0, 2.0, 8.0, -4.0])]
    {
        let source = open(&[weight.clone(), scales, input.clone()], "float-quantized").unwrap();
        assert!(source.find("a.input_scale").is_none());
        assert_eq!(values(&source, "a.weight"), expected);
    }
    let error = open(&[weight, ("a.weight_scale", "BF16", &[2, 1], vec![0; 4])], "nvfp4-pack-quantized");
    names(&error.unwrap_err(), &["a.weight is float-quantized", "nvfp4-pack-quantized"]);
}

#[test]
fn schemes_may_be_mixed_if_each_says_its_format() {
    let mut config = config("mixed-precision");
    let groups = &mut config["quantization_config"]["config_groups"];
    groups["group_0"]["format"] = "nvfp4-pack-quantized".into();
    groups["group_1"] = json!({
        "format": "float-quantized", "weights": { "num_bits": 8, "type": "float", "strategy": "tensor" },
    });
    let weight: Entry = ("b.weight", "F8_E4M3", &[1, 2], vec![0x38, 0x40]);
    let scale = ("b.weight_scale", "F32", &[1][..], 1f32.to_le_bytes().to_vec());
    let tensors = [codes(), nvfp4_scales(), divisor(1.0), weight, scale];
    let source = packed::open(&tensors, &config).unwrap();
    assert_eq!(values(&source, "b.weight"), [1.0, 2.0]);
    assert_eq!(values(&source, "a.weight")[..3], [0.0, 0.5, 1.0]);

    config["quantization_config"]["config_groups"]["group_1"]["weights"]["type"] = "int".into();
    names(&packed::open(&tensors, &config).unwrap_err(), &["group_1.weights.type is \"int\""]);
}

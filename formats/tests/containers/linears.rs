//! How compressed-tensors, GPTQ and AWQ store a quantized linear, and what they say of it.

use std::path::Path;

use halfbyte_formats::arrangement::{AWQ_ORDER, Eights, IN_ORDER, Order};
use halfbyte_formats::folder::Options;
use halfbyte_formats::layout::Fill;
use halfbyte_formats::linears::{Packing, Tensor};
use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::{Error, Layout, TensorSource, awq, compressed_tensors, gptq};
use kernels::mxfp4::MLX_MXFP4;
use kernels::nvfp4::COMPRESSED_NVFP4;
use kernels::{Format, float, w4a16, w4a16_asym};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{names, write};

const OPTIONS: Options<'_> = Options { shard_size: u64::MAX, shard_after: &[], metadata: &[] };

/// A matrix of 16 rows and 256 columns.
fn linear<'a>(name: &'a str, format: &'static Format) -> Tensor<'a> {
    Tensor { name, linear: true, layer: Some(0), shape: &[16, 256], format }
}

/// The tensors of a folder with one linear: name, type and shape.
fn stored(packing: &Packing, format: &'static Format) -> (Vec<(String, String, Vec<u64>)>, Layout) {
    let layout = packing.layout(&[linear("m.weight", format)], &OPTIONS).unwrap();
    let folder = TempDir::new().unwrap();
    write(folder.path(), &layout);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let of = |t: &halfbyte_formats::TensorMeta| (t.name.clone(), t.dtype.to_string(), t.shape.clone());
    let mut tensors: Vec<_> = source.tensors().iter().map(of).collect();
    tensors.sort();
    (tensors, layout)
}

fn tensor(name: &str, dtype: &str, shape: &[u64]) -> (String, String, Vec<u64>) {
    (name.to_owned(), dtype.to_owned(), shape.to_vec())
}

#[test]
fn gptq_stores_columns_zeros_that_are_known_and_groups() {
    for (packing, zeros) in [(&gptq::V1, 0x77), (&gptq::V2, 0x88)] {
        let (tensors, layout) = stored(packing, &w4a16::F16[2]);
        let due = [
            tensor("m.g_idx", "I32", &[256]),
            tensor("m.qweight", "I32", &[32, 16]),
            tensor("m.qzeros", "I32", &[2, 2]),
            tensor("m.scales", "f16", &[2, 16]),
        ];
        assert_eq!(tensors, due);
        let known: Vec<_> = layout.known[&0].iter().map(|known| (known.fill, known.at.len)).collect();
        assert_eq!(known, [(Fill::Groups(128), 1024), (Fill::Byte(zeros), 16)]);
        assert_eq!(layout.arranged[&(0, 0)].order, Order::Transposed { unit: 4 });
        assert_eq!(layout.arranged[&(0, 1)].order, Order::Transposed { unit: 2 });
        assert_eq!(layout.tensor_bytes(0), 2048 + 64 + 16 + 1024);
    }
}

#[test]
fn awq_stores_columns_of_eight_rows_to_a_word() {
    let (tensors, layout) = stored(&awq::PACKING, &w4a16_asym::F16[1]);
    let due = [
        tensor("m.qweight", "I32", &[256, 2]),
        tensor("m.qzeros", "I32", &[4, 2]),
        tensor("m.scales", "f16", &[4, 16]),
    ];
    assert_eq!(tensors, due);
    for (plane, bits) in [(0, 4), (2, 8)] {
        let order = Order::Eights(Eights { bits, places: AWQ_ORDER, across: true, less: 0 });
        assert_eq!(layout.arranged[&(0, plane)].order, order);
    }
    assert_eq!(layout.tensor_bytes(0), 2048 + 32 + 128);
}

#[test]
fn compressed_tensors_packs_zero_points_by_rows_and_mxfp4_in_bytes() {
    let packing = &compressed_tensors::PACKING;
    let (tensors, layout) = stored(packing, &w4a16_asym::BF16[2]);
    let due = [
        tensor("m.weight_packed", "I32", &[16, 32]),
        tensor("m.weight_scale", "bf16", &[16, 2]),
        tensor("m.weight_shape", "I64", &[2]),
        tensor("m.weight_zero_point", "I32", &[2, 2]),
    ];
    assert_eq!(tensors, due);
    let order = Order::Eights(Eights { bits: 8, places: IN_ORDER, across: false, less: 0 });
    assert_eq!(layout.arranged[&(0, 2)].order, order);
    assert_eq!((layout.planes[0][2].len, layout.tensor_bytes(0)), (16, 2048 + 64 + 16));
    // Rows that fill no word.
    let odd = Tensor { shape: &[11, 128], ..linear("m.weight", &w4a16_asym::F16[2]) };
    assert_eq!(packing.layout(&[odd], &OPTIONS).unwrap().planes[0][2].len, 8);

    let (tensors, layout) = stored(packing, &MLX_MXFP4);
    let due = [tensor("m.weight_packed", "U8", &[16, 128]), tensor("m.weight_scale", "U8", &[16, 8])];
    assert_eq!(tensors, due);
    assert!(layout.arranged.is_empty());
}

#[test]
fn all_but_bytes_beside_the_header_are_aligned() {
    let tensors = [linear("a.weight", &w4a16::F16[2]), linear("b.weight", &w4a16::F16[2])];
    let layout = gptq::V1.layout(&tensors, &OPTIONS).unwrap();
    let mut places: Vec<_> = layout.planes.iter().flatten().copied().collect();
    places.extend(layout.known.values().flatten().map(|known| known.at));
    places.sort_by_key(|place| place.offset);
    let mut end = layout.files[0].header.len() as u64;
    for place in places {
        let alignment = 1 << place.len.trailing_zeros().min(6);
        assert!(place.offset == end && place.offset.is_multiple_of(alignment), "{place:?}");
        end += place.len;
    }
    assert_eq!(end, layout.files[0].len);
}

/// The quantization that config.json states.
fn stated(packing: &Packing, tensors: &[Tensor<'_>]) -> Value {
    let text = packing.config(Path::new("config.json"), "{}", tensors).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["quantization_config"].take()
}

#[test]
fn configurations_say_what_is_quantized_and_what_is_not() {
    let tensors = |format| {
        [
            linear("layers.0.q.weight", format),
            linear("layers.0.gate.weight", &float::BF16),
            linear("lm_head.weight", &float::BF16),
            Tensor { linear: false, ..linear("embed.weight", &float::BF16) },
        ]
    };
    for (packing, version) in [(&gptq::V1, "gptq"), (&gptq::V2, "gptq_v2")] {
        let mut config = stated(packing, &tensors(&w4a16::F16[1]));
        let quantizer = config["meta"]["quantizer"][0].take();
        assert!(quantizer.as_str().unwrap().starts_with("halfbyte:"));
        let due = json!({
            "quant_method": "gptq", "bits": 4, "group_size": 64, "sym": true, "desc_act": false, "lm_head": false,
            "checkpoint_format": version, "pack_dtype": "int32", "meta": { "quantizer": [null] },
            "dynamic": { "-:^layers\\.0\\.gate$": {} },
        });
        assert_eq!(config, due);
        assert!(stated(packing, &[linear("q.weight", &w4a16::F16[0])]).get("dynamic").is_none());
    }
    let due = json!({
        "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm",
        "modules_to_not_convert": ["layers.0.gate", "lm_head"],
    });
    assert_eq!(stated(&awq::PACKING, &tensors(&w4a16_asym::F16[2])), due);
    assert!(stated(&awq::PACKING, &[linear("q.weight", &float::F16)]).is_null());

    let packing = &compressed_tensors::PACKING;
    let asymmetric = stated(packing, &tensors(&w4a16_asym::BF16[2]));
    assert_eq!(asymmetric["format"], "pack-quantized");
    assert_eq!(asymmetric["config_groups"]["group_0"]["weights"]["symmetric"], false);
    let mxfp4 = stated(packing, &tensors(&MLX_MXFP4));
    assert_eq!(mxfp4["format"], "mxfp4-pack-quantized");
    let group = &mxfp4["config_groups"]["group_0"];
    let weights = &group["weights"];
    assert_eq!((&group["format"], &weights["type"]), (&json!("mxfp4-pack-quantized"), &json!("float")));
    assert_eq!((&weights["group_size"], &weights["scale_dtype"]), (&json!(32), &json!("torch.uint8")));
    let mixed = stated(packing, &[linear("a.weight", &MLX_MXFP4), linear("b.weight", &w4a16::BF16[0])]);
    assert_eq!(mixed["format"], "mixed-precision");
    assert_eq!(mixed["config_groups"]["group_1"]["format"], "pack-quantized");
    assert_eq!(mixed["config_groups"]["group_1"]["targets"], json!(["b"]));
}

#[test]
fn what_a_container_can_not_hold_is_refused() {
    let refused = |packing: &Packing, tensors: &[Tensor<'_>]| packing.layout(tensors, &OPTIONS).unwrap_err();
    let wrong = refused(&gptq::V1, &[linear("m.weight", &w4a16_asym::F16[2])]);
    names(&wrong, &["m.weight", "GPTQ", "w4a16-asym-g128-f16"]);
    names(&refused(&gptq::V1, &[linear("m.weight", &w4a16::BF16[2])]), &["GPTQ", "w4a16-g128"]);
    let two = [linear("a.weight", &w4a16_asym::F16[2]), linear("b.weight", &w4a16_asym::F16[0])];
    names(
        &refused(&awq::PACKING, &two),
        &["b.weight", "AWQ", "a.weight", "w4a16-asym-g128", "w4a16-asym-g32"],
    );
    let odd = Tensor { shape: &[12, 128], ..linear("m.weight", &w4a16::F16[2]) };
    assert!(matches!(refused(&gptq::V2, &[odd]), Error::BadShape { .. }));
    let huge = Tensor { shape: &[1 << 40, 1 << 40], ..linear("m.weight", &w4a16::F16[2]) };
    assert!(matches!(refused(&gptq::V2, &[huge]), Error::BadShape { .. }));
}

#[test]
fn bits_are_those_in_the_files_and_short_names_are_known() {
    let named = |packing: &Packing| packing.named().iter().map(|f| f.name).collect::<Vec<_>>();
    assert!(named(&gptq::V1).contains(&"w4a16-g128") && named(&gptq::V1).contains(&"w4a16-g128-f16"));
    assert!(!named(&gptq::V1).iter().any(|name| name.contains("asym") || name.ends_with("-g128-f32")));
    assert!(named(&awq::PACKING).contains(&"w4a16-asym-g64"));
    assert_eq!(gptq::V1.scaled(&w4a16::BF16[2], &float::BF16), &w4a16::F16[2]);
    let compressed = &compressed_tensors::PACKING;
    assert_eq!(compressed.scaled(&w4a16_asym::BF16[2], &float::F16), &w4a16_asym::F16[2]);
    assert_eq!(compressed.scaled(&w4a16_asym::F32[2], &float::F16), &w4a16_asym::F32[2]);
    // Codes, scales and zero points of 4 bits; in GPTQ the columns' groups come to almost nothing.
    assert_eq!(compressed.bits_per_weight(&w4a16_asym::BF16[2]), 4.0 + 20.0 / 128.0);
    assert_eq!(awq::PACKING.bits_per_weight(&w4a16_asym::F16[0]), 4.0 + 20.0 / 32.0);
    assert!((gptq::V1.bits_per_weight(&w4a16::F16[2]) - (4.0 + 20.0 / 128.0)).abs() < 1e-3);
}

/// A divisor of 4 bytes beside shapes of 16.
#[test]
fn what_stands_beside_the_header_is_aligned() {
    let all = [
        linear("m.weight", &w4a16::BF16[0]),
        linear("n.weight", &COMPRESSED_NVFP4),
        linear("o.weight", &w4a16::BF16[0]),
    ];
    let layout = compressed_tensors::PACKING.layout(&all, &OPTIONS).unwrap();
    let header = &layout.files[0].header;
    let len = u64::from_le_bytes(header[..8].try_into().unwrap());
    let names: Value = serde_json::from_slice(&header[8..8 + len as usize]).unwrap();
    for (name, bytes) in [("m.weight_shape", 8), ("n.weight_global_scale", 4), ("o.weight_shape", 8)] {
        let start = names[name]["data_offsets"][0].as_u64().unwrap();
        assert!((8 + len + start).is_multiple_of(bytes), "{name} at {start}");
    }
}

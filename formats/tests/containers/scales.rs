use std::path::Path;

use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::scales::{DEFAULT_BLOCK, Scales};
use halfbyte_formats::{Error, TensorSource};

use crate::{folder, names, safetensors_file};

/// Pairs the weights of a checkpoint of these tensors (name, type, shape), each in a file of its own.
fn find(tensors: &[(&str, &str, &[u64])], block: [u64; 2]) -> (Safetensors, Result<Scales, Error>) {
    let mut files = Vec::new();
    let mut map = Vec::new();
    for (i, (name, dtype, shape)) in tensors.iter().enumerate() {
        let bytes = shape.iter().product::<u64>() as usize * if *dtype == "F32" { 4 } else { 1 };
        let header =
            format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[0,{bytes}]}}}}"#);
        let file = format!("{i}.safetensors");
        map.push(format!(r#""{name}":"{file}""#));
        files.push((file, safetensors_file(&header, &vec![0; bytes])));
    }
    files.push((
        "model.safetensors.index.json".to_owned(),
        format!(r#"{{"weight_map":{{{}}}}}"#, map.join(",")).into_bytes(),
    ));
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let folder = folder(&files);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let scales = Scales::find(&source, block);
    (source, scales)
}

#[test]
fn pairs_across_shards_with_cut_edge_blocks() {
    let (source, scales) = find(
        &[("w", "F8_E4M3", &[130, 257]), ("w_scale_inv", "F32", &[2, 3]), ("v", "F32", &[4])],
        [128, 128],
    );
    let scales = scales.unwrap();
    assert_eq!(scales.len(), 1);
    let scale = scales.of(source.find("w").unwrap()).unwrap();
    assert_eq!(scale.scale, source.find("w_scale_inv").unwrap());
    assert_eq!(scale.columns, 3);
    assert_eq!([0, 127, 128, 129].map(|row| scale.row_of(row)), [0, 0, 1, 1]);
    assert!(scales.of(source.find("v").unwrap()).is_none());
}

#[test]
fn stacked_matrices_start_a_row_of_scales_each() {
    let (source, scales) =
        find(&[("w", "F8_E4M3", &[3, 5, 8]), ("w_scale_inv", "F8_E8M0", &[3, 2, 2])], [4, 4]);
    let scales = scales.unwrap();
    let scale = scales.of(source.find("w").unwrap()).unwrap();
    assert_eq!([0, 3, 4, 5, 9, 10, 14].map(|row| scale.row_of(row)), [0, 0, 1, 2, 3, 4, 5]);
}

/// [4, 6] with one scale, one for each row, or blocks, under either name.
#[test]
fn one_scale_may_be_for_a_tensor_a_row_or_a_block() {
    let rows_of = |name: &str, shape: &[u64]| {
        let (source, scales) = find(&[("a.weight", "F8_E4M3", &[4, 6]), (name, "F32", shape)], [2, 4]);
        let scale = *scales.unwrap().of(source.find("a.weight").unwrap()).unwrap();
        (scale.columns, [0, 1, 2, 3].map(|row| scale.row_of(row)), scale.block)
    };
    for name in ["a.weight_scale", "a.weight_scale_inv"] {
        for shape in [&[][..], &[1], &[1, 1]] {
            assert_eq!(rows_of(name, shape), (1, [0, 0, 0, 0], [4, 6]));
        }
        for shape in [&[4][..], &[4, 1]] {
            assert_eq!(rows_of(name, shape), (1, [0, 1, 2, 3], [1, 6]));
        }
        assert_eq!(rows_of(name, &[2, 2]), (2, [0, 0, 1, 1], [2, 4]));
    }
    let stacked = |shape: &[u64]| {
        let (source, scales) = find(&[("w", "F8_E4M3", &[3, 2, 6]), ("w_scale", "F32", shape)], [128, 128]);
        let scale = *scales.unwrap().of(source.find("w").unwrap()).unwrap();
        [0, 1, 2, 3, 4, 5].map(|row| scale.row_of(row))
    };
    assert_eq!(stacked(&[3, 1, 1]), [0, 0, 1, 1, 2, 2]);
    assert_eq!(stacked(&[3]), [0, 0, 1, 1, 2, 2]);
    assert_eq!(stacked(&[3, 2, 1]), [0, 1, 2, 3, 4, 5]);
    assert_eq!(stacked(&[1]), [0; 6]);
}

#[test]
fn other_tensors_may_have_a_scale_of_any_kind() {
    let (_, scales) = find(&[("attn.k_scale", "F32", &[1]), ("layer_scale", "F32", &[4])], DEFAULT_BLOCK);
    assert!(scales.unwrap().is_empty());
    let (_, scales) = find(&[("a.weight_scale", "F32", &[1])], DEFAULT_BLOCK);
    names(&scales.unwrap_err(), &["a.weight_scale", "no FP8 tensor a.weight"]);
}

#[test]
fn every_fp8_weight_of_tiny_deepseek_has_its_scales() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let source = Safetensors::open_folder(&models.join("tiny-deepseek")).unwrap();
    let scales = Scales::find(&source, DEFAULT_BLOCK).unwrap();
    let named = source.tensors().iter().filter(|t| t.name.ends_with("_scale_inv")).count();
    assert!(named > 100);
    assert_eq!(scales.len(), named);
}

#[test]
fn a_missing_scale_is_named() {
    let (_, scales) = find(&[("a.weight", "F8_E4M3", &[4, 4])], DEFAULT_BLOCK);
    let error = scales.unwrap_err();
    assert!(matches!(error, Error::MissingScale { .. }));
    names(&error, &["a.weight", "a.weight_scale_inv"]);
}

#[test]
fn scales_of_another_block_size_are_refused() {
    let (_, scales) = find(&[("w", "F8_E4M3", &[256, 64]), ("w_scale_inv", "F32", &[2, 1])], [32, 32]);
    let error = scales.unwrap_err();
    assert!(matches!(error, Error::ScaleShape { .. }));
    names(&error, &["w_scale_inv", "[256, 64]", "[32, 32]", "[8, 2]", "[2, 1]", "weight_block_size"]);
}

#[test]
fn scales_must_be_floats() {
    let (_, scales) = find(&[("w", "F8_E4M3", &[4, 4]), ("w_scale_inv", "U8", &[1, 1])], DEFAULT_BLOCK);
    let error = scales.unwrap_err();
    assert!(matches!(error, Error::ScaleDtype { .. }));
    names(&error, &["w_scale_inv", "U8", "F8_E8M0"]);
}

#[test]
fn a_scale_without_its_weight_is_refused() {
    let (_, scales) = find(&[("w_scale_inv", "F32", &[1, 1])], DEFAULT_BLOCK);
    let error = scales.unwrap_err();
    assert!(matches!(error, Error::LeftoverScale { .. }));
    names(&error, &["w_scale_inv", "tensor w"]);
}

#[test]
fn a_scale_of_a_weight_that_is_not_fp8_is_refused() {
    let (_, scales) = find(&[("w", "F32", &[4, 4]), ("w_scale_inv", "F32", &[1, 1])], DEFAULT_BLOCK);
    assert!(matches!(scales.unwrap_err(), Error::LeftoverScale { .. }));
}

#[test]
fn a_block_of_zero_rows_is_refused() {
    let (_, scales) = find(&[("w", "F8_E4M3", &[4, 4]), ("w_scale_inv", "F32", &[1, 1])], [0, 128]);
    let error = scales.unwrap_err();
    assert!(matches!(error, Error::BadBlock { .. }));
    names(&error, &["[0, 128]"]);
}

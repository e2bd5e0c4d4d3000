//! Rows as they are stored: decoded by whoever gets them, they are what the reader decodes.

use halfbyte_formats::output::{Class, Map, Part};
use halfbyte_formats::rows::{self, Stored};
use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::scales::Scales;
use halfbyte_formats::{Content, OutputTensor, TensorSource};
use kernels::Isa;
use kernels::fp8::widen_block_scaled;

use crate::packed::{self, bf16};
use crate::{folder, safetensors_file};

/// A matrix of 6 × 8 in BF16, and one of 6 × 8 in FP8 with scales for blocks of 4 × 4.
fn source() -> (tempfile::TempDir, Safetensors) {
    let header = r#"{"a":{"dtype":"BF16","shape":[6,8],"data_offsets":[0,96]},
        "f":{"dtype":"F8_E4M3","shape":[6,8],"data_offsets":[96,144]},
        "f_scale_inv":{"dtype":"F32","shape":[2,2],"data_offsets":[144,160]}}"#;
    let mut data: Vec<u8> = (0..48u16).flat_map(|i| (0x3f80 + 3 * i).to_le_bytes()).collect();
    data.extend(0x20..0x50u8);
    data.extend([1.0f32, 0.5, 2.0, 0.25].iter().flat_map(|scale| scale.to_le_bytes()));
    let folder = folder(&[("model.safetensors", safetensors_file(header, &data))]);
    let source = Safetensors::open_file(&folder.path().join("model.safetensors")).unwrap();
    (folder, source)
}

fn tensor(source: &Safetensors, parts: &[(&str, std::ops::Range<u64>, Map)]) -> OutputTensor {
    let part = |(name, rows, map): &(&str, std::ops::Range<u64>, Map)| Part {
        source: source.find(name).unwrap(),
        columns: 8,
        rows: rows.clone(),
        map: *map,
    };
    let parts: Vec<Part> = parts.iter().map(part).collect();
    let rows = parts.iter().map(|part| part.output_shape().0).sum();
    let (shape, content) = (vec![rows, 8], Content::Parts(parts));
    OutputTensor { name: "t".to_owned(), shape, class: Class::Other, layer: None, quantizable: true, content }
}

/// Rows `rows` of a tensor, both ways.
fn both(source: &Safetensors, tensor: &OutputTensor, rows: std::ops::Range<u64>) -> [Vec<f32>; 2] {
    let scales = Scales::find(source, [4, 4]).unwrap();
    let stored = Stored::of(source, &scales, tensor).expect("rows of one form");
    let mut planes = vec![Vec::new(); stored.planes(8).len()];
    stored.read(source, &scales, tensor, rows.clone(), &mut planes).unwrap();
    let count = (rows.end - rows.start) as usize;
    for (plane, bytes) in planes.iter().zip(stored.planes(8)) {
        assert_eq!(plane.len(), count * bytes as usize);
    }
    let mut found = vec![0.0; 8 * count];
    match stored {
        Stored::Block(format) => (format.decode)(format, Isa::detect(), &[&planes[0]], &mut found),
        Stored::Fp8 { block } => {
            let scales: Vec<f32> =
                planes[1].as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
            let rows = planes[0].chunks(8).zip(scales.chunks(8 / block as usize)).zip(found.chunks_mut(8));
            for ((codes, scales), out) in rows {
                widen_block_scaled(Isa::detect(), codes, 8, 0, scales, (1, block as usize), out);
            }
        }
    }
    let mut expected = vec![0.0; 8 * count];
    rows::decode(source, &scales, tensor, rows, Isa::detect(), &mut expected).unwrap();
    [found, expected]
}

#[test]
fn stored_rows_are_the_rows() {
    let (_folder, source) = source();
    for map in [Map::Identity, Map::InterleaveHalves, Map::EvenRows, Map::OddRows] {
        for name in ["a", "f"] {
            // Two parts, so that rows reach over an end.
            let tensor = tensor(&source, &[(name, 0..4, map), (name, 2..6, map)]);
            let all = tensor.rows();
            for rows in [0..all, 1..2, 1..all, all / 2 - 1..all / 2 + 1] {
                let [found, expected] = both(&source, &tensor, rows.clone());
                assert_eq!(found, expected, "{map:?} of {name}, rows {rows:?}");
            }
        }
    }
}

#[test]
fn rows_of_no_one_form_have_none() {
    let (_folder, source) = source();
    let scales = Scales::find(&source, [4, 4]).unwrap();
    for parts in [&[("a", 0..6, Map::PlusOne)][..], &[("a", 0..3, Map::Identity), ("f", 0..3, Map::Identity)]]
    {
        assert_eq!(Stored::of(&source, &scales, &tensor(&source, parts)), None);
    }
}

/// Devices decode blocks of FP8 that are at most 128 long.
#[test]
fn a_scale_of_a_row_is_stated_for_each_part_of_it() {
    let tensors = [
        ("a.weight", "F8_E4M3", &[2, 256][..], vec![0x38; 512]),
        ("a.weight_scale", "BF16", &[2, 1], [0.5, 3.0].into_iter().flat_map(bf16).collect()),
    ];
    let folder = packed::folder(&tensors, &serde_json::json!({}));
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let scales = Scales::find(&source, [128, 128]).unwrap();
    let id = source.find("a.weight").unwrap();
    let part = Part { source: id, columns: 256, rows: 0..2, map: Map::Identity };
    let (shape, content) = (vec![2, 256], Content::Parts(vec![part]));
    let name = "t".to_owned();
    let tensor = OutputTensor { name, shape, class: Class::Other, layer: None, quantizable: true, content };
    let stored = Stored::of(&source, &scales, &tensor).unwrap();
    assert_eq!((stored, stored.planes(256)), (Stored::Fp8 { block: 128 }, vec![256, 8]));
    let mut planes = vec![Vec::new(); 2];
    stored.read(&source, &scales, &tensor, 0..2, &mut planes).unwrap();
    let expected: Vec<u8> = [0.5f32, 0.5, 3.0, 3.0].into_iter().flat_map(f32::to_le_bytes).collect();
    assert_eq!(planes, [vec![0x38; 512], expected]);
}

use halfbyte_formats::gguf::write::{Options, Tensor, layout};
use halfbyte_formats::gguf::{Gguf, Metadata, Value};
use halfbyte_formats::{Error, TensorSource};
use kernels::{Format, table};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{names, write};

const OPTIONS: Options<'_> = Options { stem: "model", alignment: 32, shard_size: None, shard_after: &[] };

fn format(name: &str) -> &'static Format {
    table::gguf(name).unwrap()
}

fn tensor<'a>(name: &'a str, shape: &'a [u64], format_name: &str) -> Tensor<'a> {
    Tensor { name, layer: None, shape, format: format(format_name) }
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("a.numbers", vec![1u32, 2, 3]);
    metadata.set("a.words", vec!["x".to_owned(), "grün".to_owned()]);
    metadata.set("a.truths", vec![true, false]);
    metadata.set("a.double", 0.25f64);
    metadata
}

#[test]
fn what_is_written_is_read() {
    let folder = TempDir::new().unwrap();
    let tensors = [tensor("a", &[3, 256], "q4_k"), tensor("b", &[2, 3, 5], "f16"), tensor("c", &[7], "f32")];
    let layout = layout(&metadata(), &tensors, &OPTIONS).unwrap();
    write(folder.path(), &layout);
    let source = Gguf::open(&folder.path().join("model.gguf")).unwrap();
    assert_eq!(source.metadata(), &metadata());
    for (i, (meta, tensor)) in source.tensors().iter().zip(&tensors).enumerate() {
        assert_eq!((meta.name.as_str(), meta.shape.as_slice()), (tensor.name, tensor.shape));
        assert_eq!(layout.planes[i][0].offset, meta.offset);
        let mut bytes = vec![0; meta.len as usize];
        source.read_at(source.find(tensor.name).unwrap(), 0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == i as u8));
    }
    assert_eq!(layout.planes[2][0].len, 28);
    assert_eq!(layout.files[0].len % 32, 0);
}

#[test]
fn tensors_start_at_multiples_of_the_alignment() {
    let folder = TempDir::new().unwrap();
    let tensors = [tensor("a", &[3], "f32"), tensor("b", &[5], "f32")];
    let mut given = metadata();
    given.set("general.alignment", 64u32);
    let layout =
        layout(&given, &tensors, &Options { alignment: 4096, shard_size: Some(12), ..OPTIONS }).unwrap();
    assert_eq!(layout.files.len(), 2);
    for (file, planes) in layout.files.iter().zip(&layout.planes) {
        assert_eq!(planes[0].offset, 4096);
        assert_eq!(file.len, 8192);
    }
    write(folder.path(), &layout);
    let source = Gguf::open(&folder.path().join(&layout.files[0].name)).unwrap();
    assert_eq!(source.metadata().get("general.alignment"), Some(&Value::U32(4096)));
    assert_eq!(source.tensors()[1].offset, 4096);
}

#[test]
fn an_alignment_taken_over_from_a_source_is_dropped() {
    let mut given = metadata();
    given.set("general.alignment", 64u32);
    let with = layout(&given, &[tensor("a", &[3], "f32")], &OPTIONS).unwrap();
    let without = layout(&metadata(), &[tensor("a", &[3], "f32")], &OPTIONS).unwrap();
    assert_eq!(with.files[0].header, without.files[0].header);
}

#[test]
fn shards_end_at_tensors_and_a_large_tensor_has_its_own() {
    let folder = TempDir::new().unwrap();
    let names = ["a", "b", "c", "d", "e"];
    let shapes: [&[u64]; 5] = [&[16], &[16], &[100], &[8], &[8]];
    let tensors: Vec<_> = names.iter().zip(shapes).map(|(name, shape)| tensor(name, shape, "f32")).collect();
    let layout = layout(&metadata(), &tensors, &Options { shard_size: Some(128), ..OPTIONS }).unwrap();
    let files: Vec<_> = layout.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        files,
        ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"]
    );
    let placed: Vec<_> = layout.planes.iter().map(|p| p[0].file).collect();
    assert_eq!(placed, [0, 0, 1, 2, 2]);

    write(folder.path(), &layout);
    let source = Gguf::open(&folder.path().join(files[0])).unwrap();
    assert_eq!(source.tensors().len(), 5);
    assert_eq!(source.metadata().get("general.architecture"), Some(&Value::String("llama".to_owned())));
    assert_eq!(source.metadata().get("split.no"), Some(&Value::U16(0)));
    assert_eq!(source.metadata().get("split.count"), Some(&Value::U16(3)));
    assert_eq!(source.metadata().get("split.tensors.count"), Some(&Value::I32(5)));
}

#[test]
fn shards_end_with_layers() {
    let layers = [None, Some(0), Some(0), Some(1), Some(1), None];
    let names = ["embedding", "a", "b", "c", "d", "head"];
    let tensors: Vec<_> = names
        .iter()
        .zip(layers)
        .map(|(name, layer)| Tensor { layer, ..tensor(name, &[16], "f32") })
        .collect();
    let files = |shard_size, shard_after: &[u32]| {
        let layout = layout(&metadata(), &tensors, &Options { shard_size, shard_after, ..OPTIONS }).unwrap();
        layout.planes.iter().map(|planes| planes[0].file).collect::<Vec<_>>()
    };
    assert_eq!(files(Some(256), &[]), [0, 0, 0, 1, 1, 1]);
    assert_eq!(files(None, &[1]), [0, 0, 0, 0, 0, 1]);
    assert_eq!(files(Some(256), &[0, 1]), [0, 0, 0, 1, 1, 2]);
}

#[test]
fn the_splits_of_a_source_are_forgotten() {
    let mut given = metadata();
    given.set("split.count", 3u16);
    let layout =
        layout(&given, &[tensor("a", &[3], "f32")], &Options { shard_size: Some(1 << 30), ..OPTIONS })
            .unwrap();
    assert_eq!(layout.files[0].name, "model.gguf");
    let folder = TempDir::new().unwrap();
    write(folder.path(), &layout);
    assert_eq!(Gguf::open(&folder.path().join("model.gguf")).unwrap().metadata(), &metadata());
}

fn refused(tensors: &[Tensor<'_>], options: &Options<'_>) -> Error {
    layout(&metadata(), tensors, options).unwrap_err()
}

#[test]
fn names_longer_than_llama_cpp_takes_are_refused() {
    let name = "x".repeat(64);
    let error = refused(&[tensor(&name, &[1], "f32")], &OPTIONS);
    assert!(matches!(error, Error::NameTooLong { len: 64, .. }));
    names(&error, &[&name, "64", "63"]);
    assert!(layout(&metadata(), &[tensor(&name[1..], &[1], "f32")], &OPTIONS).is_ok());
}

#[test]
fn a_name_twice_is_refused() {
    let error = refused(&[tensor("a", &[1], "f32"), tensor("a", &[1], "f32")], &OPTIONS);
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor a", "model.gguf"]);
}

#[test]
fn five_dimensions_are_refused() {
    let error = refused(&[tensor("a", &[1; 5], "f32")], &OPTIONS);
    assert!(matches!(error, Error::TooManyDimensions { dimensions: 5, .. }));
}

#[test]
fn impossible_shapes_are_refused() {
    for shape in [&[][..], &[0], &[1 << 32, 1 << 32], &[1 << 60]] {
        let error = refused(&[tensor("a", shape, "f32")], &OPTIONS);
        assert!(matches!(error, Error::BadShape { .. }), "{shape:?}: {error}");
        names(&error, &["tensor a"]);
    }
}

#[test]
fn rows_that_a_format_can_not_hold_are_refused() {
    let error = refused(&[tensor("a", &[2, 128], "q4_k")], &OPTIONS);
    assert!(matches!(error, Error::RaggedRow { .. }));
    names(&error, &["tensor a", "128", "q4_k", "256"]);
}

#[test]
fn a_format_of_another_container_is_refused() {
    static OTHER: Format = Format {
        name: "q4_k",
        block: 256,
        planes: &[144],
        encode: None,
        decode: |_, _, _, _| {},
        lattice: None,
        shader: |_| unreachable!("nothing multiplies with it"),
    };
    let error = refused(&[Tensor { name: "a", layer: None, shape: &[256], format: &OTHER }], &OPTIONS);
    assert!(matches!(error, Error::NotInContainer { .. }));
    names(&error, &["tensor a", "GGUF", "q4_k"]);
}

#[test]
fn an_alignment_that_is_no_power_of_two_is_refused() {
    for alignment in [0, 48] {
        let error = refused(&[], &Options { alignment, ..OPTIONS });
        assert!(matches!(error, Error::BadAlignment { .. }));
    }
}

#[test]
fn more_shards_than_a_u16_counts_are_refused() {
    let names: Vec<_> = (0..65536).map(|i| i.to_string()).collect();
    let tensors: Vec<_> = names.iter().map(|name| tensor(name, &[1], "f32")).collect();
    let error = refused(&tensors, &Options { shard_size: Some(1), ..OPTIONS });
    assert!(matches!(error, Error::TooManyShards { shards: 65536 }));
}

proptest! {
    #[test]
    fn every_layout_is_read_back(
        shapes in prop::collection::vec(prop::collection::vec(1u64..6, 1..5), 0..12),
        alignment in 0u32..8, shard_size in prop::option::of(1u64..2000),
    ) {
        let folder = TempDir::new().unwrap();
        let names: Vec<_> = (0..shapes.len()).map(|i| format!("t{i}")).collect();
        let tensors: Vec<_> = names.iter().zip(&shapes).map(|(name, shape)| tensor(name, shape, "f16")).collect();
        let options = Options { alignment: 1 << alignment, shard_size, ..OPTIONS };
        let layout = layout(&metadata(), &tensors, &options).unwrap();
        write(folder.path(), &layout);
        let source = Gguf::open(&folder.path().join(&layout.files[0].name)).unwrap();
        prop_assert_eq!(source.tensors().len(), shapes.len());
        for (i, (meta, planes)) in source.tensors().iter().zip(&layout.planes).enumerate() {
            prop_assert_eq!((&meta.name, &meta.shape), (&names[i], &shapes[i]));
            prop_assert_eq!((meta.file, meta.offset, meta.len), (planes[0].file, planes[0].offset, planes[0].len));
        }
    }
}

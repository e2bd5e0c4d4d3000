use std::fs;
use std::path::Path;

use halfbyte_formats::gguf::read::{Gguf, parse_header};
use halfbyte_formats::gguf::{Array, Value};
use halfbyte_formats::{Dtype, Error, TensorSource};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{folder, names};

/// A GGUF put together by hand, so that each part can be wrong.
struct Raw {
    start: Vec<u8>,
    tensor_count: u64,
    key_count: u64,
    keys: Vec<u8>,
    tensors: Vec<u8>,
    alignment: usize,
    data: usize,
}

impl Raw {
    fn new() -> Raw {
        let start = b"GGUF\x03\0\0\0".to_vec();
        Raw {
            start,
            tensor_count: 0,
            key_count: 0,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: 0,
        }
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text].concat()
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Raw {
        self.key_count += 1;
        self.keys.extend([&Raw::string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self
    }

    fn tensor(mut self, name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Raw {
        self.tensor_count += 1;
        self.tensors.extend(Raw::string(name.as_bytes()));
        self.tensors.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|d| self.tensors.extend(d.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    fn data(mut self, bytes: usize) -> Raw {
        self.data = bytes;
        self
    }

    fn bytes(self) -> Vec<u8> {
        let counts = [self.tensor_count.to_le_bytes(), self.key_count.to_le_bytes()].concat();
        let mut bytes = [self.start, counts, self.keys, self.tensors].concat();
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        let data = bytes.len();
        bytes.extend((0..self.data).map(|i| i as u8));
        assert_eq!(data % self.alignment, 0);
        bytes
    }

    fn open(self) -> Result<Gguf, Error> {
        let folder = folder(&[("model.gguf", self.bytes())]);
        Gguf::open(&folder.path().join("model.gguf"))
    }

    fn refused(self) -> Error {
        let error = self.open().unwrap_err();
        names(&error, &["model.gguf"]);
        error
    }
}

#[test]
fn reads_values_of_every_type_and_tensors_in_row_major_order() {
    let raw = Raw::new()
        .key("u8", 0, &[7])
        .key("i8", 1, &[0xff])
        .key("u16", 2, &7u16.to_le_bytes())
        .key("i16", 3, &(-7i16).to_le_bytes())
        .key("u32", 4, &7u32.to_le_bytes())
        .key("i32", 5, &(-7i32).to_le_bytes())
        .key("f32", 6, &0.5f32.to_le_bytes())
        .key("bool", 7, &[1])
        .key("string", 8, &Raw::string("grün".as_bytes()))
        .key("array", 9, &[&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 0, 0, 0, 2, 0, 0, 0]].concat())
        .key("strings", 9, &[&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &Raw::string(b"x")].concat())
        .key("u64", 10, &7u64.to_le_bytes())
        .key("i64", 11, &(-7i64).to_le_bytes())
        .key("f64", 12, &0.5f64.to_le_bytes())
        .tensor("a", &[256, 2], 12, 0)
        .tensor("b", &[2, 3, 4], 0, 288)
        .data(288 + 96);
    let folder = folder(&[("model.gguf", raw.bytes())]);
    let source = Gguf::open(&folder.path().join("model.gguf")).unwrap();
    let values: Vec<_> = source.metadata().iter().map(|(key, value)| (key, value.clone())).collect();
    assert_eq!(
        values,
        [
            ("u8", Value::U8(7)),
            ("i8", Value::I8(-1)),
            ("u16", Value::U16(7)),
            ("i16", Value::I16(-7)),
            ("u32", Value::U32(7)),
            ("i32", Value::I32(-7)),
            ("f32", Value::F32(0.5)),
            ("bool", Value::Bool(true)),
            ("string", Value::String("grün".to_owned())),
            ("array", Value::Array(Array::I32(vec![1, 2]))),
            ("strings", Value::Array(Array::String(vec!["x".to_owned()]))),
            ("u64", Value::U64(7)),
            ("i64", Value::I64(-7)),
            ("f64", Value::F64(0.5)),
        ]
    );
    let tensors: Vec<_> =
        source.tensors().iter().map(|t| (t.name.as_str(), t.shape.clone(), t.len)).collect();
    assert_eq!(tensors, [("a", vec![2, 256], 288), ("b", vec![4, 3, 2], 96)]);
    assert!(matches!(source.tensors()[0].dtype, Dtype::Block(f) if f.name == "q4_k"));
    let mut buffer = [0; 2];
    source.read_at(source.find("b").unwrap(), 1, &mut buffer).unwrap();
    assert_eq!(buffer, [33, 34]);
}

#[test]
fn a_truncated_header_says_where() {
    let bytes = Raw::new().key("general.name", 8, &Raw::string(b"name")).bytes();
    for len in [0, 3, 7, 15, 23, 30, 40, 52] {
        let folder = folder(&[("model.gguf", bytes[..len].to_vec())]);
        let error = Gguf::open(&folder.path().join("model.gguf")).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{error}");
        names(&error, &["model.gguf", &format!("{len} bytes")]);
    }
}

#[test]
fn another_magic_is_shown() {
    let mut raw = Raw::new();
    raw.start = b"PK\x03\x04\x03\0\0\0".to_vec();
    let error = raw.refused();
    assert!(matches!(error, Error::UnknownMagic { .. }));
    names(&error, &["PK"]);
}

#[test]
fn big_endian_is_refused_with_the_remedy() {
    let mut raw = Raw::new();
    raw.start = b"GGUF\0\0\0\x03".to_vec();
    let error = raw.refused();
    assert!(matches!(error, Error::BigEndian { .. }));
    names(&error, &["big-endian", "gguf_convert_endian"]);
}

#[test]
fn versions_other_than_2_and_3_are_refused() {
    for (version, ok) in [(0u8, false), (1, false), (2, true), (3, true), (4, false)] {
        let mut raw = Raw::new();
        raw.start[4] = version;
        let opened = raw.open();
        assert_eq!(opened.is_ok(), ok, "{version}");
        if version == 1 || version == 4 {
            let error = opened.unwrap_err();
            assert!(matches!(error, Error::UnsupportedVersion { .. }));
            names(&error, &[&version.to_string()]);
        }
    }
}

#[test]
fn impossible_counts_are_refused_before_allocation() {
    for count in [100, 1 << 40, u64::MAX] {
        let mut raw = Raw::new();
        raw.key_count = count;
        let error = raw.refused();
        assert!(matches!(error, Error::Truncated { .. }));
        names(&error, &["metadata", &count.to_string()]);
        let mut raw = Raw::new();
        raw.tensor_count = count;
        let error = raw.refused();
        assert!(matches!(error, Error::Truncated { .. }));
        names(&error, &["tensors", &count.to_string()]);
    }
}

#[test]
fn impossible_string_lengths_are_refused_before_allocation() {
    for len in [1000, 1 << 40, u64::MAX] {
        let error = Raw::new().key("general.name", 8, &u64::to_le_bytes(len)).refused();
        assert!(matches!(error, Error::Truncated { .. }));
        names(&error, &["general.name"]);
    }
}

#[test]
fn impossible_array_lengths_are_refused_before_allocation() {
    for kind in (0..=8u32).chain(10..=12) {
        for len in [1000, 1 << 40, u64::MAX] {
            let error = Raw::new()
                .key("a.b", 9, &[&kind.to_le_bytes()[..], &u64::to_le_bytes(len)].concat())
                .refused();
            assert!(matches!(error, Error::Truncated { .. }), "{kind}: {error}");
            names(&error, &["a.b"]);
        }
    }
}

#[test]
fn a_header_of_a_sparse_file_is_limited() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let bytes =
        Raw::new().key("a.b", 9, &[&0u32.to_le_bytes()[..], &(1u64 << 32).to_le_bytes()].concat()).bytes();
    fs::write(&path, bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 33).unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert!(matches!(error, Error::HeaderTooLarge { .. }));
}

#[test]
fn unknown_value_types_are_refused() {
    for (kind, value) in [(13u32, vec![]), (9, [13u32.to_le_bytes().as_slice(), &[0; 8]].concat())] {
        let error = Raw::new().key("a.b", kind, &value).refused();
        assert!(matches!(error, Error::Malformed { .. }));
        names(&error, &["a.b", "13"]);
    }
}

#[test]
fn arrays_of_arrays_are_refused() {
    let error = Raw::new().key("a.b", 9, &[9u32.to_le_bytes().as_slice(), &[0; 8]].concat()).refused();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["a.b", "array of arrays"]);
}

#[test]
fn strings_must_be_utf8() {
    let error = Raw::new().key("a.b", 8, &Raw::string(&[0xff])).refused();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["a.b", "UTF-8"]);
}

#[test]
fn truth_values_are_0_or_1() {
    let error = Raw::new().key("a.b", 7, &[2]).refused();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["a.b", "2"]);
}

#[test]
fn an_empty_key_is_refused() {
    assert!(matches!(Raw::new().key("", 0, &[1]).refused(), Error::Malformed { .. }));
}

#[test]
fn a_key_twice_is_refused() {
    let error = Raw::new().key("a.b", 0, &[1]).key("a.b", 0, &[1]).refused();
    assert!(matches!(error, Error::DuplicateKey { .. }));
    names(&error, &["a.b"]);
}

#[test]
fn a_tensor_twice_is_refused() {
    let error = Raw::new().tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32).data(64).refused();
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor a"]);
}

#[test]
fn the_alignment_is_a_power_of_two_of_type_u32() {
    for alignment in [0u32, 48] {
        let error = Raw::new().key("general.alignment", 4, &alignment.to_le_bytes()).refused();
        assert!(matches!(error, Error::BadAlignment { .. }));
        names(&error, &[&alignment.to_string()]);
    }
    let error = Raw::new().key("general.alignment", 10, &32u64.to_le_bytes()).refused();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["general.alignment"]);
}

#[test]
fn a_larger_alignment_moves_the_data() {
    let mut raw =
        Raw::new().key("general.alignment", 4, &4096u32.to_le_bytes()).tensor("a", &[8], 0, 0).data(32);
    raw.alignment = 4096;
    let source = raw.open().unwrap();
    assert_eq!(source.tensors()[0].offset, 4096);
}

#[test]
fn misaligned_tensors_are_refused() {
    let error = Raw::new().tensor("a", &[8], 0, 16).data(64).refused();
    assert!(matches!(error, Error::Misaligned { offset: 16, alignment: 32, .. }));
    names(&error, &["tensor a", "16", "32"]);
}

#[test]
fn overlapping_tensors_are_refused() {
    let error = Raw::new().tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(128).refused();
    assert!(matches!(error, Error::Overlap { start: 32, end: 64, .. }));
    names(&error, &["tensor b", "a ends", "32", "64"]);
}

#[test]
fn tensors_outside_the_file_are_refused() {
    for offset in [32, 1 << 62, u64::MAX - 31] {
        let error = Raw::new().tensor("a", &[8], 0, offset).data(32).refused();
        assert!(matches!(error, Error::Truncated { .. }));
        names(&error, &["tensor a"]);
    }
}

#[test]
fn more_than_four_dimensions_are_refused() {
    let error = Raw::new().tensor("a", &[1; 5], 0, 0).data(4).refused();
    assert!(matches!(error, Error::TooManyDimensions { dimensions: 5, .. }));
    names(&error, &["tensor a", "5"]);
}

#[test]
fn zero_and_overflowing_dimensions_are_refused() {
    for shape in [&[0u64][..], &[8, 0], &[1 << 32, 1 << 32], &[1 << 32, 1 << 30, 1]] {
        let error = Raw::new().tensor("a", shape, 0, 0).data(32).refused();
        assert!(matches!(error, Error::BadShape { .. }), "{shape:?}: {error}");
        names(&error, &["tensor a", &shape[0].to_string()]);
    }
}

#[test]
fn a_row_that_is_no_whole_number_of_blocks_is_refused() {
    let error = Raw::new().tensor("a", &[128, 2], 12, 0).data(144).refused();
    assert!(matches!(error, Error::RaggedRow { columns: 128, block: 256, .. }));
    names(&error, &["tensor a", "128", "q4_k", "256"]);
}

#[test]
fn unknown_types_are_named() {
    let error = Raw::new().tensor("a", &[32], 4, 0).data(32).refused();
    assert!(matches!(error, Error::UnknownDtype { .. }));
    names(&error, &["tensor a", "type 4", "q4_k"]);
}

/// A shard of a split model with one tensor.
fn split(no: u16, count: u16, tensors: i32, tensor: &str) -> Vec<u8> {
    Raw::new()
        .key("split.no", 2, &no.to_le_bytes())
        .key("split.count", 2, &count.to_le_bytes())
        .key("split.tensors.count", 5, &tensors.to_le_bytes())
        .tensor(tensor, &[8], 0, 0)
        .data(32)
        .bytes()
}

#[test]
fn any_split_opens_all() {
    let folder = folder(&[
        ("m-00001-of-00002.gguf", split(0, 2, 2, "a")),
        ("m-00002-of-00002.gguf", split(1, 2, 2, "b")),
    ]);
    for name in ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"] {
        let source = Gguf::open(&folder.path().join(name)).unwrap();
        let tensors: Vec<_> = source.tensors().iter().map(|t| (t.name.as_str(), t.file)).collect();
        assert_eq!(tensors, [("a", 0), ("b", 1)]);
        assert_eq!(source.metadata().get("split.no"), Some(&Value::U16(0)));
    }
}

#[test]
fn a_missing_split_is_named() {
    let folder = folder(&[("m-00001-of-00002.gguf", split(0, 2, 2, "a"))]);
    let error = Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).unwrap_err();
    assert!(matches!(error, Error::MissingShard { .. }));
    names(&error, &["m-00002-of-00002.gguf", "split.count = 2"]);
}

#[test]
fn a_renamed_split_is_refused() {
    let folder = folder(&[("m.gguf", split(0, 2, 2, "a"))]);
    let error = Gguf::open(&folder.path().join("m.gguf")).unwrap_err();
    assert!(matches!(error, Error::SplitMismatch { .. }));
    names(&error, &["m.gguf", "-00001-of-00002.gguf"]);
}

#[test]
fn splits_that_contradict_each_other_are_refused() {
    for (second, what) in [
        (split(0, 2, 2, "b"), "split.no"),
        (split(1, 3, 2, "b"), "split.count"),
        (split(1, 2, 2, "a"), "tensor a"),
        (Raw::new().bytes(), "split.no"),
    ] {
        let folder =
            folder(&[("m-00001-of-00002.gguf", split(0, 2, 2, "a")), ("m-00002-of-00002.gguf", second)]);
        let error = Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).unwrap_err();
        assert!(matches!(error, Error::SplitMismatch { .. } | Error::DuplicateTensor { .. }));
        names(&error, &["m-00002-of-00002.gguf", what]);
    }
}

#[test]
fn splits_with_too_few_tensors_are_refused() {
    let folder = folder(&[
        ("m-00001-of-00002.gguf", split(0, 2, 3, "a")),
        ("m-00002-of-00002.gguf", split(1, 2, 3, "b")),
    ]);
    let error = Gguf::open(&folder.path().join("m-00001-of-00002.gguf")).unwrap_err();
    assert!(matches!(error, Error::SplitMismatch { what: "split.tensors.count", .. }));
    names(&error, &["3", "2"]);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), len in any::<u64>()) {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tail].concat();
        let _ = parse_header(Path::new("x"), &bytes[..], len);
        let _ = parse_header(Path::new("x"), &bytes[..], bytes.len() as u64);
    }

    #[test]
    fn mutated_headers_never_panic_and_stay_inside_the_file(
        at in 8..300usize, bytes in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let mut file = Raw::new()
            .key("general.alignment", 4, &64u32.to_le_bytes())
            .key("a.b", 9, &[&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &Raw::string(b"x"), &Raw::string(b"yz")].concat())
            .tensor("a", &[256, 2], 12, 0)
            .tensor("b", &[2, 3, 4], 0, 320)
            .data(512)
            .bytes();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        if let Ok(header) = parse_header(Path::new("x"), &file[..], file.len() as u64) {
            for tensor in header.tensors {
                prop_assert!(tensor.offset + tensor.len <= file.len() as u64);
            }
        }
    }
}

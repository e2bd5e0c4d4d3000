use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use halfbyte_formats::safetensors::{INDEX_NAME, Safetensors, parse_header};
use halfbyte_formats::{Dtype, Error, TensorSource};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{folder, names, safetensors_file as file};

const TWO: &str = r#"{"b":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]},
    "__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#;

/// What opening a folder with this one file fails with.
fn refused(bytes: Vec<u8>) -> Error {
    let folder = folder(&[("model.safetensors", bytes)]);
    Safetensors::open_folder(folder.path()).unwrap_err()
}

/// gpt-oss: blocks of codes and scales, here with another tensor between them, are one tensor of two planes.
#[test]
fn mxfp4_in_two_tensors_is_read_as_one() {
    let header = r#"{"w_blocks":{"dtype":"U8","shape":[1,2,16],"data_offsets":[0,32]},
        "odd_blocks":{"dtype":"U8","shape":[3],"data_offsets":[32,35]},
        "w_scales":{"dtype":"U8","shape":[1,2],"data_offsets":[35,37]}}"#;
    let data: Vec<u8> = (0..37).collect();
    let folder = folder(&[("model.safetensors", file(header, &data))]);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let all: Vec<_> = source.tensors().iter().map(|t| (t.name.as_str(), t.shape.clone(), t.len)).collect();
    assert_eq!(all, [("w_blocks", vec![1, 64], 34), ("odd_blocks", vec![3], 3)]);
    assert!(matches!(source.tensors()[0].dtype, Dtype::Block(f) if f.planes == [16, 1]));
    let mut buffer = [0; 4];
    source.read_at(source.find("w_blocks").unwrap(), 30, &mut buffer).unwrap();
    assert_eq!(buffer, [30, 31, 35, 36]);
    source.read_at(source.find("odd_blocks").unwrap(), 0, &mut buffer[..3]).unwrap();
    assert_eq!(buffer[..3], [32, 33, 34]);
    assert_eq!(source.find("w_scales"), None);
}

#[test]
fn reads_ranges_in_file_order() {
    let data: Vec<u8> = (0..12).collect();
    let folder = folder(&[("model.safetensors", file(TWO, &data))]);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let tensors: Vec<_> =
        source.tensors().iter().map(|t| (t.name.as_str(), t.shape.clone(), t.len)).collect();
    assert_eq!(tensors, [("a", vec![2], 4), ("b", vec![1, 2], 8)]);
    assert!(matches!(source.tensors()[0].dtype, Dtype::Block(f) if f.name == "bf16"));
    assert_eq!(source.metadata(), &BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
    let b = source.find("b").unwrap();
    let mut buffer = [0; 3];
    source.read_at(b, 5, &mut buffer).unwrap();
    assert_eq!(buffer, [9, 10, 11]);
    let error = source.read_at(b, 6, &mut buffer).unwrap_err();
    assert!(matches!(error, Error::OutOfTensor { .. }));
    names(&error, &["b", "6", "3", "8"]);
}

#[test]
fn reads_the_fixtures_as_the_reference_does() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let llama = Safetensors::open_folder(&models.join("tiny-llama")).unwrap();
    let bytes = fs::read(models.join("tiny-llama/model.safetensors")).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(llama.tensors().len(), reference.len());
    for (name, view) in reference.tensors() {
        let id = llama.find(&name).unwrap();
        let shape: Vec<u64> = view.shape().iter().map(|d| *d as u64).collect();
        assert_eq!(llama.meta(id).shape, shape);
        let mut read = vec![0; llama.meta(id).len as usize];
        llama.read_at(id, 0, &mut read).unwrap();
        assert_eq!(read, view.data(), "{name}");
    }

    let deepseek = Safetensors::open_folder(&models.join("tiny-deepseek")).unwrap();
    assert_eq!(deepseek.files().len(), 3);
    let id = deepseek.find("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!(deepseek.meta(id).dtype, Dtype::F8E4M3);
    let scale = deepseek.find("model.layers.0.mlp.down_proj.weight_scale_inv").unwrap();
    assert_ne!(deepseek.meta(id).file, deepseek.meta(scale).file);
}

#[test]
fn a_file_of_seven_bytes_is_truncated() {
    let error = refused(vec![0; 7]);
    assert!(matches!(error, Error::Truncated { end: 8, len: 7, .. }));
    names(&error, &["model.safetensors", "header", "8", "7"]);
}

#[test]
fn a_header_longer_than_the_file_is_truncated() {
    let mut bytes = file(TWO, &[0; 12]);
    bytes.truncate(50);
    let error = refused(bytes);
    assert!(matches!(error, Error::Truncated { len: 50, .. }));
    names(&error, &["model.safetensors", "header", "50"]);
}

#[test]
fn a_header_beyond_the_limit_is_not_allocated() {
    for len in [100_000_001, u64::MAX] {
        let error =
            refused(file("{}", &[]).into_iter().skip(8).fold(len.to_le_bytes().to_vec(), |mut v, b| {
                v.push(b);
                v
            }));
        assert!(matches!(error, Error::HeaderTooLarge { limit: 100_000_000, .. }));
        names(&error, &["model.safetensors", &len.to_string()]);
    }
}

#[test]
fn a_header_that_is_no_json_says_where() {
    let error = refused(file("{\"a\":", &[]));
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["model.safetensors", "line 1"]);
}

#[test]
fn a_header_that_is_no_utf8_is_malformed() {
    let mut bytes = file("{\"ab\":{}}", &[]);
    bytes[10] = 0xff;
    assert!(matches!(refused(bytes), Error::Malformed { .. }));
}

#[test]
fn a_tensor_cut_off_is_named() {
    let error = refused(file(TWO, &[0; 11]));
    assert!(matches!(error, Error::Truncated { .. }));
    names(&error, &["tensor b"]);
}

#[test]
fn bytes_behind_the_last_tensor_are_refused() {
    let error = refused(file(TWO, &[0; 13]));
    let Error::Trailing { end, len, .. } = error else { panic!("{error}") };
    assert_eq!(end + 1, len);
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[7,15]}}"#;
    let error = refused(file(header, &[0; 15]));
    assert!(matches!(error, Error::Overlap { start: 7, end: 8, .. }));
    names(&error, &["tensor b", "a ends", "7", "8"]);
}

#[test]
fn a_gap_between_tensors_is_refused() {
    let header = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[9,17]}}"#;
    let error = refused(file(header, &[0; 17]));
    assert!(matches!(error, Error::Gap { start: 9, end: 8, .. }));
    names(&error, &["tensor b", "9", "8"]);
}

#[test]
fn a_range_that_runs_backwards_is_refused() {
    let error = refused(file(r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[8,0]}}"#, &[0; 8]));
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &["tensor a", "8", "0"]);
}

#[test]
fn a_range_beyond_the_file_is_refused() {
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, u64::MAX);
    let error = refused(file(&header, &[0; 8]));
    assert!(matches!(error, Error::Truncated { .. }));
    names(&error, &["tensor a"]);
}

#[test]
fn a_length_that_contradicts_the_shape_is_refused() {
    let error = refused(file(r#"{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,13]}}"#, &[0; 13]));
    assert!(matches!(error, Error::WrongLength { expected: 12, actual: 13, .. }));
    names(&error, &["tensor a", "F16", "[2, 3]", "12", "13"]);
}

#[test]
fn a_shape_that_overflows_is_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    let error = refused(file(header, &[]));
    assert!(matches!(error, Error::BadShape { .. }));
    names(&error, &["tensor a", "4294967296"]);
}

#[test]
fn an_unknown_dtype_is_named_with_the_known_ones() {
    let error = refused(file(r#"{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, &[0]));
    assert!(matches!(error, Error::UnknownDtype { .. }));
    names(&error, &["tensor a", "F4", "BF16", "F8_E4M3"]);
}

#[test]
fn a_tensor_twice_in_one_header_is_refused() {
    let one = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let error = refused(file(&format!("{{{one},{}}}", one.replace("[0,1]", "[1,2]")), &[0; 2]));
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor a", "model.safetensors"]);
}

#[test]
fn an_empty_tensor_and_a_scalar_are_fine() {
    let header = r#"{"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]}}"#;
    let folder = folder(&[("model.safetensors", file(header, &[0; 8]))]);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    assert_eq!(source.meta(source.find("e").unwrap()).len, 0);
    assert_eq!(source.meta(source.find("s").unwrap()).elements(), 1);
}

fn shard(tensor: &str) -> Vec<u8> {
    file(&format!(r#"{{"{tensor}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#), &[7])
}

fn sharded(weight_map: &str, files: &[(&str, &str)]) -> (TempDir, halfbyte_formats::Result<Safetensors>) {
    let mut all: Vec<_> = files.iter().map(|(name, tensor)| (*name, shard(tensor))).collect();
    all.push((INDEX_NAME, format!(r#"{{"metadata":{{}},"weight_map":{{{weight_map}}}}}"#).into_bytes()));
    let folder = folder(&all);
    let source = Safetensors::open_folder(folder.path());
    (folder, source)
}

#[test]
fn shards_are_opened_in_order_of_their_names() {
    let (folder, source) = sharded(
        r#""x":"2.safetensors","y":"1.safetensors""#,
        &[("1.safetensors", "y"), ("2.safetensors", "x")],
    );
    let source = source.unwrap();
    let files: Vec<PathBuf> = source.files().iter().map(|f| f.path.clone()).collect();
    assert_eq!(files, [folder.path().join("1.safetensors"), folder.path().join("2.safetensors")]);
    assert_eq!(source.tensors()[0].name, "y");
}

#[test]
fn a_shard_that_the_index_names_must_be_there() {
    let (_folder, source) = sharded(r#""x":"1.safetensors","y":"2.safetensors""#, &[("1.safetensors", "x")]);
    let error = source.unwrap_err();
    assert!(matches!(error, Error::MissingShard { .. }));
    names(&error, &["2.safetensors", INDEX_NAME]);
}

#[test]
fn a_tensor_must_be_in_the_shard_that_the_index_names() {
    let (_folder, source) = sharded(
        r#""x":"1.safetensors","y":"1.safetensors","z":"2.safetensors""#,
        &[("1.safetensors", "x"), ("2.safetensors", "y")],
    );
    let error = source.unwrap_err();
    assert!(matches!(error, Error::NotInShard { .. }));
    names(&error, &["tensor y", "1.safetensors", INDEX_NAME]);
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (_folder, source) = sharded(
        r#""x":"1.safetensors","y":"2.safetensors""#,
        &[("1.safetensors", "x"), ("2.safetensors", "x")],
    );
    let error = source.unwrap_err();
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor x", "1.safetensors", "2.safetensors"]);
}

#[test]
fn a_name_twice_in_the_index_is_refused() {
    let (_folder, source) = sharded(r#""x":"1.safetensors","x":"1.safetensors""#, &[("1.safetensors", "x")]);
    let error = source.unwrap_err();
    assert!(matches!(error, Error::DuplicateTensor { .. }));
    names(&error, &["tensor x", INDEX_NAME]);
}

#[test]
fn an_index_must_not_lead_out_of_the_folder() {
    for shard in ["../1.safetensors", "/etc/passwd", "a/../../b", "", "."] {
        let (_folder, source) = sharded(&format!(r#""x":"{shard}""#), &[]);
        let error = source.unwrap_err();
        assert!(matches!(error, Error::ShardOutside { .. }), "{shard}: {error}");
        names(&error, &[shard, INDEX_NAME]);
    }
}

#[test]
fn an_index_that_is_none_is_malformed() {
    let folder = folder(&[(INDEX_NAME, b"{\"metadata\":{}}".to_vec())]);
    let error = Safetensors::open_folder(folder.path()).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }));
    names(&error, &[INDEX_NAME, "weight_map"]);
}

#[test]
fn a_folder_with_one_file_of_any_name_is_a_checkpoint() {
    let folder = folder(&[("weights.safetensors", shard("x"))]);
    assert!(Safetensors::open_folder(folder.path()).unwrap().find("x").is_some());
}

#[test]
fn several_files_need_an_index() {
    let folder = folder(&[("a.safetensors", shard("x")), ("b.safetensors", shard("y"))]);
    let error = Safetensors::open_folder(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }));
    names(&error, &["2 safetensors files", INDEX_NAME]);
}

#[test]
fn a_folder_in_the_place_of_a_file_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    let error = Safetensors::open_folder(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NotAFile { .. }));
}

#[test]
fn a_file_cut_while_it_is_read_is_truncated() {
    let folder = folder(&[("model.safetensors", file(TWO, &[0; 12]))]);
    let source = Safetensors::open_folder(folder.path()).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap();
    cut.set_len(100).unwrap();
    let error = source.read_at(source.find("b").unwrap(), 0, &mut [0; 8]).unwrap_err();
    assert!(matches!(error, Error::Truncated { len: 100, .. }));
    names(&error, &["tensor b"]);
}

/// Whether the header is one that the `safetensors` crate takes for a file of `data` bytes of data.
fn reference_accepts(json: &[u8], data: usize) -> bool {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json);
    bytes.resize(bytes.len() + data, 0);
    ::safetensors::SafeTensors::read_metadata(&bytes).is_ok()
}

proptest! {
    #[test]
    fn random_bytes_never_panic(json in prop::collection::vec(any::<u8>(), 0..200), len in any::<u64>()) {
        let _ = parse_header(Path::new("x"), &json, len);
    }

    #[test]
    fn what_a_mutated_header_may_say_is_at_most_what_the_reference_accepts(
        at in 0..TWO.len(), byte in any::<u8>(), more in 0..20usize,
    ) {
        let mut json = TWO.as_bytes().to_vec();
        json[at] = byte;
        let len = 8 + json.len() + more;
        if parse_header(Path::new("x"), &json, len as u64).is_ok() {
            prop_assert!(reference_accepts(&json, more), "{}", String::from_utf8_lossy(&json));
        }
    }

    #[test]
    fn offsets_and_shapes_are_judged_as_by_the_reference(
        shape in prop::collection::vec(0u64..4, 0..3), from in 0u64..10, to in 0u64..10, len in 0usize..10,
        dtype in prop::sample::select(vec!["U8", "BF16", "F32", "F8_E4M3", "BOOL", "F64"]),
    ) {
        let json = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{from},{to}]}}}}"#);
        let ours = parse_header(Path::new("x"), json.as_bytes(), (8 + json.len() + len) as u64).is_ok();
        prop_assert_eq!(ours, reference_accepts(json.as_bytes(), len));
    }
}

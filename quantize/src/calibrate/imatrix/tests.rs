use std::{fs, path::Path};

use super::*;

/// Two tensors: a linear, and four experts of which one saw many tokens, one few, one none.
fn importance() -> Importance {
    let dense = Channels { columns: 3, sums: vec![8.0, 0.0, 4.0], counts: vec![4.0] };
    let experts = Channels {
        columns: 2,
        sums: vec![1600.0, 3200.0, 0.0, 0.0, 32.0, 0.0, 0.0, 16.0],
        counts: vec![1600.0, 0.0, 16.0, 1.0],
    };
    Importance {
        tensors: [("blk.0.w.weight".to_owned(), dense), ("blk.0.e.weight".to_owned(), experts)].into(),
        datasets: vec!["a.txt".to_owned()],
        chunks: 7,
    }
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.imatrix");
    importance().write(&path, 512).expect("write");
    assert_eq!(Importance::read(&path).expect("read"), importance());
    assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1, "nothing is left beside it");
    let bytes = fs::read(&path).expect("file");
    importance().write(&path, 512).expect("write over it");
    assert_eq!(fs::read(&path).expect("file"), bytes);
}

#[test]
fn the_file_has_llama_cpps_keys_names_and_shapes() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    importance().write(&path, 512).expect("write");
    let file = Gguf::open(&path).expect("GGUF");
    for (key, value) in [
        ("general.type", Value::from("imatrix")),
        ("imatrix.datasets", Value::from(vec!["a.txt".to_owned()])),
        ("imatrix.chunk_count", Value::U32(7)),
        ("imatrix.chunk_size", Value::U32(512)),
    ] {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
    let shapes: Vec<_> =
        file.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    assert_eq!(
        shapes,
        [
            ("blk.0.e.weight.in_sum2", &[4u64, 2][..]),
            ("blk.0.e.weight.counts", &[4, 1]),
            ("blk.0.w.weight.in_sum2", &[1, 3]),
            ("blk.0.w.weight.counts", &[1, 1]),
        ]
    );
}

#[test]
fn an_expert_leans_on_its_layer_the_more_the_less_it_saw() {
    let importance = importance();
    assert_eq!(importance.of("blk.0.w.weight", 0), Some(vec![2.0, 0.0, 1.0]));
    assert_eq!(importance.of("blk.0.w.weight", 1), None);
    assert_eq!(importance.of("blk.1.w.weight", 0), None);

    let of = |expert| importance.of("blk.0.e.weight", expert).expect("an expert");
    let layer = [1632.0 / 1617.0, 3216.0 / 1617.0];
    let near = |found: Vec<f32>, due: [f64; 2]| {
        for (found, due) in found.iter().zip(due) {
            assert!((f64::from(*found) / due - 1.0).abs() < 1e-6, "{found} is not {due}");
        }
    };
    near(of(1), layer);
    // Sixteen tokens weigh as much as the layer.
    near(of(2), [(2.0 + layer[0]) / 2.0, layer[1] / 2.0]);
    near(of(0), [(1600.0 + 16.0 * layer[0]) / 1616.0, (3200.0 + 16.0 * layer[1]) / 1616.0]);
    assert_eq!(importance.of("blk.0.e.weight", 4), None);
}

#[test]
fn nothing_seen_is_nothing_known() {
    for counts in [vec![0.0, 0.0], vec![5.0, 0.0]] {
        let channels = Channels { columns: 2, sums: vec![0.0; 4], counts };
        assert_eq!(channels.mean_squares().collect::<Vec<_>>(), [None, None]);
    }
    let large = Channels { columns: 1, sums: vec![f32::MAX; 2], counts: vec![1.0; 2] };
    assert_eq!(large.mean_squares().collect::<Vec<_>>(), [Some(vec![f32::MAX]), Some(vec![f32::MAX])]);
}

#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    let message = Importance::read(path).expect_err("an error").to_string();
    let file = path.file_name().expect("name").to_string_lossy();
    for part in parts.iter().chain([&&*file]) {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn numbers_that_can_be_no_sums_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.gguf");
    importance().write(&path, 512).expect("write");
    let good = fs::read(&path).expect("file");
    // The sums of the linear, which lie behind the experts' (both aligned to 32 bytes).
    let at = good.windows(12).rposition(|bytes| {
        bytes == [8.0f32, 0.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()
    });
    let at = at.expect("sums");
    let with = |at: usize, value: f32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bytes).expect("write");
    };
    with(at + 4, f32::NAN);
    refused(&path, &["blk.0.w.weight", "column 1", "NaN"]);
    with(at, -1.5);
    refused(&path, &["blk.0.w.weight", "column 0", "-1.5"]);
    with(at + 8, f32::INFINITY);
    refused(&path, &["column 2", "inf"]);
    for count in [-1.0, 0.25, f32::NAN, f32::INFINITY] {
        with(at + 32, count);
        refused(&path, &["blk.0.w.weight", "count", &count.to_string()]);
    }
    with(at + 32, 0.0);
    refused(&path, &["has sums, but a count of 0"]);
    fs::write(&path, &good[..at + 2]).expect("write");
    refused(&path, &["blk.0.w.weight.in_sum2"]);
}

#[test]
fn files_that_are_something_else_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("x.gguf");
    let write = |metadata: &[(&str, &str)], tensors: &[(&str, [u64; 2])]| {
        let mut keys = Metadata::new();
        metadata.iter().for_each(|(key, value)| keys.set(*key, *value));
        let format = table::gguf("f32").expect("f32");
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| gguf::write::Tensor { name, layer: None, shape, format })
            .collect();
        let options = gguf::write::Options { stem: "x", alignment: 32, shard_size: None, shard_after: &[] };
        let layout = gguf::write::layout(&keys, &tensors, &options).expect("layout");
        let mut bytes = layout.files[0].header.clone();
        bytes.resize(layout.files[0].len as usize, 0);
        fs::write(&path, bytes).expect("write");
    };
    let imatrix = [("general.type", "imatrix")];
    write(&[("general.type", "model")], &[]);
    refused(&path, &["general.type is model"]);
    write(&imatrix, &[]);
    refused(&path, &["no entry"]);
    write(&imatrix, &[("a.in_sum2", [2, 3])]);
    refused(&path, &["no tensor a.counts"]);
    write(&imatrix, &[("a.counts", [2, 1])]);
    refused(&path, &["no tensor a.in_sum2"]);
    write(&imatrix, &[("a.in_sum2", [2, 3]), ("a.counts", [3, 1])]);
    refused(&path, &["a: [2, 3] sums", "[3, 1] counts"]);
    write(&imatrix, &[("a.weight", [2, 3])]);
    refused(&path, &["tensor a.weight"]);
    refused(dir.path(), &["no file"]);
}

/// The older form of one entry.
fn old(entries: i32, name: &str, chunks: i32, values: &[f32]) -> Vec<u8> {
    let mut bytes = entries.to_le_bytes().to_vec();
    bytes.extend((name.len() as i32).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(chunks.to_le_bytes());
    bytes.extend((values.len() as i32).to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn the_older_form_is_read() {
    let mut bytes = old(1, "a", 4, &[8.0, 2.0]);
    let bare = dat::parse(&bytes).expect("without an end");
    assert_eq!(bare.of("a", 0), Some(vec![2.0, 0.5]));
    bytes.extend(9i32.to_le_bytes());
    bytes.extend(5i32.to_le_bytes());
    bytes.extend(b"b.txt");
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("m.dat");
    fs::write(&path, &bytes).expect("write");
    let importance = Importance::read(&path).expect("read");
    assert_eq!((importance.chunks, importance.datasets), (9, vec!["b.txt".to_owned()]));

    for len in [0, 3, 4, 8, 9, 12, 16, 20, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).expect("write");
        refused(&path, &["neither a GGUF file"]);
    }
    fs::write(&path, old(1, "a", 4, &[1.0, f32::NAN])).expect("write");
    refused(&path, &["a: ", "column 1", "NaN"]);
    let mut long = old(1, "a", 4, &[]);
    long[13..].copy_from_slice(&i32::MAX.to_le_bytes());
    fs::write(&path, &long).expect("write");
    refused(&path, &["a should be 2147483647 × 4 bytes"]);
    fs::write(&path, "A text that somebody took for it.").expect("write");
    refused(&path, &["impossible length"]);
}

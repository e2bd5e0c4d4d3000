//! The streaming pass over a source in memory: same bytes however it is run, nothing lost when it is stopped.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use formats::{
    Content, Dtype, Layout, OutputTensor, Part, Result as FormatsResult, TensorId, TensorMeta, TensorSource,
    layout::{OutputFile, Placement},
    output::{Class, Map},
    scales::Scales,
    tensor::SourceFile,
};
use halfbyte_quantize::{
    Error, Recipe,
    job::Job,
    mix::ModelFacts,
    plan::Container,
    progress::{Amount, Phase, Progress, Silent},
    recipe::{TensorChoice, hex},
    run::{Outcome, RunOptions, run},
    store::Destination,
};
use kernels::{Format, table::gguf as by_name};
use sha2::{Digest, Sha256};

const ROWS: u64 = 480;
const COLUMNS: u64 = 96;
const TENSORS: usize = 12;

/// Tensors of F32 in memory, with a real file beside them so that the job can tell a changed source.
struct Source {
    tensors: Vec<TensorMeta>,
    files: Vec<SourceFile>,
    data: Vec<Vec<u8>>,
    /// Fails the read of this many bytes from now on.
    fail_after: Option<AtomicUsize>,
}

impl Source {
    fn new(dir: &Path) -> Source {
        let path = dir.join("source");
        if !path.exists() {
            fs::write(&path, b"source").expect("source file");
        }
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let data: Vec<Vec<u8>> = (0..TENSORS)
            .map(|_| (0..ROWS * COLUMNS).flat_map(|_| random().to_le_bytes()).collect())
            .collect();
        let tensors = (0..TENSORS)
            .map(|i| TensorMeta {
                name: format!("t{i}"),
                dtype: Dtype::Block(format("f32")),
                shape: vec![ROWS, COLUMNS],
                file: 0,
                offset: 0,
                len: 4 * ROWS * COLUMNS,
            })
            .collect();
        Source { tensors, files: vec![SourceFile { path, len: 6, sha256: None }], data, fail_after: None }
    }
}

impl TensorSource for Source {
    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<TensorId> {
        self.tensors.iter().position(|tensor| tensor.name == name).map(TensorId)
    }
    fn files(&self) -> &[SourceFile] {
        &self.files
    }
    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> FormatsResult<()> {
        if let Some(left) = &self.fail_after {
            if left.load(Ordering::Relaxed) < buffer.len() {
                let source = std::io::Error::other("unplugged");
                return Err(formats::Error::Io { path: PathBuf::from("disk"), source });
            }
            left.fetch_sub(buffer.len(), Ordering::Relaxed);
        }
        buffer.copy_from_slice(&self.data[id.0][offset as usize..][..buffer.len()]);
        Ok(())
    }
}

fn format(name: &str) -> &'static Format {
    by_name(name).expect("a format of the table")
}

fn job(dir: &Path, source: Source, format_name: &str) -> Job {
    let format = format(format_name);
    let map = |i: usize| [Map::Identity, Map::InterleaveHalves][i % 2];
    let outputs: Vec<OutputTensor> = (0..TENSORS)
        .map(|i| OutputTensor {
            name: format!("out{i}"),
            shape: vec![ROWS, COLUMNS],
            class: Class::Other,
            layer: None,
            quantizable: true,
            content: Content::Parts(vec![Part {
                source: TensorId(i),
                columns: COLUMNS,
                rows: 0..ROWS,
                map: map(i),
            }]),
        })
        .collect();
    let choices = outputs.iter().map(|output| TensorChoice {
        name: output.name.clone(),
        format: format.name.into(),
        bytes: 0,
    });
    let recipe = Recipe {
        tool: "test".into(),
        container: Container::Gguf,
        format: format.name.into(),
        rules: vec![],
        align: None,
        shard_size: None,
        shard_after: vec![],
        allow_nonfinite: false,
        calibration: None,
        imatrix: None,
        target: None,
        revision: None,
        source: vec![],
        bytes: 0,
        tensor: choices.collect(),
    };
    let header = recipe.hash().into_bytes();
    let tensor_len = format.plane_bytes(0, ROWS * COLUMNS).expect("whole blocks");
    let (files, planes) = (0..2)
        .map(|file| {
            let first = header.len() as u64;
            let planes = (0..TENSORS as u64 / 2)
                .map(move |i| vec![Placement { file, offset: first + i * tensor_len, len: tensor_len }]);
            let len = first + TENSORS as u64 / 2 * tensor_len;
            (OutputFile { name: format!("part{file}"), header: header.clone(), len }, planes)
        })
        .collect::<(Vec<_>, Vec<_>)>();
    let layout = Layout { files, planes: planes.into_iter().flatten().collect(), ..Layout::default() };
    let scales = Scales::find(&source, [128, 128]).expect("scales");
    Job {
        facts: ModelFacts::default(),
        source: Box::new(source),
        scales,
        outputs,
        formats: vec![format; TENSORS],
        weighted: None,
        layout,
        recipe,
        destination: Destination::Files { path: dir.join("out"), dir: dir.to_owned() },
        fallbacks: vec![],
        warnings: vec![],
    }
}

fn options() -> RunOptions {
    RunOptions { threads: 2, memory: 1200 << 10, overwrite: false }
}

fn never() -> AtomicBool {
    AtomicBool::new(false)
}

fn output(dir: &Path) -> Vec<Vec<u8>> {
    (0..2).map(|i| fs::read(dir.join(format!("part{i}"))).expect("output")).collect()
}

fn unbroken(format: &str) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("dir");
    let job = job(dir.path(), Source::new(dir.path()), format);
    run(&job, options(), None, &Silent, &never()).expect("run");
    output(dir.path())
}

#[test]
fn the_same_bytes_for_any_number_of_threads_and_any_memory() {
    let expected = unbroken("f16");
    for (threads, memory) in [(1, 2 << 20), (5, 1 << 30), (3, 1_120_000)] {
        let dir = tempfile::tempdir().expect("dir");
        let job = job(dir.path(), Source::new(dir.path()), "f16");
        run(&job, RunOptions { threads, memory, ..options() }, None, &Silent, &never()).expect("run");
        assert!(output(dir.path()) == expected, "{threads} threads, {memory} bytes");
        assert!(!job.destination.partial().exists());
    }
}

#[test]
fn a_job_that_fails_half_way_keeps_what_it_has_and_goes_on() {
    let expected = unbroken("f16");
    let dir = tempfile::tempdir().expect("dir");
    for tensors in [0, 1, 5, 3] {
        let mut source = Source::new(dir.path());
        source.fail_after = Some(AtomicUsize::new(tensors * 4 * (ROWS * COLUMNS) as usize));
        let job = job(dir.path(), source, "f16");
        let error = run(&job, options(), None, &Silent, &never()).expect_err("the disk is unplugged");
        assert!(error.to_string().contains("unplugged"), "{error}");
        assert!(!dir.path().join("part0").exists(), "no final name holds a partial file");
    }
    let job = job(dir.path(), Source::new(dir.path()), "f16");
    let Outcome::Written { resumed, entries, .. } =
        run(&job, options(), None, &Silent, &never()).expect("resumed")
    else {
        panic!("written")
    };
    assert_eq!(resumed, 9, "tensors that were kept");
    assert_eq!(entries.len(), TENSORS);
    assert!(output(dir.path()) == expected);
    assert!(matches!(run(&job, options(), None, &Silent, &never()), Ok(Outcome::AlreadyThere)));
}

/// Presses Ctrl-C after some tiles.
struct CancelAfter(AtomicUsize, AtomicBool);

impl Progress for CancelAfter {
    fn begin(&self, _: Phase, _: Amount, _: Amount) {}
    fn advance(&self, _: Amount) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.1.store(true, Ordering::Relaxed);
        }
    }
    fn end(&self) {}
}

#[test]
fn an_interrupted_job_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let job = job(dir.path(), Source::new(dir.path()), "f16");
    let watch = CancelAfter(AtomicUsize::new(3), never());
    let error = run(&job, options(), None, &watch, &watch.1).expect_err("interrupted");
    assert!(matches!(error, Error::Interrupted { .. }) && error.to_string().contains("same command again"));
    run(&job, options(), None, &Silent, &never()).expect("resumed");
    assert!(output(dir.path()) == unbroken("f16"));
}

#[test]
fn bytes_that_are_not_as_the_journal_says_are_written_again() {
    let dir = tempfile::tempdir().expect("dir");
    let job = job(dir.path(), Source::new(dir.path()), "f16");
    let watch = CancelAfter(AtomicUsize::new(4), never());
    run(&job, options(), None, &watch, &watch.1).expect_err("interrupted");
    let part = job.destination.partial().join("part0");
    let mut bytes = fs::read(&part).expect("part");
    bytes[100] ^= 0xff;
    fs::write(&part, bytes).expect("damage");
    run(&job, options(), None, &Silent, &never()).expect("resumed");
    assert!(output(dir.path()) == unbroken("f16"));
}

#[test]
fn another_recipe_or_a_changed_source_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().expect("dir");
    let first = job(dir.path(), Source::new(dir.path()), "f16");
    let watch = CancelAfter(AtomicUsize::new(4), never());
    run(&first, options(), None, &watch, &watch.1).expect_err("interrupted");

    let other = job(dir.path(), Source::new(dir.path()), "bf16");
    let error = run(&other, options(), None, &Silent, &never()).expect_err("another recipe").to_string();
    assert!(error.contains("`format = \"f16\"`") && error.contains("`format = \"bf16\"`"), "{error}");

    fs::write(dir.path().join("source"), b"longer source").expect("change");
    let error = run(&first, options(), None, &Silent, &never()).expect_err("changed source").to_string();
    assert!(error.contains("had 6 bytes and has 13"), "{error}");
}

#[test]
fn what_lies_at_the_destination_is_kept_unless_told_otherwise() {
    let dir = tempfile::tempdir().expect("dir");
    fs::write(dir.path().join("part0"), b"precious").expect("file");
    let job = job(dir.path(), Source::new(dir.path()), "f16");
    assert!(matches!(run(&job, options(), None, &Silent, &never()), Err(Error::OutputExists { .. })));
    assert_eq!(fs::read(dir.path().join("part0")).expect("kept"), b"precious");
    run(&job, RunOptions { overwrite: true, ..options() }, None, &Silent, &never()).expect("overwritten");
    assert!(output(dir.path()) == unbroken("f16"));
}

fn spoil(source: &mut Source, values: &[f32]) {
    for (at, value) in values.iter().enumerate() {
        source.data[3][400 * at..][..4].copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn nan_and_infinity_are_counted_and_refused_unless_allowed() {
    let dir = tempfile::tempdir().expect("dir");
    let mut source = Source::new(dir.path());
    spoil(&mut source, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let mut job = job(dir.path(), source, "f16");
    let error = run(&job, options(), None, &Silent, &never()).expect_err("refused").to_string();
    assert!(error.contains("out3") && error.contains("3 of its 46080"), "{error}");
    job.recipe.allow_nonfinite = true;
    fs::remove_dir_all(job.destination.partial()).expect("begin anew");
    let Outcome::Written { entries, .. } = run(&job, options(), None, &Silent, &never()).expect("allowed")
    else {
        panic!("written")
    };
    assert_eq!(entries[3].nonfinite, 3);
    assert!(entries[3].squared_error.is_finite());
}

#[test]
fn a_tensor_that_keeps_its_format_is_copied_bit_for_bit() {
    let dir = tempfile::tempdir().expect("dir");
    let mut source = Source::new(dir.path());
    // A signalling NaN keeps its payload.
    source.data[2][..4].copy_from_slice(&0x7fa0_1234_u32.to_le_bytes());
    let bytes = source.data[2].clone();
    let mut job = job(dir.path(), source, "f32");
    let error = run(&job, options(), None, &Silent, &never()).expect_err("refused").to_string();
    assert!(error.contains("out2") && error.contains("1 of its 46080"), "{error}");
    job.recipe.allow_nonfinite = true;
    fs::remove_dir_all(job.destination.partial()).expect("begin anew");
    let Outcome::Written { entries, busy, .. } =
        run(&job, options(), None, &Silent, &never()).expect("allowed")
    else {
        panic!("written")
    };
    let at = job.layout.planes[2][0];
    assert!(output(dir.path())[at.file][at.offset as usize..][..at.len as usize] == bytes[..]);
    assert_eq!(entries[2].planes[0].sha256, hex(&Sha256::digest(&bytes)));
    let energy: f64 = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
        .filter(|weight| weight.is_finite())
        .map(|weight| weight * weight)
        .sum();
    assert_eq!((entries[2].nonfinite, entries[2].squared_error), (1, 0.0));
    assert!((entries[2].energy / energy - 1.0).abs() < 1e-6, "{} {energy}", entries[2].energy);
    for (stage, share) in busy.shares() {
        assert!(share > 0.0 && share <= 1.0, "{stage} was busy {share} of the time");
    }
}

#[test]
fn weights_beyond_the_format_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let mut source = Source::new(dir.path());
    spoil(&mut source, &[1e6]);
    let job = job(dir.path(), source, "f16");
    let error = run(&job, options(), None, &Silent, &never()).expect_err("refused").to_string();
    assert!(error.contains("out3") && error.contains("1 of its 46080") && error.contains("bf16"), "{error}");
}

#[test]
fn a_full_disk_shows_before_any_work() {
    let dir = tempfile::tempdir().expect("dir");
    let mut job = job(dir.path(), Source::new(dir.path()), "f16");
    job.layout.files[1].len = 4 << 40;
    let error = run(&job, options(), None, &Silent, &never()).expect_err("four terabytes").to_string();
    assert!(error.contains("part0") && error.contains("43980") && error.contains("free"), "{error}");
}

#[test]
fn too_little_memory_is_said_with_the_numbers() {
    let dir = tempfile::tempdir().expect("dir");
    let job = job(dir.path(), Source::new(dir.path()), "f16");
    let error =
        run(&job, RunOptions { memory: 1000, ..options() }, None, &Silent, &never()).expect_err("1000 bytes");
    assert!(matches!(error, Error::Memory { memory: 1000, .. }), "{error}");
}

//! Stacks of experts whose source lists them in another order: each expert is written and noted by itself, each file of the source
//! is read in one go, and a run that was stopped anywhere goes on to the same bytes and the same figures.

mod stack;

use std::{
    fs,
    sync::{OnceLock, atomic::Ordering},
};

use formats::tensor::SourceFile;
use halfbyte_quantize::{
    Error,
    job::Job,
    journal::Entry,
    progress::Silent,
    recipe::hex,
    run::{Outcome, RunOptions, run},
};
use kernels::{Format, table};
use sha2::{Digest, Sha256};

use stack::{EXPERTS, FILES, LAYERS, OUTPUTS, STACKS, Watch, by_layer, job, lines, options, output};

/// Steps that read, and all of an unbroken run.
const READS: usize = LAYERS * (2 * EXPERTS + 1);
const STEPS: usize = 1 + READS;

fn format() -> &'static Format {
    table::gguf("q4_0").expect("known")
}

/// Files and entries of an unbroken run.
fn unbroken() -> &'static (Vec<Vec<u8>>, Vec<Entry>) {
    static UNBROKEN: OnceLock<(Vec<Vec<u8>>, Vec<Entry>)> = OnceLock::new();
    UNBROKEN.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let (job, watch) = job(dir.path(), format(), by_layer);
        let entries = written(&job, &watch, options());
        let found = (output(job.destination.dir()), entries);
        check_order(&job, &watch);
        found
    })
}

fn written(job: &Job, watch: &Watch, options: RunOptions) -> Vec<Entry> {
    match run(job, options, None, &Silent, &watch.cancel).expect("run") {
        Outcome::Written { entries, .. } => entries,
        Outcome::AlreadyThere => panic!("written"),
    }
}

/// That each step reads what was expected of it, in the order of the source, and that all of them settled in order.
fn check_order(job: &Job, watch: &Watch) {
    let log = watch.log();
    assert_eq!(log.fetched, [0, 1, 2, 3], "each file once, in order");
    assert_eq!(log.steps.len(), STEPS);
    assert!(log.settled.is_sorted() && log.settled.last() == Some(&(STEPS - 1)), "{:?}", log.settled);
    let mut read = vec![vec![]];
    let is_scale = |id: &&usize| job.source.tensors()[**id].name.ends_with("inv");
    assert!(log.read.iter().filter(|id| !is_scale(id)).is_sorted(), "{:?}", log.read);
    for &id in &log.read {
        let meta = &job.source.tensors()[id];
        if !meta.name.ends_with("inv") {
            read.push(vec![]);
        }
        read.last_mut().expect("a step").push(meta.file);
    }
    for files in &mut read {
        files.sort();
        files.dedup();
    }
    assert_eq!(log.steps, read, "the first has computed values");
    let two_files = log.steps.iter().filter(|files| files.len() == 2).count();
    assert!(two_files > 0 && two_files < FILES, "scales in another file than their weight");
}

#[test]
fn experts_come_in_the_order_of_the_source_and_lie_in_their_own() {
    let (files, entries) = unbroken();
    let dir = tempfile::tempdir().expect("dir");
    let (job, _) = job(dir.path(), format(), by_layer);
    assert_eq!(entries.len(), OUTPUTS);
    for (tensor, entry) in entries.iter().enumerate() {
        let at = job.layout.planes[tensor][0];
        let bytes = &files[at.file][at.offset as usize..][..at.len as usize];
        assert_eq!(entry.planes[0].sha256, hex(&Sha256::digest(bytes)), "{}", entry.tensor);
    }
    // Row by row as they are decoded: every expert is where it belongs.
    let (output, format, at) = (&job.outputs[2], format(), job.layout.planes[2][0]);
    job.source.expect(vec![(0..FILES).collect()]).expect("no limit");
    let columns = output.columns();
    for expert in 0..EXPERTS as u64 {
        let row = expert * output.shape[1] + 7;
        let mut weights = vec![0.0; columns as usize];
        let isa = kernels::Isa::detect();
        formats::rows::decode(&*job.source, &job.scales, output, row..row + 1, isa, &mut weights)
            .expect("source");
        let bytes = format.plane_bytes(0, columns).expect("whole blocks");
        let mut encoded = vec![0; bytes as usize];
        (format.encode.expect("can be written"))(format, isa, &weights, None, &mut [&mut encoded]);
        let offset = (at.offset + row * bytes) as usize;
        assert!(files[at.file][offset..][..encoded.len()] == encoded, "expert {expert}");
    }
}

#[test]
fn a_run_that_is_cut_off_anywhere_goes_on_with_the_next_expert() {
    let (files, entries) = unbroken();
    let dir = tempfile::tempdir().expect("dir");
    let (mut runs, mut noted) = (0, 0);
    loop {
        let (job, watch) = job(dir.path(), format(), by_layer);
        watch.reads.store(4, Ordering::SeqCst);
        // Never the same memory: the same segments.
        let options = RunOptions { memory: (48 << 20) + (runs << 20), ..options() };
        match run(&job, options, None, &Silent, &watch.cancel) {
            Err(error) => assert!(error.to_string().contains("unplugged"), "{error}"),
            Ok(Outcome::Written { entries: found, resumed, .. }) => {
                assert!(output(job.destination.dir()) == *files);
                assert!(resumed > 0 && !job.destination.partial().exists());
                for (found, due) in found.iter().zip(entries) {
                    assert_eq!(found.planes, due.planes);
                    // Sums over other tiles are rounded otherwise.
                    assert!(
                        (found.squared_error / due.squared_error - 1.0).abs() < 1e-9
                            || due.squared_error == 0.0
                    );
                }
                break;
            }
            Ok(Outcome::AlreadyThere) => panic!("written"),
        }
        let parts = lines(&job, "part");
        assert!(noted <= parts && parts <= noted + 4, "{noted} and {parts} parts");
        noted = parts;
        runs += 1;
    }
    assert_eq!(runs as usize, READS / 4);
}

#[test]
fn any_beginning_of_a_journal_will_do() {
    let (files, entries) = unbroken();
    let dir = tempfile::tempdir().expect("dir");
    // All but the last tensor of the source, a norm.
    let (first, watch) = job(dir.path(), format(), by_layer);
    watch.reads.store(READS - 1, Ordering::SeqCst);
    run(&first, options(), None, &Silent, &watch.cancel).expect_err("unplugged");
    assert_eq!((lines(&first, "part"), lines(&first, "done")), (LAYERS * 2 * EXPERTS, OUTPUTS - 1));
    let path = first.destination.partial().join("journal.jsonl");
    let journal = fs::read_to_string(&path).expect("journal");
    let all: Vec<&str> = journal.lines().collect();
    for kept in (1..=all.len()).step_by(7).chain([all.len()]) {
        let head: String = all[..kept].iter().map(|line| format!("{line}\n")).collect();
        fs::create_dir_all(first.destination.partial()).expect("partial");
        fs::write(&path, head).expect("journal");
        for (file, bytes) in files.iter().enumerate() {
            fs::write(first.destination.partial().join(&first.layout.files[file].name), bytes).expect("file");
        }
        let (job, watch) = job(dir.path(), format(), by_layer);
        assert!(written(&job, &watch, options()) == *entries, "the very same figures after {kept} lines");
        assert!(output(job.destination.dir()) == *files, "{kept} lines");
        let is_step =
            |line: &&&str| line.starts_with("{\"part\"") || line.contains("norm") || line.contains("values");
        let kept = all[..kept].iter().filter(is_step).count();
        assert_eq!(watch.log().steps.len(), STEPS - kept);
        fs::remove_dir_all(job.destination.dir()).expect("removed");
    }
    // One of an older version has whole tensors alone.
    fs::create_dir_all(first.destination.partial()).expect("partial");
    let older: String =
        all.iter().filter(|line| !line.starts_with("{\"part\"")).map(|l| format!("{l}\n")).collect();
    fs::write(&path, older).expect("journal");
    for (file, bytes) in files.iter().enumerate() {
        fs::write(first.destination.partial().join(&first.layout.files[file].name), bytes).expect("file");
    }
    assert!(written(&first, &reset(&watch), options()) == *entries);
    assert_eq!(watch.log().steps.len(), 1, "the norm alone");
}

fn reset(watch: &Watch) -> Watch {
    watch.reads.store(usize::MAX, Ordering::SeqCst);
    watch.cancel.store(false, Ordering::SeqCst);
    watch.clone()
}

#[test]
fn a_damaged_expert_is_done_again_alone() {
    let (files, entries) = unbroken();
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), format(), by_layer);
    watch.reads.store(READS - 1, Ordering::SeqCst);
    run(&job, options(), None, &Silent, &watch.cancel).expect_err("unplugged");
    let path = job.destination.partial().join(&job.layout.files[0].name);
    let mut bytes = fs::read(&path).expect("file");
    bytes[job.layout.planes[STACKS[1]][0].offset as usize + 5] ^= 1;
    fs::write(&path, bytes).expect("damage");
    assert!(written(&job, &reset(&watch), options()) == *entries);
    assert!(output(job.destination.dir()) == *files);
    assert_eq!(watch.log().steps.len(), 2, "the expert and the norm");
}

/// A source that is not what it was.
struct Other(Box<dyn formats::TensorSource>, Vec<SourceFile>);

impl formats::TensorSource for Other {
    fn tensors(&self) -> &[formats::TensorMeta] {
        self.0.tensors()
    }
    fn find(&self, name: &str) -> Option<formats::TensorId> {
        self.0.find(name)
    }
    fn files(&self) -> &[SourceFile] {
        &self.1
    }
    fn read_at(&self, id: formats::TensorId, offset: u64, buffer: &mut [u8]) -> formats::Result<()> {
        self.0.read_at(id, offset, buffer)
    }
}

#[test]
fn a_file_elsewhere_is_known_by_its_hash() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut job, watch) = job(dir.path(), format(), by_layer);
    watch.reads.store(1, Ordering::SeqCst);
    run(&job, options(), None, &Silent, &watch.cancel).expect_err("unplugged");
    let mut files = job.source.files().to_vec();
    files[2].sha256 = Some("f".repeat(64));
    job.source = Box::new(Other(job.source, files));
    let error = run(&job, options(), None, &Silent, &reset(&watch).cancel).expect_err("another source");
    assert!(matches!(error, Error::SourceChanged { .. }));
    let due =
        format!("/nowhere/shard-2 has changed since this job began (its SHA-256 was {:064} and is ffff", 2);
    assert!(error.to_string().starts_with(&due), "{error}");
}

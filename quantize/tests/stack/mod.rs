//! A mixture of experts that lies elsewhere: its files are fetched whole, a few at a time, and experts come in byte order of their
//! names. For the tests of the pass.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use formats::{
    Content, Dtype, Layout, OutputTensor, Part, Result as FormatsResult, TensorId, TensorMeta, TensorSource,
    layout::{OutputFile, Placement},
    output::{Class, Map},
    scales::Scales,
    tensor::SourceFile,
};
use halfbyte_quantize::{
    Recipe, job::Job, mix::ModelFacts, plan::Container, recipe::TensorChoice, run::RunOptions,
    store::Destination,
};
use kernels::{Format, table};

/// Rows and columns of an expert's matrix: each is a segment.
const SIDE: u64 = 2048;
pub const EXPERTS: usize = 11;
pub const LAYERS: usize = 2;
/// Files of the source.
pub const FILES: usize = 4;
/// Computed values, and for each layer gates, down projections and a norm.
pub const OUTPUTS: usize = 1 + 3 * LAYERS;
/// Output tensors that are stacks.
pub const STACKS: [usize; 4] = [1, 2, 4, 5];

/// What the source was told and asked.
#[derive(Debug, Default)]
pub struct Log {
    pub steps: Vec<Vec<usize>>,
    pub settled: Vec<usize>,
    /// The tensors that were read, each once unless others were read between.
    pub read: Vec<usize>,
    /// Files in the order in which they were fetched.
    pub fetched: Vec<usize>,
    /// Files that are there.
    held: Vec<usize>,
}

/// What the test keeps of a source that a job has.
#[derive(Clone)]
pub struct Watch {
    log: Arc<(Mutex<Log>, Condvar)>,
    /// Wakes a read that waits for a file.
    pub cancel: Arc<AtomicBool>,
    /// How many weights and norms may be read before the line is cut.
    pub reads: Arc<AtomicUsize>,
    /// Files that fit the scratch.
    pub room: Arc<AtomicUsize>,
}

impl Watch {
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.0.lock().expect("no panic")
    }
}

struct Source {
    tensors: Vec<TensorMeta>,
    files: Vec<SourceFile>,
    ids: HashMap<String, TensorId>,
    watch: Watch,
}

impl Source {
    fn new() -> Source {
        let mut names = Vec::new();
        for layer in 0..LAYERS {
            names.push(format!("{layer}.norm"));
            for (expert, kind) in (0..EXPERTS).flat_map(|expert| [(expert, "down"), (expert, "gate")]) {
                names.push(format!("{layer}.e.{expert}.{kind}"));
                names.push(format!("{layer}.e.{expert}.{kind}_scale_inv"));
            }
        }
        names.sort();
        let f32 = Dtype::Block(table::gguf("f32").expect("known"));
        let mut ends = [0; FILES];
        let (mut tensors, mut ids) = (Vec::new(), HashMap::new());
        for (at, name) in names.iter().enumerate() {
            let (dtype, shape, len) = match name {
                name if name.ends_with("norm") => (f32, vec![SIDE], 4 * SIDE),
                name if name.ends_with("inv") => (f32, vec![SIDE / 128; 2], 4 * SIDE / 128 * SIDE / 128),
                _ => (Dtype::F8E4M3, vec![SIDE; 2], SIDE * SIDE),
            };
            // Every second file begins with the scales of a weight in the one before.
            let file = at * FILES / names.len();
            ids.insert(name.clone(), TensorId(at));
            tensors.push(TensorMeta { name: name.clone(), dtype, shape, file, offset: ends[file], len });
            ends[file] += len;
        }
        let file = |(at, len): (usize, &u64)| SourceFile {
            path: format!("/nowhere/shard-{at}").into(),
            len: *len,
            sha256: Some(format!("{at:064}")),
        };
        let watch = Watch {
            log: Arc::default(),
            cancel: Arc::default(),
            reads: Arc::new(usize::MAX.into()),
            room: Arc::new(2.into()),
        };
        Source { tensors, files: ends.iter().enumerate().map(file).collect(), ids, watch }
    }

    /// Waits until a file is there: until those that no later step reads have made room for it.
    fn fetch(&self, file: usize) -> FormatsResult<()> {
        let (log, changed) = &*self.watch.log;
        let mut log = log.lock().expect("no panic");
        let begin = Instant::now();
        loop {
            if log.held.contains(&file) {
                return Ok(());
            }
            let last = log.steps.iter().rposition(|files| files.contains(&file)).expect("an expected file");
            let settled = |step| log.settled.last().is_some_and(|settled| step <= *settled);
            assert!(!settled(last), "file {file} is read after it was let go of");
            let needed = |file: &usize| {
                let last = log.steps.iter().rposition(|files| files.contains(file));
                last.is_some_and(|last| !settled(last))
            };
            let held: Vec<usize> = log.held.iter().copied().filter(needed).collect();
            log.held = held;
            if log.held.len() < self.watch.room.load(Ordering::SeqCst) {
                log.held.push(file);
                log.fetched.push(file);
                return Ok(());
            }
            if self.watch.cancel.load(Ordering::SeqCst) {
                return Err(unplugged("woken up"));
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "nobody makes room for file {file}");
            log = changed.wait_timeout(log, Duration::from_millis(20)).expect("no panic").0;
        }
    }
}

fn unplugged(what: &str) -> formats::Error {
    formats::Error::Io { path: "/nowhere".into(), source: std::io::Error::other(what.to_owned()) }
}

impl TensorSource for Source {
    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<TensorId> {
        self.ids.get(name).copied()
    }
    fn files(&self) -> &[SourceFile] {
        &self.files
    }
    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> FormatsResult<()> {
        let is_fp8 = self.meta(id).dtype == Dtype::F8E4M3;
        // Tile by tile, a weight and its scales alternate.
        let is_new = !self.watch.log().read.iter().rev().take(2).any(|read| *read == id.0);
        if is_new && !self.meta(id).name.ends_with("inv") {
            let take = |left: usize| left.checked_sub(1);
            if self.watch.reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
                return Err(unplugged("unplugged"));
            }
        }
        self.fetch(self.meta(id).file)?;
        if is_new {
            self.watch.log().read.push(id.0);
        }
        for (at, word) in (offset / 4..).zip(buffer.chunks_exact_mut(4)) {
            let mut bits = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(id.0 as u64 + 1);
            bits = (bits ^ (bits >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let bits = (bits >> 32) as u32;
            // FP8 without NaN; numbers between 0.5 and 1.
            let value = if is_fp8 { bits & 0xbfbf_bfbf } else { 0x3f00_0000 | (bits >> 9) };
            word.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }
    fn expect(&self, steps: Vec<Vec<usize>>) -> FormatsResult<()> {
        *self.watch.log() = Log { steps, ..Log::default() };
        Ok(())
    }
    fn settled(&self, step: usize) {
        self.watch.log().settled.push(step);
        self.watch.log.1.notify_all();
    }
}

/// Which file of the output holds a plane of an output tensor.
pub type Files = fn(tensor: usize, plane: usize) -> usize;

/// A layer in each file, the values in the first.
pub fn by_layer(tensor: usize, _: usize) -> usize {
    tensor.saturating_sub(1) / 3
}

/// Stacks in `format`, the rest in F32, in an output folder `out` of two files and a side file.
pub fn job(dir: &Path, format: &'static Format, files: Files) -> (Job, Watch) {
    let source = Source::new();
    let watch = source.watch.clone();
    let part = |name: String, columns, rows| {
        let source = source.find(&name).expect("a tensor of the source");
        Part { source, columns, rows: 0..rows, map: Map::Identity }
    };
    let tensor = |name: String, shape: &[u64], content| OutputTensor {
        name,
        shape: shape.to_vec(),
        class: Class::Other,
        layer: None,
        quantizable: shape.len() > 1,
        content,
    };
    let values = (0..SIDE).map(|at| at as f32).collect();
    let mut outputs = vec![tensor("values".into(), &[SIDE], Content::Values(values))];
    for layer in 0..LAYERS {
        for kind in ["gate", "down"] {
            let experts =
                (0..EXPERTS).map(|expert| part(format!("{layer}.e.{expert}.{kind}"), SIDE, SIDE)).collect();
            let shape = [EXPERTS as u64, SIDE, SIDE];
            outputs.push(tensor(format!("{layer}.{kind}s"), &shape, Content::Parts(experts)));
        }
        let norm = vec![part(format!("{layer}.norm"), SIDE, 1)];
        outputs.push(tensor(format!("{layer}.norm"), &[SIDE], Content::Parts(norm)));
    }
    assert_eq!(outputs.len(), OUTPUTS);
    let f32 = table::gguf("f32").expect("known");
    let formats: Vec<_> =
        (0..OUTPUTS).map(|tensor| if STACKS.contains(&tensor) { format } else { f32 }).collect();
    let choice = |(output, format): (&OutputTensor, &&Format)| TensorChoice {
        name: output.name.clone(),
        format: format.name.into(),
        bytes: 0,
    };
    let recipe = Recipe {
        tool: "test".into(),
        container: Container::Mlx,
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
        tensor: outputs.iter().zip(&formats).map(choice).collect(),
    };
    let header = recipe.hash().into_bytes();
    let mut ends = [header.len() as u64; 2];
    let planes = (0..OUTPUTS).map(|tensor| {
        let format = formats[tensor];
        let plane = |plane| {
            let file = files(tensor, plane);
            let len = format.plane_bytes(plane, outputs[tensor].elements()).expect("whole blocks");
            let offset = ends[file];
            ends[file] += len;
            Placement { file, offset, len }
        };
        (0..format.planes.len()).map(plane).collect()
    });
    let planes = planes.collect();
    let name = |file: usize| format!("model-{file}.safetensors");
    let mut output_files: Vec<OutputFile> = ends
        .iter()
        .enumerate()
        .map(|(file, &len)| OutputFile { name: name(file), header: header.clone(), len })
        .collect();
    output_files.push(OutputFile { name: "config.json".into(), header: b"{}".to_vec(), len: 2 });
    let job = Job {
        facts: ModelFacts::default(),
        scales: Scales::find(&source, [128, 128]).expect("scales"),
        source: Box::new(source),
        outputs,
        formats,
        weighted: None,
        layout: Layout { files: output_files, planes, ..Layout::default() },
        recipe,
        destination: Destination::Folder(dir.join("out")),
        fallbacks: vec![],
        warnings: vec![],
    };
    (job, watch)
}

pub fn options() -> RunOptions {
    RunOptions { threads: 2, memory: 64 << 20, overwrite: false }
}

/// The bytes of the files that hold tensors.
pub fn output(dir: &Path) -> Vec<Vec<u8>> {
    (0..2).map(|file| fs::read(dir.join(format!("model-{file}.safetensors"))).expect("output")).collect()
}

/// How many lines of a kind the journal of an unfinished job has.
pub fn lines(job: &Job, kind: &str) -> usize {
    let journal = fs::read_to_string(job.destination.partial().join("journal.jsonl")).expect("journal");
    journal.lines().filter(|line| line.starts_with(&format!("{{\"{kind}\""))).count()
}

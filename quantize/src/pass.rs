//! The streaming pass: a reader thread, the cores that encode, a writer thread with a second one that hashes the same bytes
//! meanwhile, one that syncs and keeps the journal, and one that has whole files taken away, with a fixed number of buffers
//! between them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::AtomicBool,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Instant,
};

use formats::{Layout, OutputTensor, TensorSource, scales::Scales};
use kernels::{Format, Isa};

use crate::{
    encode::{Stats, encode},
    error::{Error, Result},
    journal::{Entry, Journal},
    keep::{Finished, Keeper},
    outlet::{Outlet, Shipped},
    progress::{Amount, Progress},
    read::{Loaded, load, tile_bytes},
    segment::segments,
    ship::ship,
    stop::Stop,
    store::Store,
    tile::{Tile, tiles},
    weighted::{ColumnWeights, Weighted},
    work::{Kept, Work},
    write::Writer,
};

/// Tiles in flight on each side of the encoder: one being worked on, one ready, one under way.
const SLOTS: usize = 3;
/// Weights of a tile when memory allows: 8 MiB of BF16.
const TILE_WEIGHTS: u64 = 4 << 20;
/// Tensors whose column weights are held: segments of gates, up- and down-projections of a layer's experts alternate in the source.
const WEIGHTED_AT_ONCE: usize = 3;

/// A job's weights: what is read, what it becomes and where it goes.
pub struct Pass<'a> {
    /// The checkpoint.
    pub source: &'a dyn TensorSource,
    /// The block scales of its FP8 weights.
    pub scales: &'a Scales,
    /// The tensors to write.
    pub outputs: &'a [OutputTensor],
    /// The format of each.
    pub formats: &'a [&'static Format],
    /// What their columns weigh; all the same if absent.
    pub weighted: Option<&'a Weighted>,
    /// The place of each.
    pub layout: &'a Layout,
    /// Whether NaN and infinities are let through.
    pub allow_nonfinite: bool,
    /// Ceiling for the buffers, in bytes.
    pub memory: u64,
    /// Cores that encode.
    pub threads: usize,
}

/// Seconds of wall clock that each stage worked instead of waiting for another one. The stages work at the same time: the one
/// that was busy all along is the limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Reading the source, on a thread of its own.
    pub read: f64,
    /// Widening, encoding and measuring, on all cores.
    pub encode: f64,
    /// Hashing the output, on a thread of its own.
    pub hash: f64,
    /// Handing the output to the system, on a thread of its own.
    pub write: f64,
    /// Waiting for the disk, on a thread of its own.
    pub sync: f64,
    /// The whole pass, from the first byte read to the last one on the disk.
    pub pass: f64,
}

impl Busy {
    /// Each stage by name, and how much of the pass it was busy, from 0 to 1.
    pub fn shares(&self) -> [(&'static str, f64); 5] {
        let share = |seconds: f64| if self.pass > 0.0 { seconds / self.pass } else { 0.0 };
        [
            ("reading", share(self.read)),
            ("encoding", share(self.encode)),
            ("hashing", share(self.hash)),
            ("writing", share(self.write)),
            ("syncing", share(self.sync)),
        ]
    }
}

/// A tile, encoded.
pub(crate) struct Encoded {
    pub tile: Tile,
    /// Bytes of the source that it took.
    pub read: u64,
    /// The bytes for each plane.
    pub planes: Vec<Vec<u8>>,
    pub stats: Stats,
}

/// Where a pass writes to.
pub(crate) struct Output<'a> {
    pub store: &'a Store<'a>,
    pub journal: &'a Mutex<Journal>,
    /// What takes whole files away, if anything does.
    pub outlet: Option<&'a dyn Outlet>,
    /// What is there already.
    pub kept: &'a Kept,
}

/// What a pass made.
pub(crate) struct Made {
    /// The tensors that became whole; `None` if it was cancelled.
    pub entries: Option<Vec<Entry>>,
    /// The files that were taken away.
    pub shipped: Vec<Shipped>,
    pub busy: Busy,
}

impl Pass<'_> {
    /// What is to be done besides what is kept of an earlier run.
    ///
    /// # Errors
    /// If an output tensor's parts do not make up its shape, or `memory` can't hold a piece that must be taken whole.
    pub fn work(&self, kept: &Kept) -> Result<Work> {
        // A weight takes at most four bytes in the source and four in the output.
        let per_weight = 8 * SLOTS as u64;
        let tile_weights = (self.memory / per_weight).min(TILE_WEIGHTS);
        let done: HashSet<&str> = kept.entries.iter().map(|entry| &*entry.tensor).collect();
        let mut parts: HashMap<&str, Vec<_>> = HashMap::new();
        kept.parts.iter().for_each(|part| parts.entry(&part.entry.tensor).or_default().push(part));
        let mut work = Work::default();
        for (index, output) in self.outputs.iter().enumerate() {
            if done.contains(&*output.name) {
                continue;
            }
            let segments = segments(self.source, output, index)?;
            // Segments are noted with ranges of bytes, which rows that lie apart have not.
            debug_assert!(
                segments.len() <= 1 || self.layout.arranged.keys().all(|(tensor, _)| *tensor != index)
            );
            let mut found = vec![None; segments.len()];
            for part in parts.remove(&*output.name).into_iter().flatten() {
                found[part.segment] = Some(Stats::noted(&part.entry));
            }
            work.segments.extend(segments.into_iter().filter(|segment| found[segment.index].is_none()));
            if !found.is_empty() {
                work.tensors.insert(index, found);
            }
        }
        work.sort(self.source);
        for (step, segment) in work.segments.iter().enumerate() {
            work.tiles.extend(tiles(segment, step, tile_weights));
        }
        let too_large = |tile: &&Tile| tile.weights.saturating_mul(per_weight) > self.memory;
        if let Some(tile) = work.tiles.iter().find(too_large) {
            return Err(Error::Memory {
                memory: self.memory,
                tensor: self.outputs[tile.tensor].name.clone(),
                needed: tile.weights.saturating_mul(per_weight),
            });
        }
        Ok(work)
    }

    /// Bytes and weights of some work.
    ///
    /// # Errors
    /// If a source tensor can't be read as weights.
    pub fn amount(&self, work: &Work) -> Result<Amount> {
        let mut amount = Amount::default();
        for tile in &work.tiles {
            amount.read += tile_bytes(self.source, tile)?;
            amount.weights += tile.weights;
            let format = self.formats[tile.tensor];
            amount.written +=
                (tile.weights / format.block as u64) * format.planes.iter().sum::<usize>() as u64;
        }
        Ok(amount)
    }

    /// Does the work: what is finished gets its line in the journal once its bytes are on the disk.
    ///
    /// `cancel` may be set at any time (Ctrl-C): what is under way is finished and noted, the rest is left. It is set here if a
    /// stage fails, to wake up whoever waits for something that will not come.
    ///
    /// # Errors
    /// Whatever stops a stage first.
    pub(crate) fn run(
        &self,
        mut work: Work,
        output: &Output<'_>,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Made> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|error| Error::Usage(format!("can't start {} threads: {error}", self.threads)))?;
        self.source.expect(work.expected(self.source, self.scales))?;
        let start = Instant::now();
        let (loaded_tx, loaded_rx) = channel::<Loaded>();
        let (encoded_tx, encoded_rx) = channel::<Encoded>();
        let (finished_tx, finished_rx) = channel::<Finished>();
        let (whole_tx, whole_rx) = channel::<usize>();
        // Buffers go round: a stage that finds none waits, so that memory stays what it is.
        let (input_tx, input_rx) = pool_of::<Vec<u8>>();
        let (output_tx, output_rx) = pool_of::<Vec<Vec<u8>>>();

        let tiles = std::mem::take(&mut work.tiles);
        let (stop, work) = (&Stop::new(cancel), &work);
        let &Output { store, journal, outlet, kept } = output;
        let writer = Writer { pass: self, work, store, kept, progress, stop };
        let keeper = Keeper::new(self, work, store, journal, kept, outlet.map(|_| whole_tx));
        thread::scope(|scope| {
            // What was read before a read that failed is still written and noted: the reader asks nobody to stop.
            let reader = scope.spawn(move || self.read(tiles, &input_rx, &loaded_tx, stop));
            let writer = scope.spawn(move || stop.watch(writer.run(&encoded_rx, &output_tx, &finished_tx)));
            let keeper = scope.spawn(move || stop.watch(keeper.run(&finished_rx)));
            let shipper = outlet.map(|outlet| {
                scope.spawn(move || stop.watch(ship(outlet, store, self.layout, journal, &whole_rx, stop)))
            });
            let encoded = stop.watch(self.encode(&pool, &loaded_rx, &input_tx, &output_rx, &encoded_tx));
            // The channels' ends must go before the threads are joined, or they wait for ever.
            drop((loaded_rx, input_tx, output_rx, encoded_tx));
            let read = join(reader);
            let written = join(writer);
            let kept = join(keeper);
            let shipped = shipper.map(join).transpose()?;
            let (entries, busy_sync) = kept?;
            let written = written?;
            let busy = Busy {
                encode: encoded?,
                read: read?,
                hash: written.hash,
                write: written.write,
                sync: busy_sync,
                pass: start.elapsed().as_secs_f64(),
            };
            let is_over = written.segments == work.segments.len();
            Ok(Made { entries: is_over.then_some(entries), shipped: shipped.unwrap_or_default(), busy })
        })
    }

    fn read(
        &self,
        tiles: Vec<Tile>,
        buffers: &Receiver<Vec<u8>>,
        loaded: &Sender<Loaded>,
        stop: &Stop<'_>,
    ) -> Result<f64> {
        let mut busy = 0.0;
        for tile in tiles {
            let Ok(buffer) = buffers.recv() else { break };
            if stop.is_asked() {
                break;
            }
            let start = Instant::now();
            let tile = match load(self.source, self.scales, tile, buffer) {
                // A source that waited for a file was woken up.
                Err(_) if stop.is_asked() => break,
                tile => tile?,
            };
            busy += start.elapsed().as_secs_f64();
            if loaded.send(tile).is_err() {
                break;
            }
        }
        Ok(busy)
    }

    fn encode(
        &self,
        pool: &rayon::ThreadPool,
        loaded: &Receiver<Loaded>,
        inputs: &Sender<Vec<u8>>,
        outputs: &Receiver<Vec<Vec<u8>>>,
        encoded: &Sender<Encoded>,
    ) -> Result<f64> {
        let isa = Isa::detect();
        let mut busy = 0.0;
        // Of the tensors that are being encoded.
        let mut importance: Vec<(usize, Option<ColumnWeights>)> = Vec::new();
        for loaded in loaded {
            let Ok(mut planes) = outputs.recv() else { break };
            let start = Instant::now();
            let tensor = loaded.tile.tensor;
            let format = self.formats[tensor];
            let at = importance.iter().position(|(held, _)| *held == tensor).unwrap_or_else(|| {
                let weights = self.weighted.filter(|_| format.block > 1);
                if importance.len() == WEIGHTED_AT_ONCE {
                    importance.remove(0);
                }
                importance.push((tensor, weights.and_then(|all| all.of(tensor, &self.outputs[tensor]))));
                importance.len() - 1
            });
            let weights = importance[at].1.as_ref();
            // Only the computing enters the pool: a channel must never be waited for inside it.
            let stats = pool.install(|| encode(self.source, &loaded, format, isa, weights, &mut planes))?;
            busy += start.elapsed().as_secs_f64();
            let Loaded { tile, bytes, .. } = loaded;
            let read = bytes.len() as u64;
            // The reader may be done and gone: then nobody needs the buffer.
            let _ = inputs.send(bytes);
            if encoded.send(Encoded { tile, read, planes, stats }).is_err() {
                break;
            }
        }
        Ok(busy)
    }
}

fn pool_of<T: Default>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel();
    for _ in 0..SLOTS {
        let _ = sender.send(T::default());
    }
    (sender, receiver)
}

pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

//! The streaming pass: a reader thread, the cores that encode, a writer thread with a second one that hashes the same bytes
//! meanwhile, and one that syncs and keeps the journal, with a fixed number of buffers between them.

use std::{
    collections::HashSet,
    sync::{
        atomic::{AtomicBool, Ordering},
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
    progress::{Amount, Progress},
    read::{Loaded, load, tile_bytes},
    store::Store,
    tile::{Tile, tiles},
    weighted::{ColumnWeights, Weighted},
    write::{Finished, keep, write},
};

/// Tiles in flight on each side of the encoder: one being worked on, one ready, one under way.
const SLOTS: usize = 3;
/// Weights of a tile when memory allows: 8 MiB of BF16.
const TILE_WEIGHTS: u64 = 4 << 20;

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

impl Pass<'_> {
    /// All tiles of the tensors that are not `done`, in order.
    ///
    /// # Errors
    /// If an output tensor's parts do not make up its shape, or `memory` can't hold a piece that must be taken whole.
    pub fn tiles(&self, done: &HashSet<&str>) -> Result<Vec<Tile>> {
        // A weight takes at most four bytes in the source and four in the output.
        let per_weight = 8 * SLOTS as u64;
        let tile_weights = (self.memory / per_weight).min(TILE_WEIGHTS);
        let mut all = Vec::new();
        for (index, output) in self.outputs.iter().enumerate() {
            if done.contains(output.name.as_str()) {
                continue;
            }
            let tiles = tiles(self.source, output, index, tile_weights)?;
            if let Some(tile) =
                tiles.iter().find(|tile| tile.weights.saturating_mul(per_weight) > self.memory)
            {
                return Err(Error::Memory {
                    memory: self.memory,
                    tensor: output.name.clone(),
                    needed: tile.weights.saturating_mul(per_weight),
                });
            }
            all.extend(tiles);
        }
        Ok(all)
    }

    /// Bytes and weights of some tiles.
    ///
    /// # Errors
    /// If a source tensor can't be read as weights.
    pub fn amount(&self, tiles: &[Tile]) -> Result<Amount> {
        let mut amount = Amount::default();
        for tile in tiles {
            amount.read += tile_bytes(self.source, tile)?;
            amount.weights += tile.weights;
            let format = self.formats[tile.tensor];
            amount.written +=
                (tile.weights / format.block as u64) * format.planes.iter().sum::<usize>() as u64;
        }
        Ok(amount)
    }

    /// Does the tiles: every finished tensor gets its line in the journal once its bytes are on the disk.
    ///
    /// `cancel` may be set at any time (Ctrl-C): what is under way is finished and noted, the rest is left.
    ///
    /// # Errors
    /// Whatever stops a stage first. `Ok(None)` instead of the entries if it was cancelled.
    pub fn run(
        &self,
        tiles: Vec<Tile>,
        store: &Store,
        journal: &mut Journal,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<(Option<Vec<Entry>>, Busy)> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|error| Error::Usage(format!("can't start {} threads: {error}", self.threads)))?;
        let expected = tiles.len();
        let start = Instant::now();
        let (loaded_tx, loaded_rx) = channel::<Loaded>();
        let (encoded_tx, encoded_rx) = channel::<Encoded>();
        let (finished_tx, finished_rx) = channel::<Finished>();
        // Buffers go round: a stage that finds none waits, so that memory stays what it is.
        let (input_tx, input_rx) = pool_of::<Vec<u8>>();
        let (output_tx, output_rx) = pool_of::<Vec<Vec<u8>>>();

        thread::scope(|scope| {
            let reader = scope.spawn(move || self.read(tiles, &input_rx, &loaded_tx, cancel));
            let writer =
                scope.spawn(move || write(self, store, progress, &encoded_rx, &output_tx, &finished_tx));
            let syncer = scope.spawn(move || keep(store, journal, &finished_rx));
            let encoded = self.encode(&pool, &loaded_rx, &input_tx, &output_rx, &encoded_tx);
            // The channels' ends must go before the threads are joined, or they wait for ever.
            drop((loaded_rx, input_tx, output_rx, encoded_tx));
            let read = join(reader);
            let written = join(writer);
            let kept = join(syncer);
            let busy_encode = encoded?;
            let busy_read = read?;
            let written = written?;
            let (entries, busy_sync) = kept?;
            let busy = Busy {
                read: busy_read,
                encode: busy_encode,
                hash: written.hash,
                write: written.write,
                sync: busy_sync,
                pass: start.elapsed().as_secs_f64(),
            };
            Ok(((written.tiles == expected).then_some(entries), busy))
        })
    }

    fn read(
        &self,
        tiles: Vec<Tile>,
        buffers: &Receiver<Vec<u8>>,
        loaded: &Sender<Loaded>,
        cancel: &AtomicBool,
    ) -> Result<f64> {
        let mut busy = 0.0;
        for tile in tiles {
            let Ok(buffer) = buffers.recv() else { break };
            if cancel.load(Ordering::Relaxed) {
                break;
            }
            let start = Instant::now();
            let tile = load(self.source, self.scales, tile, buffer)?;
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
        // Of the tensor that is being encoded.
        let mut importance: (usize, Option<ColumnWeights>) = (usize::MAX, None);
        for loaded in loaded {
            let Ok(mut planes) = outputs.recv() else { break };
            let start = Instant::now();
            let tensor = loaded.tile.tensor;
            let format = self.formats[tensor];
            if importance.0 != tensor {
                let weights = self.weighted.filter(|_| format.block > 1);
                importance = (tensor, weights.and_then(|all| all.of(tensor, &self.outputs[tensor])));
            }
            let weights = importance.1.as_ref();
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

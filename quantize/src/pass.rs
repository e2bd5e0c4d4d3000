//! The streaming pass: a reader thread, the cores that encode, and a writer thread that hashes, writes and keeps the
//! journal, with a fixed number of buffers between them.

use std::{
    collections::HashSet,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use formats::{Layout, OutputTensor, TensorSource, layout::Placement, scales::Scales};
use kernels::{Format, Isa};
use sha2::{Digest, Sha256};

use crate::{
    encode::{Stats, encode},
    error::{Error, Result},
    journal::{Entry, Journal, Plane},
    progress::{Amount, Progress},
    read::{Loaded, load, tile_bytes},
    recipe::hex,
    store::Store,
    tile::{Tile, tiles},
};

/// Tiles in flight on each side of the encoder: one being worked on, one ready, one under way.
const SLOTS: usize = 3;
/// Weights of a tile when memory allows: 8 MiB of BF16.
const TILE_WEIGHTS: u64 = 4 << 20;
/// How long finished tensors may wait for their line in the journal: a sync costs more than a small tensor.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);

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
    /// The place of each.
    pub layout: &'a Layout,
    /// Whether NaN and infinities are let through.
    pub allow_nonfinite: bool,
    /// Ceiling for the buffers, in bytes.
    pub memory: u64,
    /// Cores that encode.
    pub threads: usize,
}

/// Seconds that each stage was busy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Reading the source.
    pub read: f64,
    /// Widening, encoding and measuring.
    pub encode: f64,
    /// Hashing, writing and syncing.
    pub write: f64,
}

struct Encoded {
    tile: Tile,
    read: u64,
    planes: Vec<Vec<u8>>,
    stats: Stats,
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
        let (loaded_tx, loaded_rx) = channel::<Loaded>();
        let (encoded_tx, encoded_rx) = channel::<Encoded>();
        // Buffers go round: a stage that finds none waits, so that memory stays what it is.
        let (input_tx, input_rx) = pool_of::<Vec<u8>>();
        let (output_tx, output_rx) = pool_of::<Vec<Vec<u8>>>();

        thread::scope(|scope| {
            let reader = scope.spawn(move || self.read(tiles, &input_rx, &loaded_tx, cancel));
            let mut writer = Writer::new(self, store, journal, progress);
            let writer = scope.spawn(move || {
                let result = writer.run(&encoded_rx, &output_tx);
                result.map(|()| (writer.written, writer.tiles, writer.busy))
            });
            let encoded = self.encode(&pool, &loaded_rx, &input_tx, &output_rx, &encoded_tx);
            // The channels' ends must go before the threads are joined, or they wait for ever.
            drop((loaded_rx, input_tx, output_rx, encoded_tx));
            let read = join(reader);
            let written = join(writer);
            let encode_busy = encoded?;
            let read_busy = read?;
            let (entries, done, write_busy) = written?;
            let busy = Busy { read: read_busy, encode: encode_busy, write: write_busy };
            Ok(((done == expected).then_some(entries), busy))
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
        for loaded in loaded {
            let Ok(mut planes) = outputs.recv() else { break };
            let start = Instant::now();
            let format = self.formats[loaded.tile.tensor];
            // Only the computing enters the pool: a channel must never be waited for inside it.
            let stats = pool.install(|| encode(self.source, &loaded, format, isa, &mut planes))?;
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

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The writer's state: the tensor under way and those that wait for the journal.
struct Writer<'a> {
    pass: &'a Pass<'a>,
    store: &'a Store,
    journal: &'a mut Journal,
    progress: &'a dyn Progress,
    hashes: Vec<Sha256>,
    stats: Stats,
    waiting: Vec<Entry>,
    dirty: HashSet<usize>,
    last_sync: Instant,
    written: Vec<Entry>,
    tiles: usize,
    busy: f64,
}

impl<'a> Writer<'a> {
    fn new(
        pass: &'a Pass<'a>,
        store: &'a Store,
        journal: &'a mut Journal,
        progress: &'a dyn Progress,
    ) -> Writer<'a> {
        Writer {
            pass,
            store,
            journal,
            progress,
            hashes: Vec::new(),
            stats: Stats::default(),
            waiting: Vec::new(),
            dirty: HashSet::new(),
            last_sync: Instant::now(),
            written: Vec::new(),
            tiles: 0,
            busy: 0.0,
        }
    }

    fn run(&mut self, encoded: &Receiver<Encoded>, buffers: &Sender<Vec<Vec<u8>>>) -> Result<()> {
        for tile in encoded {
            let start = Instant::now();
            let planes = self.tile(tile)?;
            let _ = buffers.send(planes);
            if self.last_sync.elapsed() >= JOURNAL_EVERY {
                self.sync()?;
            }
            self.busy += start.elapsed().as_secs_f64();
        }
        let start = Instant::now();
        self.sync()?;
        self.busy += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn tile(&mut self, encoded: Encoded) -> Result<Vec<Vec<u8>>> {
        let Encoded { tile, read, planes, stats } = encoded;
        let format = self.pass.formats[tile.tensor];
        let placements = &self.pass.layout.planes[tile.tensor];
        if tile.first_weight == 0 {
            self.hashes = vec![Sha256::new(); placements.len()];
            self.stats = Stats::default();
        }
        let mut written = 0;
        for (plane, bytes) in planes.iter().enumerate() {
            let at = placements[plane];
            let offset = tile.first_weight / format.block as u64 * format.planes[plane] as u64;
            self.store.write(at.file, at.offset + offset, bytes)?;
            self.hashes[plane].update(bytes);
            self.dirty.insert(at.file);
            written += bytes.len() as u64;
        }
        self.stats.add(&stats);
        self.tiles += 1;
        self.progress.advance(Amount { read, written, weights: tile.weights });
        if tile.last {
            self.finish_tensor(tile.tensor, placements)?;
        }
        Ok(planes)
    }

    fn finish_tensor(&mut self, tensor: usize, placements: &[Placement]) -> Result<()> {
        let output = &self.pass.outputs[tensor];
        let stats = self.stats;
        let elements = output.elements();
        if stats.nonfinite > 0 && !self.pass.allow_nonfinite {
            return Err(Error::NonFinite { tensor: output.name.clone(), count: stats.nonfinite, elements });
        }
        if stats.overflow > 0 {
            let format = self.pass.formats[tensor].name;
            return Err(Error::Overflow {
                tensor: output.name.clone(),
                format,
                count: stats.overflow,
                elements,
            });
        }
        let planes = placements.iter().zip(self.hashes.drain(..)).map(|(at, sha)| Plane {
            file: self.pass.layout.files[at.file].name.clone(),
            offset: at.offset,
            len: at.len,
            sha256: hex(&sha.finalize()),
        });
        self.waiting.push(Entry {
            tensor: output.name.clone(),
            planes: planes.collect(),
            squared_error: stats.squared_error,
            energy: stats.energy,
            nonfinite: stats.nonfinite,
        });
        Ok(())
    }

    /// Bytes first, then their lines in the journal.
    fn sync(&mut self) -> Result<()> {
        self.last_sync = Instant::now();
        if self.waiting.is_empty() {
            return Ok(());
        }
        for file in self.dirty.drain() {
            self.store.sync(file)?;
        }
        self.written.extend(self.waiting.iter().cloned());
        self.journal.done(std::mem::take(&mut self.waiting))
    }
}

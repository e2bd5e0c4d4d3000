//! Bytes to their places, and their hashes: what the writer thread does.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, Sender},
    thread,
    time::Instant,
};

use formats::{Layout, OutputTensor, layout::Placement};
use sha2::{Digest, Sha256};

use crate::{
    encode::Stats,
    error::{Error, Result},
    journal::{Entry, Plane},
    keep::Finished,
    pass::{Encoded, Pass, join},
    progress::{Amount, Progress},
    recipe::hex,
    segment::Segment,
    stop::Stop,
    store::Store,
    tile::Tile,
    work::{Kept, Work, files_of},
};

/// Bytes of a tile that take longer to hash than a thread to start.
const WORTH_A_THREAD: u64 = 1 << 17;

/// The writer thread.
pub(crate) struct Writer<'a> {
    pub pass: &'a Pass<'a>,
    pub work: &'a Work,
    pub store: &'a Store<'a>,
    /// What is there already.
    pub kept: &'a Kept,
    pub progress: &'a dyn Progress,
    pub stop: &'a Stop<'a>,
}

/// What became of the tiles.
#[derive(Default)]
pub(crate) struct Written {
    /// How many segments were written.
    pub segments: usize,
    /// Seconds of hashing.
    pub hash: f64,
    /// Seconds of writing.
    pub write: f64,
}

/// The hashes of planes so far; none of those whose rows lie apart, which are hashed as they lie in the file.
type Hashes = Vec<Option<Sha256>>;

/// The segment under way.
#[derive(Default)]
struct Open {
    hashes: Hashes,
    stats: Stats,
}

/// A tensor of several segments that came in order so far.
struct Whole {
    hashes: Hashes,
    /// The weight that is next.
    next: u64,
}

impl Writer<'_> {
    /// Writes tiles as they come, and hashes them meanwhile.
    ///
    /// # Errors
    /// If the system refuses, or a tensor has weights that may not be written.
    pub fn run(
        &self,
        encoded: &Receiver<Encoded>,
        buffers: &Sender<Vec<Vec<u8>>>,
        finished: &Sender<Finished>,
    ) -> Result<Written> {
        let mut sum = Written::default();
        let mut open = Open::default();
        let mut wholes: HashMap<usize, Whole> = HashMap::new();
        for Encoded { tile, read, planes, stats } in encoded {
            let segment = &self.work.segments[tile.step];
            let planes_at = &self.pass.layout.planes[tile.tensor];
            if tile.first_weight == segment.first_weight {
                for file in files_of(planes_at) {
                    if !self.store.make(file, self.stop)? {
                        return Ok(sum);
                    }
                }
                let lies_apart = |plane| self.pass.layout.arranged.contains_key(&(tile.tensor, plane));
                let hash = |plane| (!lies_apart(plane)).then(Sha256::new);
                open = Open { hashes: (0..planes_at.len()).map(hash).collect(), stats: Stats::default() };
                if tile.first_weight == 0 && self.work.is_cut(tile.tensor) {
                    wholes.insert(tile.tensor, Whole { hashes: open.hashes.clone(), next: 0 });
                }
            }
            let whole = wholes.get_mut(&tile.tensor).filter(|whole| whole.next == tile.first_weight);
            let in_order = whole.is_some();
            self.tile(&tile, &planes, &mut open.hashes, whole, &mut sum)?;
            if !in_order {
                wholes.remove(&tile.tensor);
            }
            open.stats.add(&stats);
            let written = planes.iter().map(|bytes| bytes.len() as u64).sum();
            // The encoder may be done and gone: then nobody needs the buffers.
            let _ = buffers.send(planes);
            self.progress.advance(Amount { read, written, weights: tile.weights });
            if tile.last {
                let elements = self.pass.outputs[tile.tensor].elements();
                let whole = match wholes.get(&tile.tensor) {
                    Some(whole) if whole.next == elements => wholes.remove(&tile.tensor),
                    _ => None,
                };
                let done = self.finish(tile.step, segment, std::mem::take(&mut open), whole)?;
                sum.segments += 1;
                if finished.send(done).is_err() {
                    break;
                }
            }
        }
        Ok(sum)
    }

    /// Writes a tile and hashes it: for its segment, and for its tensor as long as that comes in order.
    fn tile(
        &self,
        tile: &Tile,
        planes: &[Vec<u8>],
        hashes: &mut [Option<Sha256>],
        whole: Option<&mut Whole>,
        sum: &mut Written,
    ) -> Result<()> {
        let put = || -> Result<f64> {
            let start = Instant::now();
            let format = self.pass.formats[tile.tensor];
            let first_block = tile.first_weight / format.block as u64;
            for (plane, (bytes, &of_block)) in planes.iter().zip(format.planes).enumerate() {
                self.store.write_rows(tile.tensor, plane, first_block * of_block as u64, bytes)?;
            }
            Ok(start.elapsed().as_secs_f64())
        };
        let whole = whole.map(|whole| {
            whole.next += tile.weights;
            &mut whole.hashes[..]
        });
        let mut all: Vec<&mut [Option<Sha256>]> = whole.into_iter().chain([hashes]).collect();
        let (hashing, writing) =
            if planes.iter().map(|bytes| bytes.len() as u64).sum::<u64>() < WORTH_A_THREAD {
                (all.iter_mut().map(|hashes| update(hashes, planes)).sum(), put()?)
            } else {
                thread::scope(|scope| {
                    let threads: Vec<_> =
                        all.iter_mut().map(|hashes| scope.spawn(|| update(hashes, planes))).collect();
                    let writing = put();
                    // They hash at the same time.
                    let hashing = threads.into_iter().map(join).fold(0.0, f64::max);
                    Ok::<_, Error>((hashing, writing?))
                })?
            };
        sum.hash += hashing;
        sum.write += writing;
        Ok(())
    }

    /// What is to be noted of a segment, or what is wrong with its weights.
    fn finish(&self, step: usize, segment: &Segment, open: Open, whole: Option<Whole>) -> Result<Finished> {
        let Pass { outputs, formats, layout, .. } = self.pass;
        let (output, format) = (&outputs[segment.tensor], formats[segment.tensor]);
        let Open { hashes, stats } = open;
        stats.check(output, format, self.pass.allow_nonfinite)?;
        let planes = &layout.planes[segment.tensor];
        let at = if self.work.is_cut(segment.tensor) {
            segment.placements(format, planes)
        } else {
            planes.clone()
        };
        let hexed = |hashes, at: &[Placement]| self.hexed(segment.tensor, hashes, at);
        let entry = entry(output, layout, &at, hexed(hashes, &at)?, &stats);
        let whole = whole.map(|whole| hexed(whole.hashes, planes)).transpose()?;
        Ok(Finished { step, entry, stats, whole })
    }

    /// The hashes of what lies at `at`, or did before it was taken away.
    fn hexed(&self, tensor: usize, hashes: Hashes, at: &[Placement]) -> Result<Vec<String>> {
        let hash = |(plane, (hash, at)): (usize, (Option<Sha256>, &Placement))| match hash {
            Some(sha) => Ok(hex(&sha.finalize())),
            None => match self.kept.gone.get(&(tensor, plane)) {
                Some(hash) => Ok(hash.clone()),
                None => self.store.hash(*at),
            },
        };
        hashes.into_iter().zip(at).enumerate().map(hash).collect()
    }
}

/// Hashes bytes of each plane, and tells the seconds.
fn update(hashes: &mut [Option<Sha256>], planes: &[Vec<u8>]) -> f64 {
    let start = Instant::now();
    for (hash, bytes) in hashes.iter_mut().zip(planes) {
        hash.iter_mut().for_each(|hash| hash.update(bytes));
    }
    start.elapsed().as_secs_f64()
}

/// The journal's entry for a tensor, or a segment of it, whose planes lie at `placements` and have these hashes.
pub(crate) fn entry(
    output: &OutputTensor,
    layout: &Layout,
    placements: &[Placement],
    hashes: impl IntoIterator<Item = String>,
    stats: &Stats,
) -> Entry {
    let planes = placements.iter().zip(hashes).map(|(at, sha256)| Plane {
        file: layout.files[at.file].name.clone(),
        offset: at.offset,
        len: at.len,
        sha256,
    });
    Entry {
        tensor: output.name.clone(),
        planes: planes.collect(),
        squared_error: stats.squared_error,
        energy: stats.energy,
        nonfinite: stats.nonfinite,
    }
}

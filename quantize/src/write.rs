//! The end of the pass: bytes to their places, their hashes, and a line in the journal once they are on the disk.

use std::{
    collections::HashSet,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use formats::{Layout, OutputTensor, layout::Placement};
use sha2::{Digest, Sha256};

use crate::{
    encode::Stats,
    error::{Error, Result},
    journal::{Entry, Journal, Plane},
    pass::{Encoded, Pass, join},
    progress::{Amount, Progress},
    recipe::hex,
    store::Store,
};

/// How long finished tensors may wait for their line in the journal: a sync costs more than a small tensor.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a tile that take longer to hash than a thread to start.
const WORTH_A_THREAD: u64 = 1 << 17;

/// A tensor whose bytes are written, and the files that hold them.
pub(crate) struct Finished {
    entry: Entry,
    files: Vec<usize>,
}

/// The tensor under way.
#[derive(Default)]
struct Open {
    hashes: Vec<Sha256>,
    stats: Stats,
}

/// What became of the tiles.
#[derive(Default)]
pub(crate) struct Written {
    /// How many were written.
    pub tiles: usize,
    /// Seconds of hashing.
    pub hash: f64,
    /// Seconds of writing.
    pub write: f64,
}

/// Writes tiles as they come, and hashes them meanwhile.
pub(crate) fn write(
    pass: &Pass<'_>,
    store: &Store,
    progress: &dyn Progress,
    encoded: &Receiver<Encoded>,
    buffers: &Sender<Vec<Vec<u8>>>,
    finished: &Sender<Finished>,
) -> Result<Written> {
    let mut sum = Written::default();
    let mut open = Open::default();
    for Encoded { tile, read, planes, stats } in encoded {
        let format = pass.formats[tile.tensor];
        let placements = &pass.layout.planes[tile.tensor];
        if tile.first_weight == 0 {
            open = Open { hashes: vec![Sha256::new(); placements.len()], stats: Stats::default() };
        }
        let mut hash = || {
            let start = Instant::now();
            for (hash, bytes) in open.hashes.iter_mut().zip(&planes) {
                hash.update(bytes);
            }
            start.elapsed().as_secs_f64()
        };
        let put = || -> Result<f64> {
            let start = Instant::now();
            for (plane, bytes) in planes.iter().enumerate() {
                let at = placements[plane];
                let offset = tile.first_weight / format.block as u64 * format.planes[plane] as u64;
                store.write(at.file, at.offset + offset, bytes)?;
            }
            Ok(start.elapsed().as_secs_f64())
        };
        let written = planes.iter().map(|bytes| bytes.len() as u64).sum();
        let (hashing, writing) = if written < WORTH_A_THREAD {
            (hash(), put()?)
        } else {
            thread::scope(|scope| {
                let hashing = scope.spawn(&mut hash);
                let writing = put();
                Ok::<_, Error>((join(hashing), writing?))
            })?
        };
        sum.hash += hashing;
        sum.write += writing;
        open.stats.add(&stats);
        sum.tiles += 1;
        // The encoder may be done and gone: then nobody needs the buffers.
        let _ = buffers.send(planes);
        progress.advance(Amount { read, written, weights: tile.weights });
        if tile.last {
            let entry = finish(pass, tile.tensor, placements, std::mem::take(&mut open))?;
            let files = placements.iter().map(|at| at.file).collect();
            if finished.send(Finished { entry, files }).is_err() {
                break;
            }
        }
    }
    Ok(sum)
}

/// The journal's entry for a tensor, or what is wrong with its weights.
fn finish(pass: &Pass<'_>, tensor: usize, placements: &[Placement], open: Open) -> Result<Entry> {
    let output = &pass.outputs[tensor];
    let Open { hashes, stats } = open;
    stats.check(output, pass.formats[tensor], pass.allow_nonfinite)?;
    let hashes = hashes.into_iter().map(|sha| hex(&sha.finalize()));
    Ok(entry(output, pass.layout, placements, hashes, &stats))
}

/// The journal's entry for a tensor whose planes lie at `placements` and have these hashes.
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

/// Syncs what is finished, and only then notes it. Gives all entries and the seconds it waited for the disk.
pub(crate) fn keep(
    store: &Store,
    journal: &mut Journal,
    finished: &Receiver<Finished>,
) -> Result<(Vec<Entry>, f64)> {
    let (mut waiting, mut files, mut kept) = (Vec::new(), HashSet::new(), Vec::new());
    let mut busy = 0.0;
    let mut next = Instant::now() + JOURNAL_EVERY;
    loop {
        let received = finished.recv_timeout(next.saturating_duration_since(Instant::now()));
        let over = matches!(received, Err(RecvTimeoutError::Disconnected));
        let timeout = matches!(received, Err(RecvTimeoutError::Timeout));
        if let Ok(Finished { entry, files: touched }) = received {
            waiting.push(entry);
            files.extend(touched);
        }
        if (over || timeout || Instant::now() >= next) && !waiting.is_empty() {
            let start = Instant::now();
            for file in files.drain() {
                store.sync(file)?;
            }
            journal.done(&waiting)?;
            kept.append(&mut waiting);
            busy += start.elapsed().as_secs_f64();
        }
        if over {
            return Ok((kept, busy));
        }
        if Instant::now() >= next {
            next = Instant::now() + JOURNAL_EVERY;
        }
    }
}

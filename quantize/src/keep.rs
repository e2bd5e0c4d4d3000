//! The end of the pass: a line in the journal for what is on the disk. Then the source is told that it may let go of what that was
//! made of, and files of which nothing is missing are passed on to be taken away.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Mutex, MutexGuard,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use formats::{Layout, layout::Placement};

use crate::{
    encode::Stats,
    error::Result,
    journal::{Entry, Journal, Line, PartEntry},
    pass::Pass,
    store::Store,
    work::{Kept, Work, files_of},
    write::entry,
};

/// How long finished segments may wait for their line in the journal: a sync costs more than a small tensor.
const JOURNAL_EVERY: Duration = Duration::from_secs(2);
/// How long they wait when nothing follows: what does may wait for them, the reader for a file that the source has no room for
/// before this, the writer for a file that has to be taken away.
const IDLE: Duration = Duration::from_millis(200);

/// A segment whose bytes are written.
pub(crate) struct Finished {
    /// Which.
    pub step: usize,
    /// What the journal says of it.
    pub entry: Entry,
    /// What was found in it.
    pub stats: Stats,
    /// The hashes of the tensor's planes if it ends its tensor and all of that came in order.
    pub whole: Option<Vec<String>>,
}

/// The thread that keeps the journal.
pub(crate) struct Keeper<'a> {
    pass: &'a Pass<'a>,
    work: &'a Work,
    store: &'a Store<'a>,
    journal: &'a Mutex<Journal>,
    kept: &'a Kept,
    /// Where files go of which nothing is missing.
    whole_files: Option<Sender<usize>>,
    /// For each output file, how many of its tensors are not done.
    left: Vec<usize>,
    tensors: BTreeMap<usize, Vec<Option<Stats>>>,
    done: Vec<Entry>,
}

impl<'a> Keeper<'a> {
    /// With files passed on if there is somebody who takes them.
    pub fn new(
        pass: &'a Pass<'a>,
        work: &'a Work,
        store: &'a Store<'a>,
        journal: &'a Mutex<Journal>,
        kept: &'a Kept,
        whole_files: Option<Sender<usize>>,
    ) -> Keeper<'a> {
        let (left, tensors) = (work.left(pass.layout), work.tensors.clone());
        Keeper { pass, work, store, journal, kept, whole_files, left, tensors, done: Vec::new() }
    }

    /// Syncs what is finished, and only then notes it. Gives the entries of the tensors that became whole and the seconds it
    /// waited for the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn run(mut self, finished: &Receiver<Finished>) -> Result<(Vec<Entry>, f64)> {
        // Those that an earlier run finished.
        for file in (0..self.left.len()).filter(|&file| self.left[file] == 0) {
            self.pass_on(file);
        }
        let mut waiting: Vec<Finished> = Vec::new();
        let (mut busy, mut due) = (0.0, Instant::now());
        loop {
            let received = if waiting.is_empty() {
                finished.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                finished.recv_timeout(due.saturating_duration_since(Instant::now()).min(IDLE))
            };
            let over = matches!(received, Err(RecvTimeoutError::Disconnected));
            let is_idle = matches!(received, Err(RecvTimeoutError::Timeout));
            if let Ok(segment) = received {
                if waiting.is_empty() {
                    due = Instant::now() + JOURNAL_EVERY;
                }
                waiting.push(segment);
            }
            if (over || is_idle || Instant::now() >= due) && !waiting.is_empty() {
                let start = Instant::now();
                self.note(std::mem::take(&mut waiting))?;
                busy += start.elapsed().as_secs_f64();
            }
            if over {
                return Ok((self.done, busy));
            }
        }
    }

    /// Syncs segments and notes them, and the tensors that they make whole.
    fn note(&mut self, segments: Vec<Finished>) -> Result<()> {
        let tensor = |finished: &Finished| self.work.segments[finished.step].tensor;
        let files: HashSet<usize> = segments
            .iter()
            .flat_map(|finished| files_of(&self.pass.layout.planes[tensor(finished)]))
            .collect();
        files.into_iter().try_for_each(|file| self.store.sync(file))?;

        let last = segments.last().map(|finished| finished.step);
        let mut lines = Vec::new();
        let (mut done, mut unhashed) = (Vec::new(), Vec::new());
        for Finished { step, entry, stats, whole } in segments {
            let segment = &self.work.segments[step];
            let tensor = segment.tensor;
            if !self.work.is_cut(tensor) {
                lines.push(Line::Done(entry.clone()));
                done.push((tensor, entry));
                continue;
            }
            let (first_weight, weights) = (segment.first_weight, segment.weights);
            lines.push(Line::Part(PartEntry { segment: segment.index, first_weight, weights, entry }));
            let Some(all) = self.tensors.get_mut(&tensor) else { continue };
            all[segment.index] = Some(stats);
            let Some(stats) = sum(all) else { continue };
            match whole {
                None => unhashed.push((tensor, stats)),
                Some(hashes) => {
                    let entry = self.entry(tensor, hashes, &stats);
                    lines.push(Line::Done(entry.clone()));
                    done.push((tensor, entry));
                }
            }
        }
        lock(self.journal).append(&lines)?;
        // Steps come in order: so all before it are noted too.
        last.into_iter().for_each(|step| self.pass.source.settled(step));
        self.finish(done);
        // Reading them again takes long: whoever waited for the rest goes on meanwhile.
        for (tensor, stats) in unhashed {
            let hashes = plane_hashes(self.pass.layout, self.store, self.kept, tensor)?;
            let entry = self.entry(tensor, hashes, &stats);
            lock(self.journal).done(std::slice::from_ref(&entry))?;
            self.finish(vec![(tensor, entry)]);
        }
        Ok(())
    }

    fn entry(&self, tensor: usize, hashes: Vec<String>, stats: &Stats) -> Entry {
        let (output, layout) = (&self.pass.outputs[tensor], self.pass.layout);
        entry(output, layout, &layout.planes[tensor], hashes, stats)
    }

    /// Counts tensors that are noted, and passes the files on that are whole by that.
    fn finish(&mut self, tensors: Vec<(usize, Entry)>) {
        for (tensor, entry) in tensors {
            self.done.push(entry);
            for file in files_of(&self.pass.layout.planes[tensor]) {
                self.left[file] -= 1;
                if self.left[file] == 0 {
                    self.pass_on(file);
                }
            }
        }
    }

    fn pass_on(&self, file: usize) {
        if let Some(whole_files) = self.whole_files.as_ref().filter(|_| self.store.is_open(file)) {
            // Whoever takes them may have failed: then the pass ends with that.
            let _ = whole_files.send(file);
        }
    }
}

pub(crate) fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What was found in all segments of a tensor, if all are written. Summed up in their order, in whichever they were written.
pub(crate) fn sum(segments: &[Option<Stats>]) -> Option<Stats> {
    let mut sum = Stats::default();
    for stats in segments {
        sum.add(stats.as_ref()?);
    }
    Some(sum)
}

/// The hashes of a tensor's planes as they are on the disk, or were when they were taken away.
pub(crate) fn plane_hashes(
    layout: &Layout,
    store: &Store<'_>,
    kept: &Kept,
    tensor: usize,
) -> Result<Vec<String>> {
    let hash = |(plane, at): (usize, &Placement)| match kept.gone.get(&(tensor, plane)) {
        Some(hash) => Ok(hash.clone()),
        None => store.hash(*at),
    };
    layout.planes[tensor].iter().enumerate().map(hash).collect()
}

//! Running a job: resume or begin, stream the weights, put the files in place.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::atomic::AtomicBool,
    time::UNIX_EPOCH,
};

use formats::TensorSource;

use crate::{
    error::{Error, Result},
    job::Job,
    journal::{Entry, Head, Journal, Past, SourceStamp},
    pass::Busy,
    progress::{Amount, Phase, Progress},
    store::{self, Present, Store},
};

const JOURNAL: &str = "journal.jsonl";
const RECIPE: &str = "recipe.toml";
const PRIVATE: &[&str] = &[JOURNAL, RECIPE];

/// How a job is run: nothing here changes the bytes that come out.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Cores that encode.
    pub threads: usize,
    /// Ceiling for the buffers, in bytes.
    pub memory: u64,
    /// Whether something else at the destination may be replaced.
    pub overwrite: bool,
}

/// How a run ended well.
#[derive(Debug)]
pub enum Outcome {
    /// The very output lay there already: nothing was done.
    AlreadyThere,
    /// The output is in place.
    Written {
        /// What became of each tensor, in the order of the file.
        entries: Vec<Entry>,
        /// How many of them an earlier run had written.
        resumed: usize,
        /// What this run read and wrote.
        amount: Amount,
        /// How long each stage was busy.
        busy: Busy,
    },
}

/// Runs `job`.
///
/// # Errors
/// Whatever stops it. What is written by then is kept in the destination's `partial` folder, and the same job resumes from it.
pub fn run(job: &Job, options: RunOptions, progress: &dyn Progress, cancel: &AtomicBool) -> Result<Outcome> {
    match begin(job, options.overwrite, progress)? {
        Begun::Over(outcome) => Ok(outcome),
        Begun::Open(session) => session.complete(options, progress, cancel),
    }
}

/// How a run begins.
pub(crate) enum Begun<'a> {
    /// There is nothing left to write.
    Over(Outcome),
    /// There is.
    Open(Box<Session<'a>>),
}

/// An output under way.
pub(crate) struct Session<'a> {
    /// What is written.
    pub job: &'a Job,
    /// Where it is written.
    pub store: Store,
    journal: Journal,
    /// The tensors that are on the disk.
    done: Vec<Entry>,
    /// How many of them an earlier run had written.
    resumed: usize,
}

/// Begins a run, or goes on with an earlier one, whose tensors are checked.
///
/// # Errors
/// If something else lies at the destination, or what is under way there is another job's.
pub(crate) fn begin<'a>(job: &'a Job, overwrite: bool, progress: &dyn Progress) -> Result<Begun<'a>> {
    let destination = &job.destination;
    let partial = destination.partial();
    // An interrupted move leaves some files in place: the journal knows of them.
    let moving = partial.join(JOURNAL).exists();
    match store::present(destination, &job.layout)? {
        Present::Same if !moving => {
            store::tidy(destination, PRIVATE)?;
            return Ok(Begun::Over(Outcome::AlreadyThere));
        }
        Present::Other if !moving && !overwrite => {
            return Err(Error::OutputExists { path: destination.path().to_owned() });
        }
        _ => {}
    }
    fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
    let (mut journal, past) = Journal::open(&partial.join(JOURNAL))?;
    let stamps = stamps(&*job.source)?;
    agree(job, &past, &stamps, &partial)?;
    if past.head.is_none() {
        let recipe = partial.join(RECIPE);
        fs::write(&recipe, job.recipe.to_toml()).map_err(Error::io(&recipe))?;
        journal.begin(&Head { recipe: job.recipe.hash(), source: stamps })?;
    }
    if past.whole {
        store::finish(destination, &job.layout, PRIVATE)?;
        let resumed = past.entries.len();
        return Ok(Begun::Over(Outcome::Written {
            entries: in_order(job, past.entries),
            resumed,
            amount: Amount::default(),
            busy: Busy::default(),
        }));
    }
    let store = Store::open(&partial, &job.layout)?;
    let done = check(job, &store, past.entries, progress)?;
    let resumed = done.len();
    Ok(Begun::Open(Box::new(Session { job, store, journal, done, resumed })))
}

impl Session<'_> {
    /// The names of the tensors that are on the disk.
    pub fn done(&self) -> HashSet<&str> {
        self.done.iter().map(|entry| entry.tensor.as_str()).collect()
    }

    /// Notes tensors that were written otherwise than by the streaming pass, once they are on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn keep(&mut self, entries: Vec<Entry>) -> Result<()> {
        for file in 0..self.job.layout.files.len() {
            self.store.sync(file)?;
        }
        self.journal.done(&entries)?;
        self.done.extend(entries);
        Ok(())
    }

    /// Streams the tensors that are not there yet, and puts the files in place.
    ///
    /// # Errors
    /// As [`run`].
    pub fn complete(
        mut self,
        options: RunOptions,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Outcome> {
        let job = self.job;
        let pass = job.pass(options.memory, options.threads);
        let tiles = pass.tiles(&self.done())?;
        let amount = pass.amount(&tiles)?;
        let written = |entry: &Entry| entry.planes.iter().map(|plane| plane.len).sum::<u64>();
        let earlier = Amount { written: self.done.iter().map(written).sum(), ..Amount::default() };
        let total = Amount { written: amount.written + earlier.written, ..amount };
        progress.begin(Phase::Quantizing, total, earlier);
        let result = pass.run(tiles, &self.store, &mut self.journal, progress, cancel);
        progress.end();
        let (new, busy) = result?;
        let Some(new) = new else {
            return Err(Error::Interrupted { partial: job.destination.partial() });
        };
        for file in 0..job.layout.files.len() {
            self.store.sync(file)?;
        }
        self.journal.whole()?;
        drop((self.store, self.journal));
        store::finish(&job.destination, &job.layout, PRIVATE)?;
        let entries = in_order(job, self.done.into_iter().chain(new));
        Ok(Outcome::Written { entries, resumed: self.resumed, amount, busy })
    }
}

/// Size and time of each source file.
fn stamps(source: &dyn TensorSource) -> Result<Vec<SourceStamp>> {
    let stamp = |path: &Path| {
        let metadata = fs::metadata(path).map_err(Error::io(path))?;
        let modified = metadata.modified().map_err(Error::io(path))?;
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(SourceStamp { name, bytes: metadata.len(), modified })
    };
    source.files().iter().map(|file| stamp(&file.path)).collect()
}

/// Refuses to go on with another job's output or from a changed source.
fn agree(job: &Job, past: &Past, stamps: &[SourceStamp], partial: &Path) -> Result<()> {
    let Some(head) = &past.head else { return Ok(()) };
    if head.recipe != job.recipe.hash() {
        let theirs = fs::read_to_string(partial.join(RECIPE)).unwrap_or_default();
        return Err(Error::OtherJob { path: partial.to_owned(), difference: job.recipe.difference(&theirs) });
    }
    for (file, (now, then)) in job.source.files().iter().zip(stamps.iter().zip(&head.source)) {
        if now != then {
            let difference = if now.bytes == then.bytes {
                "its time of modification is another".to_owned()
            } else {
                format!("it had {} bytes and has {}", then.bytes, now.bytes)
            };
            return Err(Error::SourceChanged {
                path: file.path.clone(),
                difference,
                partial: partial.to_owned(),
            });
        }
    }
    Ok(())
}

/// Keeps the entries whose bytes are on the disk as the journal says; the others are done again.
fn check(job: &Job, store: &Store, entries: Vec<Entry>, progress: &dyn Progress) -> Result<Vec<Entry>> {
    if entries.is_empty() {
        return Ok(entries);
    }
    let bytes = |entry: &Entry| entry.planes.iter().map(|plane| plane.len).sum::<u64>();
    let total = Amount { written: entries.iter().map(bytes).sum(), ..Amount::default() };
    progress.begin(Phase::Checking, total, Amount::default());
    let tensors: HashMap<&str, usize> =
        job.outputs.iter().enumerate().map(|(index, output)| (output.name.as_str(), index)).collect();
    let mut kept = Vec::new();
    for entry in entries {
        let Some(&tensor) = tensors.get(entry.tensor.as_str()) else { continue };
        let mut same = true;
        for (at, plane) in job.layout.planes[tensor].iter().zip(&entry.planes) {
            same =
                same && (at.offset, at.len) == (plane.offset, plane.len) && store.hash(*at)? == plane.sha256;
        }
        progress.advance(Amount { written: bytes(&entry), ..Amount::default() });
        if same {
            kept.push(entry);
        }
    }
    progress.end();
    Ok(kept)
}

/// The entries in the order of the output's tensors.
fn in_order(job: &Job, entries: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    let mut by_name: HashMap<String, Entry> =
        entries.into_iter().map(|entry| (entry.tensor.clone(), entry)).collect();
    job.outputs.iter().filter_map(|output| by_name.remove(&output.name)).collect()
}

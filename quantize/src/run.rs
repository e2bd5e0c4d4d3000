//! Running a job: resume or begin, stream the weights, put the files in place.

use std::{
    collections::{HashMap, HashSet},
    fs,
    sync::{Mutex, atomic::AtomicBool},
};

use crate::{
    error::{Error, Result},
    job::Job,
    journal::{Entry, Head, Journal, Past},
    outlet::{Outlet, Shipped},
    pass::{Busy, Output},
    progress::{Amount, Phase, Progress},
    resume::{RECIPE, agree, bytes_of, check, stamps},
    store::{self, Present, Store, holds_tensors},
    work::Kept,
};

const JOURNAL: &str = "journal.jsonl";
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
    /// The output is in place, but for what an outlet took.
    Written {
        /// What became of each tensor, in the order of the file.
        entries: Vec<Entry>,
        /// The files that an outlet took, in the order of the output.
        shipped: Vec<Shipped>,
        /// How many of the tensors an earlier run had written.
        resumed: usize,
        /// What this run read and wrote.
        amount: Amount,
        /// How long each stage was busy.
        busy: Busy,
    },
}

/// Runs `job`.
///
/// With an `outlet` each file that holds tensors is taken away when it is whole, and only side files, if the output has any, are
/// put in place. The `partial` folder then stays, so that the job can be run again, at once and with the same outcome, should what
/// follows it fail: [`forget`] removes it.
///
/// `cancel` may be set at any time (Ctrl-C). It is set here if the run fails, to wake up a source that waits for a file.
///
/// # Errors
/// Whatever stops it. What is written by then is kept in the destination's `partial` folder, and the same job resumes from it.
pub fn run(
    job: &Job,
    options: RunOptions,
    outlet: Option<&dyn Outlet>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    match begin(job, options.overwrite, outlet, progress)? {
        Begun::Over(outcome) => Ok(outcome),
        Begun::Open(session) => session.complete(options, progress, cancel),
    }
}

/// Removes what a run with an outlet kept, or what is left of an unfinished one.
///
/// # Errors
/// [`Error::Busy`] if another process works on it, or if the system refuses.
pub fn forget(job: &Job) -> Result<()> {
    let journal = job.destination.partial().join(JOURNAL);
    // Held until the folder is gone.
    let _held = if journal.exists() { Some(Journal::open(&journal)?) } else { None };
    store::remove_partial(&job.destination)
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
    pub store: Store<'a>,
    journal: Journal,
    outlet: Option<&'a dyn Outlet>,
    /// What is on the disk, or was taken away.
    kept: Kept,
    /// How many tensors an earlier run had written.
    resumed: usize,
}

/// Begins a run, or goes on with an earlier one, whose tensors are checked.
///
/// # Errors
/// If something else lies at the destination, or what is under way there is another job's.
pub(crate) fn begin<'a>(
    job: &'a Job,
    overwrite: bool,
    outlet: Option<&'a dyn Outlet>,
    progress: &dyn Progress,
) -> Result<Begun<'a>> {
    let destination = &job.destination;
    let partial = destination.partial();
    // An interrupted move leaves some files in place: the journal knows of them.
    let moving = partial.join(JOURNAL).exists();
    let present = match outlet {
        Some(_) => store::present_beside(destination, &job.layout)?,
        None => store::present(destination, &job.layout)?,
    };
    match present {
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
    agree(job, &past, &stamps, outlet.is_some(), &partial)?;
    if past.head.is_none() {
        let recipe = partial.join(RECIPE);
        fs::write(&recipe, job.recipe.to_toml()).map_err(Error::io(&recipe))?;
        journal.begin(&Head { recipe: job.recipe.hash(), source: stamps })?;
    }
    if past.whole {
        return Ok(Begun::Over(put_in_place(job, past, outlet.is_some())?));
    }
    let store = match outlet {
        None => Store::open(&partial, &job.layout)?,
        Some(outlet) => {
            let gone = past.shipped.iter().filter_map(|file| file_index(job, &file.name)).collect();
            Store::sparse(&partial, &job.layout, outlet.room(), &gone)?
        }
    };
    let kept = check(job, &store, &mut journal, past, progress)?;
    let resumed = kept.entries.len();
    Ok(Begun::Open(Box::new(Session { job, store, journal, outlet, kept, resumed })))
}

/// What is left to do when an earlier run wrote all.
fn put_in_place(job: &Job, past: Past, has_outlet: bool) -> Result<Outcome> {
    if has_outlet {
        store::finish_beside(&job.destination, &job.layout)?;
    } else {
        store::finish(&job.destination, &job.layout, PRIVATE)?;
    }
    let entries = in_order(job, past.entries);
    Ok(Outcome::Written {
        resumed: entries.len(),
        entries,
        shipped: files_in_order(job, past.shipped),
        amount: Amount::default(),
        busy: Busy::default(),
    })
}

impl Session<'_> {
    /// The names of the tensors that are on the disk.
    pub fn done(&self) -> HashSet<&str> {
        self.kept.entries.iter().map(|entry| entry.tensor.as_str()).collect()
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
        self.kept.entries.extend(entries);
        Ok(())
    }

    /// Streams the tensors that are not there yet, and puts the files in place.
    ///
    /// # Errors
    /// As [`run`].
    pub fn complete(
        self,
        options: RunOptions,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Outcome> {
        let Session { job, store, journal, outlet, kept, resumed } = self;
        let partial = job.destination.partial();
        let pass = job.pass(options.memory, options.threads);
        let work = pass.work(&kept)?;
        if let Some(room) = outlet.map(Outlet::room) {
            let gone = (0..job.layout.files.len()).filter(|&file| store.is_gone(file)).collect();
            let needed = work.peak(&job.layout, &store.open_files(), &gone);
            if needed > room {
                return Err(Error::Room { path: partial, needed, room });
            }
        }
        let amount = pass.amount(&work)?;
        let parts = kept.parts.iter().map(|part| &part.entry);
        let earlier =
            Amount { written: kept.entries.iter().chain(parts).map(bytes_of).sum(), ..Amount::default() };
        let total = Amount { written: amount.written + earlier.written, ..amount };
        progress.begin(Phase::Quantizing, total, earlier);
        let journal = Mutex::new(journal);
        let output = Output { store: &store, journal: &journal, outlet, kept: &kept };
        let result = pass.run(work, &output, progress, cancel);
        progress.end();
        let made = result?;
        let shipped: Vec<Shipped> = kept.shipped.into_iter().chain(made.shipped).collect();
        let tensor_files = holds_tensors(&job.layout).into_iter().filter(|tensors| *tensors).count();
        let is_all_taken = outlet.is_none() || shipped.len() == tensor_files;
        let Some(new) = made.entries.filter(|_| is_all_taken) else {
            return Err(Error::Interrupted { partial });
        };
        store.make_side_files()?;
        for file in 0..job.layout.files.len() {
            store.sync(file)?;
        }
        let mut journal = journal.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        journal.whole()?;
        drop((store, journal));
        if outlet.is_some() {
            store::finish_beside(&job.destination, &job.layout)?;
        } else {
            store::finish(&job.destination, &job.layout, PRIVATE)?;
        }
        let entries = in_order(job, kept.entries.into_iter().chain(new));
        let shipped = files_in_order(job, shipped);
        Ok(Outcome::Written { entries, shipped, resumed, amount, busy: made.busy })
    }
}

/// The position of an output file.
fn file_index(job: &Job, name: &str) -> Option<usize> {
    job.layout.files.iter().position(|file| file.name == name)
}

/// The files in the order of the output, each once.
fn files_in_order(job: &Job, mut files: Vec<Shipped>) -> Vec<Shipped> {
    files.sort_by_key(|file| file_index(job, &file.name));
    files.dedup_by(|a, b| a.name == b.name);
    files
}

/// The entries in the order of the output's tensors.
fn in_order(job: &Job, entries: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    let mut by_name: HashMap<String, Entry> =
        entries.into_iter().map(|entry| (entry.tensor.clone(), entry)).collect();
    job.outputs.iter().filter_map(|output| by_name.remove(&output.name)).collect()
}

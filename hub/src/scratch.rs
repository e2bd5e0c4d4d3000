//! Weights that pass through a bounded part of the disk: a file is fetched whole, checked against its hash, read, and dropped when
//! nothing will read it any more.
//!
//! A pass says beforehand in which order it will read ([`Storage::expect`]) and what is settled ([`Storage::settled`]): then files come
//! in that order, as far ahead as there is room, and go as soon as they may. Without such a plan (a forward pass) a file comes when it
//! is first read, and the one that was read longest ago goes when room is needed. Headers are read by range before; they are compared
//! with the file's once it is there.

mod heads;
mod state;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use formats::source::{Opened, ReadAt, Source, Storage};

use state::{Here, Plan, State};

use crate::api::{Hash, RemoteFile};
use crate::cache::lock;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repo::RepoId;
use crate::snapshot::Snapshot;
use crate::transfer::{self, Room, Transfer, hash_of};

/// How long steps that were read may take to be settled before a file that a later one reads goes to make room.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often those who wait look whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(200);

/// The bounded part of the disk, and who fetches into it.
struct Scratch {
    client: Arc<Client>,
    repo: RepoId,
    commit: String,
    folder: PathBuf,
    budget: u64,
    progress: Arc<dyn Progress>,
    files: Vec<Remote>,
    by_path: HashMap<PathBuf, usize>,
    state: Mutex<State>,
    changed: Condvar,
    /// No other process uses the folder as long as it is held.
    _lock: Option<File>,
}

/// A file with weights.
struct Remote {
    /// Under which name the model knows it.
    path: PathBuf,
    file: RemoteFile,
    /// Where it lies in the shared cache, if it does: then it takes no room here.
    cached: Option<PathBuf>,
    /// Its first bytes, unchecked.
    head: Mutex<Vec<u8>>,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch")
            .field("repo", &self.repo)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// Opens a model whose weights stay on the Hub and pass through `budget` bytes of this disk. Reads headers alone.
///
/// # Errors
/// [`Error::Busy`] if another process streams the same commit; what the Hub says; [`Error::Unreachable`].
pub fn stream(
    client: &Arc<Client>,
    snapshot: &Snapshot,
    budget: u64,
    progress: &Arc<dyn Progress>,
) -> Result<Source> {
    let home = client.settings().home.join("halfbyte").join("scratch");
    let folder = home.join(format!("{}--{}--{}", snapshot.repo.owner, snapshot.repo.name, snapshot.commit));
    // Who reads headers alone leaves no trace, and may do so beside others.
    let held = if budget > 0 {
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let mut name = folder.clone().into_os_string();
        name.push(".lock");
        Some(lock(Path::new(&name))?)
    } else {
        None
    };
    let remote = |file: &RemoteFile| Remote {
        path: snapshot.folder().join(&file.path),
        cached: Some(snapshot.cache.blob(&file.hash)).filter(|blob| blob.exists()),
        file: file.clone(),
        head: Mutex::default(),
    };
    let files: Vec<Remote> = snapshot.weights.iter().map(remote).collect();
    let scratch = Scratch {
        client: Arc::clone(client),
        repo: snapshot.repo.clone(),
        commit: snapshot.commit.clone(),
        folder,
        budget,
        progress: Arc::clone(progress),
        by_path: files.iter().enumerate().map(|(index, file)| (file.path.clone(), index)).collect(),
        files,
        state: Mutex::default(),
        changed: Condvar::new(),
        _lock: held,
    };
    if budget > 0 {
        scratch.recover()?;
    }
    scratch.heads()?;
    let storage = Arc::new(Stream(Arc::new(scratch)));
    Ok(Source::elsewhere(snapshot.path(), storage, snapshot.origin()))
}

/// A scratch that stops fetching when nobody reads from it any more.
#[derive(Debug)]
struct Stream(Arc<Scratch>);

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.over = true;
        if state.done {
            drop(state);
            // What can't be removed is removed by the next run.
            let _ = fs::remove_dir_all(&self.0.folder);
        }
        self.0.changed.notify_all();
    }
}

impl Storage for Stream {
    fn open(&self, path: &Path) -> formats::Result<Opened> {
        let Some(&index) = self.0.by_path.get(path) else { return formats::source::Disk.open(path) };
        let file = &self.0.files[index].file;
        let sha256 = match &file.hash {
            Hash::Sha256(hex) => Some(hex.clone()),
            Hash::GitBlob(_) => None,
        };
        let handle = Arc::new(Handle { scratch: Arc::clone(&self.0), index });
        Ok(Opened { handle, len: file.bytes, sha256 })
    }

    fn is_file(&self, path: &Path) -> bool {
        self.0.by_path.contains_key(path) || path.is_file()
    }

    fn list(&self, folder: &Path) -> formats::Result<Vec<PathBuf>> {
        let mut files = formats::source::Disk.list(folder)?;
        files.extend(self.0.by_path.keys().filter(|path| path.parent() == Some(folder)).cloned());
        files.sort();
        files.dedup();
        Ok(files)
    }

    fn expect(&self, steps: Vec<Vec<&Path>>) -> formats::Result<()> {
        self.0.expect(steps).map_err(|error| {
            let source = io::Error::other(error);
            formats::Error::Io { path: self.0.folder.clone(), source }
        })
    }

    fn settled(&self, step: usize) {
        self.0.settled(step);
    }

    fn done(&self) {
        self.0.lock().done = true;
    }
}

/// An open file of a scratch.
#[derive(Debug)]
struct Handle {
    scratch: Arc<Scratch>,
    index: usize,
}

impl ReadAt for Handle {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.scratch.file(self.index).map_err(io::Error::other)?;
        FileExt::read_exact_at(&*file, buffer, offset)
    }

    fn read_head_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.scratch.read_head(self.index, buffer, offset).map_err(io::Error::other)
    }
}

impl Scratch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for a change, but not for long.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }

    /// Where a file's bytes lie here.
    fn place(&self, index: usize) -> PathBuf {
        self.folder.join(self.files[index].file.hash.hex())
    }

    /// Takes up what an earlier run left, once it is checked; what belongs to no file of the model goes.
    fn recover(&self) -> Result<()> {
        let known: HashMap<&str, usize> =
            self.files.iter().enumerate().map(|(index, file)| (file.file.hash.hex(), index)).collect();
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let path = entry.map_err(Error::io(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let index = known.get(name.split('.').next().unwrap_or_default()).copied();
            let is_of_use = index.filter(|&index| self.files[index].cached.is_none());
            let mut state = self.lock();
            let room = self.budget.saturating_sub(state.taken());
            match is_of_use {
                // Of an unfinished file there are two: bytes, and marks that say which.
                Some(_) if name.ends_with(".pieces") => continue,
                // It goes on when its turn comes.
                Some(index) if name.contains('.') => {
                    let there = transfer::there(&self.place(index), self.files[index].file.bytes);
                    if there <= room {
                        state.partial.insert(index, there);
                    } else {
                        transfer::discard(&self.place(index))?;
                    }
                    continue;
                }
                Some(index) if self.size(index) <= room => {
                    drop(state);
                    if hash_of(&self.client, &path, &self.files[index].file.hash)? == name {
                        self.keep(&mut self.lock(), index)?;
                        continue;
                    }
                }
                _ => {}
            }
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        Ok(())
    }

    /// Counts a whole file as here.
    fn keep(&self, state: &mut State, index: usize) -> Result<()> {
        let remote = &self.files[index];
        let path = remote.cached.clone().unwrap_or_else(|| self.place(index));
        let bytes = self.size(index);
        let file = File::open(&path).map_err(Error::io(&path))?;
        // What was planned by must be what is read.
        let head = remote.head.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut found = vec![0; head.len()];
        FileExt::read_exact_at(&file, &mut found, 0).map_err(Error::io(&path))?;
        if found != *head {
            return Err(Error::Changed {
                repo: self.repo.to_string(),
                file: remote.file.path.clone(),
                before: "another header".to_owned(),
                now: "a header that its hash confirms".to_owned(),
            });
        }
        state.clock += 1;
        let last_read = state.clock;
        state.here.insert(index, Here { file: Arc::new(file), last_read, bytes });
        Ok(())
    }

    /// A file that is whole, once it is.
    fn file(self: &Arc<Self>, index: usize) -> Result<Arc<File>> {
        let mut state = self.lock();
        if self.files[index].cached.is_some() && !state.here.contains_key(&index) {
            self.keep(&mut state, index)?;
        }
        loop {
            state.clock += 1;
            let now = state.clock;
            if let Some(here) = state.here.get_mut(&index) {
                here.last_read = now;
                let file = Arc::clone(&here.file);
                state.asked.retain(|&asked| asked != index);
                return Ok(file);
            }
            if self.client.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if let Some(problem) = &state.failed {
                return Err(Error::Fetch(problem.clone()));
            }
            self.fits(&[index])?;
            if !state.asked.contains(&index) {
                state.asked.push(index);
                self.changed.notify_all();
            }
            self.start(&mut state);
            state = self.wait(state);
        }
    }

    /// What a file takes of the budget.
    fn size(&self, file: usize) -> u64 {
        let Remote { file, cached, .. } = &self.files[file];
        if cached.is_some() { 0 } else { file.bytes }
    }

    /// Refuses files that can't be here at the same time.
    fn fits(&self, files: &[usize]) -> Result<()> {
        let needed = files.iter().map(|&file| self.size(file)).sum();
        if needed > self.budget {
            let names: Vec<&str> = files.iter().map(|&file| self.files[file].file.path.as_str()).collect();
            return Err(Error::Budget { files: names.join(" and "), needed, budget: self.budget });
        }
        Ok(())
    }

    fn expect(self: &Arc<Self>, steps: Vec<Vec<&Path>>) -> Result<()> {
        let known = |paths: &Vec<&Path>| -> Vec<usize> {
            paths.iter().filter_map(|path| self.by_path.get(*path).copied()).collect()
        };
        let steps: Vec<Vec<usize>> = steps.iter().map(known).collect();
        // The largest step says what would do for all of them.
        let bytes = |files: &&Vec<usize>| -> u64 { files.iter().map(|&file| self.size(file)).sum() };
        self.fits(steps.iter().max_by_key(bytes).map_or(&[], |files| files))?;
        let (mut order, mut last) = (Vec::new(), HashMap::new());
        for (step, files) in steps.into_iter().enumerate() {
            for file in files {
                if last.insert(file, step).is_none() {
                    order.push(file);
                }
            }
        }
        let mut state = self.lock();
        state.plan = Some(Plan { order, last, settled: 0 });
        self.drop_done(&mut state);
        self.start(&mut state);
        self.changed.notify_all();
        Ok(())
    }

    fn settled(&self, step: usize) {
        let mut state = self.lock();
        if let Some(plan) = &mut state.plan {
            plan.settled = plan.settled.max(step + 1);
        }
        self.drop_done(&mut state);
        self.changed.notify_all();
    }

    /// Drops what no later step reads.
    fn drop_done(&self, state: &mut State) {
        let Some(plan) = &state.plan else { return };
        let done: Vec<usize> = state.here.keys().copied().filter(|&file| plan.is_done_with(file)).collect();
        for file in done {
            self.forget(state, file);
        }
    }

    fn forget(&self, state: &mut State, file: usize) {
        state.here.remove(&file);
        if self.files[file].cached.is_none() {
            // What can't be removed is removed by the next run.
            let _ = fs::remove_file(self.place(file));
        }
    }

    /// What may go so that `wanted`, which somebody waits for, can come: what nothing will read any more, the longest unread first;
    /// then what will be read last, if that is after `wanted`. What was read for steps that are not settled yet goes when they are;
    /// if that does not help (`waited`), what was read longest ago goes, to be fetched again.
    fn dispensable(&self, state: &State, wanted: usize, waited: bool) -> Option<usize> {
        let plan = state.plan.as_ref();
        let turn = |file: usize| plan.and_then(|plan| plan.order.iter().position(|&other| other == file));
        let candidates = || state.here.iter().filter(|(_, here)| here.bytes > 0);
        let is_done = |file: usize| plan.is_none_or(|plan| plan.is_done_with(file));
        let oldest = candidates().filter(|(file, _)| is_done(**file)).min_by_key(|(_, here)| here.last_read);
        let latest = || {
            candidates().filter(|(file, _)| turn(**file) > turn(wanted)).max_by_key(|(file, _)| turn(**file))
        };
        let any = || candidates().filter(|_| waited).min_by_key(|(_, here)| here.last_read);
        oldest.or_else(latest).or_else(any).map(|(&file, _)| file)
    }

    /// Has somebody fetch.
    fn start(self: &Arc<Self>, state: &mut State) {
        if !state.started {
            state.started = true;
            let scratch = Arc::clone(self);
            thread::spawn(move || scratch.run());
        }
    }

    /// Fetches one file after the other, as long as somebody reads.
    fn run(&self) {
        loop {
            let mut state = self.lock();
            let next = loop {
                if state.over || state.failed.is_some() || self.client.is_cancelled() {
                    return;
                }
                match self.next(&state) {
                    Some(next) => break next,
                    None => state = self.wait(state),
                }
            };
            let path = self.place(next);
            state.partial.insert(next, transfer::there(&path, self.files[next].file.bytes));
            drop(state);
            let remote = &self.files[next].file;
            self.progress.begin(&remote.path, remote.bytes, 0);
            let (client, repo, commit) = (&*self.client, &self.repo, self.commit.as_str());
            let (room, progress) = (Share { scratch: self, file: next }, &*self.progress);
            let fetched =
                Transfer { client, repo, commit, file: remote, path: &path, room: &room, progress }.run();
            self.progress.end();
            let mut state = self.lock();
            state.partial.remove(&next);
            match fetched.and_then(|()| self.keep(&mut state, next)) {
                // It made way for what somebody waits for.
                Err(Error::Interrupted) if !state.over && !self.client.is_cancelled() => {
                    state.partial.insert(next, transfer::there(&path, remote.bytes));
                }
                Err(error) => state.failed = Some(error.to_string()),
                Ok(()) => {}
            }
            self.changed.notify_all();
        }
    }

    /// What to fetch now: what somebody waits for, then what will be read next.
    fn next(&self, state: &State) -> Option<usize> {
        let is_away = |file: &usize| !state.here.contains_key(file) && self.files[*file].cached.is_none();
        let asked = state.asked.iter().copied().find(|file| is_away(file));
        let planned = || {
            let plan = state.plan.as_ref()?;
            plan.order.iter().copied().find(|file| is_away(file) && !plan.is_done_with(*file))
        };
        asked.or_else(planned)
    }
}

/// The room that a file may take.
struct Share<'a> {
    scratch: &'a Scratch,
    file: usize,
}

impl Room for Share<'_> {
    fn take(&self, bytes: u64) -> Result<()> {
        let scratch = self.scratch;
        let mut state = scratch.lock();
        // Since when somebody waits for this file and there is no room.
        let mut start = None;
        loop {
            if scratch.client.is_cancelled() || state.over {
                return Err(Error::Interrupted);
            }
            if state.taken() + bytes <= scratch.budget {
                *state.partial.entry(self.file).or_default() += bytes;
                return Ok(());
            }
            let is_asked = state.asked.contains(&self.file);
            if !is_asked && state.asked.iter().any(|asked| !state.here.contains_key(asked)) {
                return Err(Error::Interrupted);
            }
            if let Some(other) = state.partial.keys().copied().find(|&file| is_asked && file != self.file) {
                transfer::discard(&scratch.place(other))?;
                state.partial.remove(&other);
                continue;
            }
            let since = *start.get_or_insert_with(Instant::now);
            let other = || scratch.dispensable(&state, self.file, since.elapsed() >= PATIENCE);
            match is_asked.then(other).flatten() {
                Some(other) => scratch.forget(&mut state, other),
                None => {
                    start = start.filter(|_| is_asked);
                    state = scratch.wait(state);
                }
            }
        }
    }

    fn give_back(&self) {
        self.scratch.lock().partial.remove(&self.file);
        self.scratch.changed.notify_all();
    }

    fn is_durable(&self) -> bool {
        false
    }
}

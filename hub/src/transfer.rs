//! Fetching one file: ranges over several connections, into a file beside its final place, hashed while they arrive.
//!
//! What a server may do wrong on the way (cut, stall, give other ranges or too few bytes, an error page in the file's place) costs
//! another attempt; what it gives in the end is compared with the hash that the Hub states, and never gets a final name without.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::api::{Hash, RemoteFile};
use crate::client::{About, Answer, Ask, Attempts, Client, Failed, place};
use crate::digest;
use crate::error::{Error, Result};
use crate::pieces::{PIECE, Pieces};
use crate::progress::Progress;
use crate::repo::RepoId;

/// Connections for one file.
const CONNECTIONS: usize = 4;
/// Pieces of one request.
const RUN: usize = 64;
/// How long fetched bytes may stay unsynced.
const SYNC_EVERY: Duration = Duration::from_secs(5);
const BUFFER: usize = 256 << 10;

/// A file of a repository, on its way to `path`.
#[derive(Clone, Copy)]
pub struct Transfer<'a> {
    /// Who fetches.
    pub client: &'a Client,
    /// From which repository.
    pub repo: &'a RepoId,
    /// At which commit.
    pub commit: &'a str,
    /// What.
    pub file: &'a RemoteFile,
    /// Its final place.
    pub path: &'a Path,
    /// Where room for its bytes is asked for before they are fetched.
    pub room: &'a dyn Room,
    /// Who is told.
    pub progress: &'a dyn Progress,
}

/// Where fetched bytes go.
pub trait Room: Sync {
    /// Waits until so many more bytes of the file may lie on the disk.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    fn take(&self, bytes: u64) -> Result<()>;

    /// Gives back what was taken: the file begins anew.
    fn give_back(&self) {}

    /// Whether bytes are synced to the disk now and then, and at the end: where they must outlast a crash of the machine.
    fn is_durable(&self) -> bool;
}

/// The free disk.
pub struct Unbounded;

impl Room for Unbounded {
    fn take(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// Where an unfinished file lies: as huggingface_hub calls it.
pub fn incomplete(path: &Path) -> PathBuf {
    with_ending(path, ".incomplete")
}

/// Where its pieces are noted.
fn marks(path: &Path) -> PathBuf {
    with_ending(path, ".incomplete.pieces")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Bytes of an unfinished file that are there.
pub fn there(path: &Path, bytes: u64) -> u64 {
    if incomplete(path).exists() { Pieces::noted(&marks(path), bytes) } else { 0 }
}

/// Removes what there is of an unfinished file.
///
/// # Errors
/// If the system refuses.
pub fn discard(path: &Path) -> Result<()> {
    for path in [incomplete(path), marks(path)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Transfer<'_> {
    /// Fetches what is missing, checks the whole and puts it in place.
    ///
    /// # Errors
    /// [`Error::WrongHash`] if the bytes are wrong, also after all of them were fetched again; [`Error::NoSpace`];
    /// [`Error::Interrupted`]; what the Hub says of the file; [`Error::Unreachable`].
    pub fn run(&self) -> Result<()> {
        // What is left of an earlier run may be damaged, and a network may flip bits: one more try.
        for is_last in [false, true] {
            let found = self.fetch()?;
            let expected = self.file.hash.hex();
            if found == expected {
                return self.keep();
            }
            discard(self.path)?;
            self.room.give_back();
            if is_last {
                return Err(Error::WrongHash {
                    repo: self.repo.to_string(),
                    file: self.file.path.clone(),
                    algorithm: self.file.hash.algorithm(),
                    expected: expected.to_owned(),
                    found,
                });
            }
            self.progress.note(&format!(
                "{}: the bytes do not have the hash that the Hub states; fetching it again",
                self.file.path
            ));
        }
        Ok(())
    }

    /// Fetches what is missing and gives the hash of the whole.
    fn fetch(&self) -> Result<String> {
        let (part, marks) = (incomplete(self.path), marks(self.path));
        if !part.exists() {
            discard(self.path)?;
        }
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(Error::io(&part))?;
        data.set_len(self.file.bytes).map_err(Error::io(&part))?;
        let pieces = Pieces::open(&marks, self.file.bytes)?;
        self.check_room(&data, &part, self.file.bytes - pieces.there())?;
        let fetch = Fetch {
            transfer: self,
            data: &data,
            part: &part,
            pieces: &pieces,
            location: Mutex::new(None),
            last_sync: Mutex::new(Instant::now()),
        };
        let missing = (self.file.bytes - pieces.there()).div_ceil(PIECE) as usize;
        let connections = missing.div_ceil(RUN).clamp(1, CONNECTIONS);
        let (hashed, fetched) = thread::scope(|scope| {
            let hasher = scope.spawn(|| self.hash(&data, &part, &pieces));
            let workers: Vec<_> = (0..connections).map(|_| scope.spawn(|| fetch.work())).collect();
            let fetched: Vec<Result<()>> = workers.into_iter().map(join).collect();
            pieces.close();
            (join(hasher), fetched)
        });
        // What the user did comes before what came of it.
        fetched.into_iter().collect::<Result<()>>()?;
        let hash = hashed?;
        if self.room.is_durable() {
            pieces.sync(&data).and_then(|()| data.sync_all()).map_err(Error::io(&part))?;
        }
        Ok(hash)
    }

    /// Refuses before the first byte what the disk can't hold.
    fn check_room(&self, data: &File, path: &Path, needed: u64) -> Result<()> {
        let Ok(system) = rustix::fs::fstatvfs(data) else { return Ok(()) };
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if self.room.is_durable() && needed > free {
            return Err(Error::NoSpace { path: path.to_owned(), needed, free });
        }
        Ok(())
    }

    /// Hashes the pieces as they arrive. What was given up half way has no hash that matters.
    fn hash(&self, data: &File, part: &Path, pieces: &Pieces) -> Result<String> {
        let mut hasher = Hasher::new(&self.file.hash, self.file.bytes);
        let mut buffer = vec![0; PIECE as usize];
        for index in 0..pieces.count() {
            if !pieces.wait(index) {
                return Ok(String::new());
            }
            let range = pieces.range(&(index..index + 1));
            let buffer = &mut buffer[..(range.end - range.start) as usize];
            data.read_exact_at(buffer, range.start).map_err(Error::io(part))?;
            hasher.update(buffer);
        }
        Ok(hasher.finish())
    }

    /// Puts the whole file in its place.
    fn keep(&self) -> Result<()> {
        let part = incomplete(self.path);
        fs::rename(&part, self.path).map_err(Error::io(self.path))?;
        if self.room.is_durable()
            && let Some(folder) = self.path.parent()
        {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))?;
        }
        discard(self.path)
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A file's hash, as the Hub counts it.
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    /// For a file of `bytes`.
    pub fn new(hash: &Hash, bytes: u64) -> Hasher {
        match hash {
            Hash::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Hash::GitBlob(_) => Hasher::GitBlob(Sha1::new().chain_update(format!("blob {bytes}\0"))),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> String {
        match self {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::GitBlob(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of a file on this disk, as the Hub counts it.
///
/// # Errors
/// If it can't be read; [`Error::Interrupted`].
pub fn hash_of(client: &Client, path: &Path, like: &Hash) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let bytes = file.metadata().map_err(Error::io(path))?.len();
    let mut hasher = Hasher::new(like, bytes);
    digest::blocks(file, path, || client.is_cancelled(), |block| hasher.update(block))?;
    Ok(hasher.finish())
}

/// The connections of one transfer.
struct Fetch<'a> {
    transfer: &'a Transfer<'a>,
    data: &'a File,
    part: &'a Path,
    pieces: &'a Pieces,
    /// Where the bytes are, until a server refuses to give them there: such addresses run out.
    location: Mutex<Option<String>>,
    last_sync: Mutex<Instant>,
}

impl Fetch<'_> {
    fn work(&self) -> Result<()> {
        while let Some(run) = self.pieces.claim(RUN) {
            let range = self.pieces.range(&run);
            self.transfer.room.take(range.end - range.start)?;
            // The others stop too: what one can't have the whole is not to be had without.
            self.run(run).inspect_err(|_| while self.pieces.claim(usize::MAX).is_some() {})?;
        }
        Ok(())
    }

    /// Fetches a run of pieces, with as many requests as it takes.
    fn run(&self, run: Range<usize>) -> Result<()> {
        let range = self.pieces.range(&run);
        let client = self.transfer.client;
        let mut at = range.start;
        let mut attempts = Attempts::default();
        while at < range.end {
            let before = at;
            let url = self.locate()?;
            let Err(failed) = self.request(&url, at..range.end, &mut at)? else { continue };
            if at > before {
                attempts = Attempts::default();
            }
            self.location.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            client.wait(&mut attempts, &place(&url), failed)?;
        }
        Ok(())
    }

    fn locate(&self) -> Result<String> {
        let mut location = self.location.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if location.is_none() {
            let Transfer { client, repo, commit, file, .. } = self.transfer;
            *location = Some(client.locate(repo, commit, file)?);
        }
        Ok(location.clone().unwrap_or_default())
    }

    /// One request. `at` moves with the bytes that arrive.
    fn request(&self, url: &str, range: Range<u64>, at: &mut u64) -> Result<std::result::Result<(), Failed>> {
        let Transfer { client, repo, commit, file, .. } = self.transfer;
        let ask = Ask { range: Some((range.start, range.end - 1)), ..Ask::get(url) };
        let mut answer = match client.attempt(&ask) {
            Ok(answer) => answer,
            Err(failed) => return Ok(Err(failed)),
        };
        if !url.starts_with(&client.url("/")) && answer.status >= 400 {
            // An address that has run out, or a host that is in trouble: the Hub will name another one.
            return Ok(Err(Failed::new(format!("the server answered {}", answer.status))));
        }
        if answer.status >= 400 && answer.status != 416 {
            let about = About { repo, revision: Some(commit), file: Some(&file.path) };
            return client.ok(answer, &about).map(|_| Ok(()));
        }
        if let Err(problem) = check(&answer, &range, file.bytes) {
            return Ok(Err(Failed::new(problem)));
        }
        self.receive(&mut answer, range.end, at)
    }

    /// Writes a body to its place.
    fn receive(
        &self,
        answer: &mut Answer,
        end: u64,
        at: &mut u64,
    ) -> Result<std::result::Result<(), Failed>> {
        let mut reader = answer.body.as_reader();
        let mut buffer = vec![0; BUFFER];
        while *at < end {
            if self.transfer.client.is_cancelled() {
                return Err(Error::Interrupted);
            }
            // Not beyond a piece: then it can be noted.
            let piece = *at / PIECE;
            let most = ((piece + 1) * PIECE).min(end) - *at;
            let buffer = &mut buffer[..most.min(BUFFER as u64) as usize];
            let n = match reader.read(buffer) {
                Ok(0) => {
                    return Ok(Err(Failed::new(format!("the connection ended {} bytes early", end - *at))));
                }
                Ok(n) => n,
                Err(error) => return Ok(Err(Failed::new(error.to_string()))),
            };
            self.data.write_all_at(&buffer[..n], *at).map_err(|error| self.refused(error))?;
            *at += n as u64;
            self.transfer.progress.advance(n as u64);
            if *at == end || (*at).is_multiple_of(PIECE) {
                self.pieces.written(piece as usize).map_err(|error| self.refused(error))?;
                self.sync()?;
            }
        }
        Ok(Ok(()))
    }

    /// Syncs, if the last time is long ago and no other connection is about it.
    fn sync(&self) -> Result<()> {
        if !self.transfer.room.is_durable() {
            return Ok(());
        }
        let Ok(mut last) = self.last_sync.try_lock() else { return Ok(()) };
        if last.elapsed() >= SYNC_EVERY {
            self.pieces.sync(self.data).map_err(|error| self.refused(error))?;
            *last = Instant::now();
        }
        Ok(())
    }

    fn refused(&self, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::StorageFull {
            let needed = self.transfer.file.bytes - self.pieces.there();
            return Error::NoSpace { path: self.part.to_owned(), needed, free: 0 };
        }
        Error::io(self.part)(error)
    }
}

/// Whether an answer's header promises the bytes that were asked for.
pub(crate) fn check(answer: &Answer, range: &Range<u64>, bytes: u64) -> std::result::Result<(), String> {
    let wanted = range.end - range.start;
    match answer.status {
        206 => {
            let due = format!("bytes {}-{}/{bytes}", range.start, range.end - 1);
            let found = answer.header("content-range").unwrap_or("none");
            if found != due {
                return Err(format!("the server gave the range `{found}` where `{due}` was asked for"));
            }
        }
        // All of it, where all was asked for.
        200 if wanted == bytes => {}
        200 => return Err("the server gave the whole file where a range was asked for".to_owned()),
        status => return Err(format!("the server answered {status}")),
    }
    match answer.number("content-length") {
        Some(found) if found != wanted => {
            Err(format!("the server gave {found} bytes where {wanted} were asked for"))
        }
        _ => Ok(()),
    }
}

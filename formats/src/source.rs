//! Where a model is: its place on this disk, and who opens the files of weights that are elsewhere.
//!
//! A model's small files (configuration, tokenizer, card, the index of shards) always lie in a folder of this disk. Weights may lie
//! elsewhere, on a Hub: then a [`Storage`] reads them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::index;

/// A file with weights, open for positioned reads from any thread.
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// Fills `buffer` from byte `offset` on.
    ///
    /// # Errors
    /// If the file can't be read so far, or is not what it is said to be.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The same for a header, which is read before the file is at hand as a whole: what lies elsewhere gives these bytes
    /// unchecked, and compares them once it has the file.
    ///
    /// # Errors
    /// If the file can't be read so far.
    fn read_head_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    /// Says that a range will hardly be read again: advice, without effect on what is read.
    fn drop_behind(&self, _offset: u64, _len: u64) {}
}

/// An opened file with weights.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its bytes.
    pub handle: Arc<dyn ReadAt>,
    /// How many.
    pub len: u64,
    /// Their SHA-256, where it is known without reading them.
    pub sha256: Option<String>,
}

/// What opens the files of weights of a model.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// If there is none, or it is no regular file.
    fn open(&self, path: &Path) -> Result<Opened>;

    /// Whether there is a file of that path.
    fn is_file(&self, path: &Path) -> bool;

    /// The paths of all files right in a folder.
    ///
    /// # Errors
    /// If the folder can't be read.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>>;

    /// See [`TensorSource::expect`](crate::TensorSource::expect): the files of each step by their paths.
    ///
    /// # Errors
    /// If the files of one step are more than may be held.
    fn expect(&self, _steps: Vec<Vec<&Path>>) -> Result<()> {
        Ok(())
    }

    /// See [`TensorSource::settled`](crate::TensorSource::settled).
    fn settled(&self, _step: usize) {}

    /// See [`Source::done`].
    fn done(&self) {}
}

/// This machine's file systems.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Storage for Disk {
    fn open(&self, path: &Path) -> Result<Opened> {
        let (handle, len) = index::open(path)?;
        Ok(Opened { handle: Arc::new(handle), len, sha256: None })
    }

    fn is_file(&self, path: &Path) -> bool {
        path.is_file()
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let io = |source| Error::Io { path: folder.to_owned(), source };
        fs::read_dir(folder).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect()
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn drop_behind(&self, offset: u64, len: u64) {
        use rustix::fs::{Advice, fadvise};
        if let Some(len) = std::num::NonZeroU64::new(len) {
            // A system that does not take the advice still reads right.
            let _ = fadvise(self, offset, Some(len), Advice::DontNeed);
        }
    }
}

/// A model that is to be read.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    origin: Option<Origin>,
    remote: bool,
}

/// Where a model comes from that is not this disk's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The repository, `owner/name`.
    pub repo: String,
    /// The commit.
    pub commit: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repo, self.commit)
    }
}

impl Source {
    /// A model whose small files lie at `path`, and whose weights `storage` opens under that path.
    pub fn elsewhere(path: PathBuf, storage: Arc<dyn Storage>, origin: Origin) -> Source {
        Source { path, storage, origin: Some(origin), remote: true }
    }

    /// The same model, which is known to come from there.
    pub fn of(self, origin: Origin) -> Source {
        Source { origin: Some(origin), ..self }
    }

    /// The folder, or the file with weights.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What opens its files of weights.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Says that the work is done: what was kept of it for a later run may go.
    pub fn done(&self) {
        self.storage.done();
    }

    /// The repository it comes from, if it is known.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Whether its weights are not all on this disk.
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// What it is called: the repository's name, or that of the folder or file.
    pub fn name(&self) -> String {
        if let Some(origin) = &self.origin {
            return origin.repo.rsplit('/').next().unwrap_or_default().to_owned();
        }
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let name = whole.file_name().unwrap_or_default().to_string_lossy();
        name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Source {
        Source { path, storage: Arc::new(Disk), origin: None, remote: false }
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Source {
        path.to_owned().into()
    }
}

/// As the user knows it: `owner/name@commit`, or the path.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => origin.fmt(f),
            None => self.path.display().fmt(f),
        }
    }
}

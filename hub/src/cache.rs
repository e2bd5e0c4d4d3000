//! The folder that Hugging Face's tools share: `models--OWNER--NAME` with `blobs` by hash, `snapshots/COMMIT` of links to them, and
//! `refs` from branches to commits (huggingface_hub, "Understand caching").

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::api::{Hash, is_commit};
use crate::error::{Error, Result};
use crate::repo::{RepoId, is_safe};

/// A repository's part of the cache.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Of a repository, below the cache's folder.
    pub fn of(cache: &Path, repo: &RepoId) -> Cache {
        Cache { folder: cache.join(format!("models--{}--{}", repo.owner, repo.name)) }
    }

    /// The commit that a revision was when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_ascii_lowercase());
        }
        let text =
            is_safe(revision).then(|| fs::read_to_string(self.folder.join("refs").join(revision)).ok())??;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Notes the commit that a revision is.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || !is_safe(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        fs::write(&path, commit).map_err(Error::io(&path))
    }

    /// The folder of the files at a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the bytes of a hash lie, or are to lie.
    pub fn blob(&self, hash: &Hash) -> PathBuf {
        self.folder.join("blobs").join(hash.hex())
    }

    /// Makes the folder for bytes.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn make(&self) -> Result<()> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io(&blobs))
    }

    /// Locks bytes that are being fetched against other processes, for as long as the file is held: as huggingface_hub's file locks,
    /// in a folder of their own.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn lock(&self, hash: &Hash) -> Result<File> {
        let name = self.folder.file_name().unwrap_or_default();
        let locks = self.folder.with_file_name(".locks").join(name);
        fs::create_dir_all(&locks).map_err(Error::io(&locks))?;
        lock(&locks.join(format!("{}.lock", hash.hex())))
    }

    /// Gives the bytes of a hash their name at a commit.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn link(&self, commit: &str, path: &str, hash: &Hash) -> Result<PathBuf> {
        let link = self.snapshot(commit).join(path);
        make_parent(&link)?;
        let mut target: PathBuf = path.split('/').map(|_| "..").collect();
        target.extend(["..", "blobs", hash.hex()]);
        match fs::read_link(&link) {
            Ok(found) if found == target => return Ok(link),
            _ if link.symlink_metadata().is_ok() => fs::remove_file(&link).map_err(Error::io(&link))?,
            _ => {}
        }
        match std::os::unix::fs::symlink(&target, &link) {
            // Another process was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(link),
            result => result.map(|()| link.clone()).map_err(Error::io(&link)),
        }
    }
}

/// Locks a file, which is made if it is not there.
///
/// # Errors
/// [`Error::Busy`].
pub fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(Error::io(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy { path: path.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io(parent))
}

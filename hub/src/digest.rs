//! SHA-256 of files on this disk: whole ones, some at a time, or parts of one.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::transfer::hex;

/// Files that are hashed at the same time.
const AT_ONCE: usize = 2;
const BUFFER: usize = 1 << 20;

/// A file's length and hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// SHA-256 of bytes in memory.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether a text is a SHA-256 as it is written here.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Hashes a file. What was hashed counts as progress.
///
/// # Errors
/// If it can't be read; [`Error::Interrupted`] once `cancel` is set.
pub fn of_file(path: &Path, cancel: &AtomicBool, progress: &dyn Progress) -> Result<Digest> {
    let (mut sha, mut bytes) = (Sha256::new(), 0);
    let file = File::open(path).map_err(Error::io(path))?;
    blocks(
        file,
        path,
        || cancel.load(Ordering::Relaxed),
        |block| {
            sha.update(block);
            bytes += block.len() as u64;
            progress.advance(block.len() as u64);
        },
    )?;
    Ok(Digest { bytes, sha256: hex(&sha.finalize()) })
}

/// Gives the bytes of a file, block by block.
///
/// # Errors
/// If it can't be read; [`Error::Interrupted`] once it `is_cancelled`.
pub(crate) fn blocks(
    mut file: File,
    path: &Path,
    is_cancelled: impl Fn() -> bool,
    mut each: impl FnMut(&[u8]),
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        if is_cancelled() {
            return Err(Error::Interrupted);
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => each(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
}

/// Hashes files, some at a time; the results are in the order of `paths`.
pub fn of_files<P: AsRef<Path> + Sync>(
    paths: &[P],
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Vec<Result<Digest>> {
    let next = AtomicUsize::new(0);
    let done: Vec<Mutex<Option<Result<Digest>>>> = paths.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while let Some((path, done)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            paths.get(index).zip(done.get(index))
        } {
            let digest = of_file(path.as_ref(), cancel, progress);
            *done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(digest);
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(paths.len()) {
            scope.spawn(work);
        }
    });
    let taken = |slot: Mutex<Option<Result<Digest>>>| {
        slot.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).unwrap_or(Err(Error::Interrupted))
    };
    done.into_iter().map(taken).collect()
}

/// Hashes a part of a file; `path` is for messages.
///
/// # Errors
/// If it can't be read; [`Error::Interrupted`] once `cancel` is set.
pub fn of_range(
    file: &File,
    path: &Path,
    range: Range<u64>,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<String> {
    let (mut sha, mut at, end) = (Sha256::new(), range.start, range.end);
    let bytes = end.saturating_sub(at);
    let mut buffer = vec![0; BUFFER.min(usize::try_from(bytes).unwrap_or(BUFFER))];
    while at < end {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let part = (end - at).min(BUFFER as u64) as usize;
        file.read_exact_at(&mut buffer[..part], at).map_err(Error::io(path))?;
        sha.update(&buffer[..part]);
        at += part as u64;
        progress.advance(part as u64);
    }
    Ok(hex(&sha.finalize()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::progress::Silent;

    #[test]
    fn whole_files_and_parts_are_hashed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..3 * BUFFER + 5).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &bytes).expect("file");
        let go = AtomicBool::new(false);
        let whole = of_file(&path, &go, &Silent).expect("hash");
        assert_eq!(whole, Digest { bytes: bytes.len() as u64, sha256: of_bytes(&bytes) });
        let file = File::open(&path).expect("file");
        let part = of_range(&file, &path, 7..(BUFFER + 16) as u64, &go, &Silent).expect("part");
        assert_eq!(part, of_bytes(&bytes[7..BUFFER + 16]));
        assert!(of_range(&file, &path, 7..bytes.len() as u64 + 1, &go, &Silent).is_err(), "beyond the end");

        let missing = dir.path().join("b");
        let all = of_files(&[&path, &missing, &path], &go, &Silent);
        assert!(all[0].as_ref().is_ok_and(|digest| *digest == whole) && all[2].is_ok());
        assert!(matches!(all[1], Err(Error::Io { .. })));
        let stopped = of_files(&[&path], &AtomicBool::new(true), &Silent);
        assert!(matches!(stopped[0], Err(Error::Interrupted)));
    }
}

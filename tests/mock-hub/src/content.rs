//! What a file's bytes are: in memory, on disk, computed, or no longer there.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

/// A file's bytes, read at any place by any number of threads.
pub trait Content: Send + Sync {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Fills the buffer from an offset on.
    ///
    /// # Errors
    /// If the bytes are past the end, or can't be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The SHA-256 of all bytes, as 64 hexadecimal digits. May take its time when it is first asked for.
    fn sha256(&self) -> String;

    /// What commits hash for this content. Something that is cheaper to know than the SHA-256 will do.
    fn identity(&self) -> String {
        self.sha256()
    }

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in memory.
pub struct Memory {
    bytes: Vec<u8>,
    sha256: OnceLock<String>,
}

impl Memory {
    /// These bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Memory {
        Memory { bytes: bytes.into(), sha256: OnceLock::new() }
    }
}

impl Content for Memory {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buffer.len());
        let found = self.bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn sha256(&self) -> String {
        self.sha256.get_or_init(|| hex(&Sha256::digest(&self.bytes))).clone()
    }
}

/// A file on disk, opened once.
pub struct OnDisk {
    file: File,
    len: u64,
    sha256: OnceLock<String>,
}

impl OnDisk {
    /// Opens a file.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn open(path: &Path) -> io::Result<OnDisk> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(OnDisk { file, len, sha256: OnceLock::new() })
    }

    /// Opens a file whose SHA-256 is known.
    pub(crate) fn with_sha256(path: &Path, sha256: &str) -> io::Result<OnDisk> {
        let content = OnDisk::open(path)?;
        let _ = content.sha256.set(sha256.to_owned());
        Ok(content)
    }
}

impl Content for OnDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn sha256(&self) -> String {
        self.sha256.get_or_init(|| sha256_of(self, |_| ()).expect("a file of the mock can be read")).clone()
    }
}

/// Content that was taken and thrown away: only its length and hash are known.
pub(crate) struct Discarded {
    pub(crate) len: u64,
    pub(crate) sha256: String,
}

impl Content for Discarded {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, _offset: u64, _buffer: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("discarded on upload"))
    }

    fn sha256(&self) -> String {
        self.sha256.clone()
    }
}

/// The SHA-256 of a content read from front to back; `progress` hears how many bytes each step took.
///
/// # Errors
/// If it can't be read.
pub fn sha256_of(content: &dyn Content, mut progress: impl FnMut(u64)) -> io::Result<String> {
    let mut hasher = Sha256::new();
    // Small enough to stay in the second-level cache between being written and being hashed.
    let mut buffer = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < content.len() {
        let step = (content.len() - offset).min(buffer.len() as u64) as usize;
        content.read_at(offset, &mut buffer[..step])?;
        hasher.update(&buffer[..step]);
        offset += step as u64;
        progress(step as u64);
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! Files that were uploaded through Xet, found by their SHA-256 in the local store that the client wrote.
//!
//! The store is read as files: its shards say which ranges of which xorbs make up a file, and carry the SHA-256. Its
//! database, which only one process can have open, is left alone.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::xorb_object::XorbObject;

use crate::content::{Content, Discarded, OnDisk, hex};

/// Where the client's library puts shards and xorbs, below the folder that it is sent to.
const SHARDS: &str = "cas/xet/xorbs/shards";
const XORBS: &str = "cas/xet/xorbs/xorbs";

/// A file as a shard describes it.
#[derive(Clone)]
struct Uploaded {
    xet_hash: String,
    len: u64,
    /// The xorb's hash, and its chunks from and to.
    segments: Vec<(String, u32, u32)>,
}

#[derive(Default)]
struct Index {
    shards: HashSet<String>,
    files: HashMap<String, Uploaded>,
}

/// The store, and beside it the files that were committed.
pub(crate) struct Store {
    pub(crate) folder: PathBuf,
    discard: bool,
    index: Mutex<Index>,
}

impl Store {
    pub(crate) fn new(folder: PathBuf, discard: bool) -> io::Result<Store> {
        fs::create_dir_all(folder.join("lfs"))?;
        fs::create_dir_all(folder.join("cas"))?;
        Ok(Store { folder: fs::canonicalize(folder)?, discard, index: Mutex::default() })
    }

    /// Where the client is sent.
    pub(crate) fn cas_url(&self) -> String {
        format!("local://{}", self.folder.join("cas").display())
    }

    /// An uploaded file and its Xet hash, if there is one.
    ///
    /// # Errors
    /// If there is one whose bytes are not there or not those of the hash.
    pub(crate) fn find(&self, sha256: &str) -> io::Result<Option<(Arc<dyn Content>, String)>> {
        let Some(uploaded) = self.lookup(sha256) else { return Ok(None) };
        if self.discard {
            let content = Discarded { len: uploaded.len, sha256: sha256.to_owned() };
            return Ok(Some((Arc::new(content), uploaded.xet_hash)));
        }
        let path = self.folder.join("lfs").join(sha256);
        if !path.exists() {
            self.copy(&uploaded, sha256, &path)?;
        }
        Ok(Some((Arc::new(OnDisk::with_sha256(&path, sha256)?), uploaded.xet_hash)))
    }

    fn lookup(&self, sha256: &str) -> Option<Uploaded> {
        let mut index = self.index.lock().expect("the index's lock");
        if let Some(found) = index.files.get(sha256) {
            return Some(found.clone());
        }
        for entry in fs::read_dir(self.folder.join(SHARDS)).ok()?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".mdb") || index.shards.contains(&name) {
                continue;
            }
            // One that is not yet whole is looked at again the next time.
            if let Ok(files) = read_shard(&entry.path()) {
                index.files.extend(files);
                index.shards.insert(name);
            }
        }
        index.files.get(sha256).cloned()
    }

    /// Puts the file together from the xorbs' chunks.
    fn copy(&self, uploaded: &Uploaded, sha256: &str, path: &Path) -> io::Result<()> {
        let mut written = NamedTempFile::new_in(self.folder.join("lfs"))?;
        let mut hasher = Sha256::new();
        let mut open: Option<(&str, XorbObject, BufReader<File>)> = None;
        for (hash, from, to) in &uploaded.segments {
            if open.as_ref().is_none_or(|(name, ..)| name != hash) {
                let mut file = BufReader::new(File::open(self.xorb(hash))?);
                open = Some((hash, XorbObject::deserialize(&mut file).map_err(io::Error::other)?, file));
            }
            if let Some((_, xorb, file)) = &mut open {
                let bytes = xorb.get_bytes_by_chunk_range(file, *from, *to).map_err(io::Error::other)?;
                hasher.update(&bytes);
                written.write_all(&bytes)?;
            }
        }
        if hex(&hasher.finalize()) != sha256 {
            return Err(io::Error::other("the store's bytes have another SHA-256"));
        }
        written.persist(path)?;
        Ok(())
    }

    fn xorb(&self, hash: &str) -> PathBuf {
        self.folder.join(XORBS).join(format!("default.{hash}"))
    }

    /// Where content is thrown away: deletes xorbs that have been whole for a second. What finds a file again, its
    /// shards, stays.
    pub(crate) fn tidy(&self) {
        let Ok(entries) = fs::read_dir(self.folder.join(XORBS)) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|data| data.modified()).ok();
            let age = age.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            let whole = entry.file_name().to_string_lossy().starts_with("default.");
            if whole && age > Duration::from_secs(1) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    pub(crate) fn discards(&self) -> bool {
        self.discard
    }
}

/// The files in a shard that have a SHA-256, by it.
fn read_shard(path: &Path) -> io::Result<Vec<(String, Uploaded)>> {
    let bytes = fs::read(path)?;
    let shard =
        MDBMinimalShard::from_reader(&mut Cursor::new(bytes), true, false).map_err(io::Error::other)?;
    let mut files = Vec::new();
    for file in (0..shard.num_files()).filter_map(|at| shard.file(at)) {
        // Both kinds of hashes are four numbers each; `hex` has them in the order in which SHA-256 is written.
        let Some(extension) = file.metadata_ext() else { continue };
        let entries: Vec<_> = (0..file.num_entries()).map(|at| file.entry(at)).collect();
        let uploaded = Uploaded {
            xet_hash: file.file_hash().hex(),
            len: entries.iter().map(|entry| u64::from(entry.unpacked_segment_bytes)).sum(),
            segments: entries
                .iter()
                .map(|entry| (entry.xorb_hash.hex(), entry.chunk_index_start, entry.chunk_index_end))
                .collect(),
        };
        files.push((extension.sha256.hex(), uploaded));
    }
    Ok(files)
}

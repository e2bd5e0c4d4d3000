//! The shards' SHA-256, computed once and kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::NamedTempFile;

/// What is known, by the shard's name and what its bytes follow from.
type Known = BTreeMap<String, String>;

/// The hashes of one seed's shards.
pub(super) struct Oids {
    seed: u64,
    path: PathBuf,
    known: Mutex<Known>,
    /// Held while a shard is hashed, so that it is not hashed twice.
    busy: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Oids {
    pub(super) fn open(cache: &Path, seed: u64) -> io::Result<Oids> {
        fs::create_dir_all(cache)?;
        let path = cache.join(format!("oids-{seed}.json"));
        let known = read(&path);
        Ok(Oids { seed, path, known: Mutex::new(known), busy: Mutex::default() })
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn get(&self, name: &str, compute: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
        let known = || self.known.lock().expect("the hashes' lock").get(name).cloned();
        if let Some(oid) = known() {
            return Ok(oid);
        }
        let busy =
            self.busy.lock().expect("the list of busy shards").entry(name.to_owned()).or_default().clone();
        let _alone = busy.lock().expect("a busy shard's lock");
        if let Some(oid) = known() {
            return Ok(oid);
        }
        let oid = compute()?;
        self.put(name, &oid)?;
        Ok(oid)
    }

    /// Keeps a hash, beside those that another process may have found in the meantime.
    fn put(&self, name: &str, oid: &str) -> io::Result<()> {
        let mut known = self.known.lock().expect("the hashes' lock");
        known.extend(read(&self.path));
        known.insert(name.to_owned(), oid.to_owned());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(serde_json::to_string_pretty(&*known)?.as_bytes())?;
        file.persist(&self.path)?;
        Ok(())
    }
}

fn read(path: &Path) -> Known {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

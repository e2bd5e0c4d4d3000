//! The files of an unfinished output, open for writing.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use formats::{Layout, layout::Placement};
use sha2::{Digest, Sha256};

use super::{holds_tensors, room::Room};
use crate::{
    error::{Error, Result},
    recipe::hex,
    stop::Stop,
};

/// Bytes that are read or made at a time.
const PIECE: usize = 1 << 20;

/// The files of an unfinished output. They may be written and read by several threads at a time.
pub struct Store<'a> {
    layout: &'a Layout,
    paths: Vec<PathBuf>,
    files: Vec<RwLock<Slot>>,
    /// For each file, whether it holds tensors.
    tensors: Vec<bool>,
    /// What bounds the files that are open at a time; all are open if absent.
    room: Option<Room>,
}

/// A file of an output.
enum Slot {
    /// It is not there yet.
    Absent,
    /// It is allocated in full, and its header written.
    Open(File),
    /// It was taken away. What is still written of it, it has.
    Gone,
}

impl<'a> Store<'a> {
    /// Creates or reopens the files, allocates them in full and writes their headers.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk can't hold them, before anything is written.
    pub fn open(partial: &Path, layout: &'a Layout) -> Result<Store<'a>> {
        let store = Store::new(partial, layout, None);
        for file in 0..layout.files.len() {
            *store.slot_mut(file) = Slot::Open(store.create(file)?);
        }
        store.check_room(u64::MAX)?;
        for file in 0..layout.files.len() {
            store.fill(file)?;
        }
        Ok(store)
    }

    /// Reopens the files that an earlier run began, but for those that are `gone`. The others are made by
    /// [`make`](Self::make), so that never more than `room` bytes of those that hold tensors are on the disk.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk can't hold that much, before anything is written.
    pub fn sparse(partial: &Path, layout: &'a Layout, room: u64, gone: &HashSet<usize>) -> Result<Store<'a>> {
        let store = Store::new(partial, layout, Some(Room::new(room)));
        let mut begun = Vec::new();
        for file in 0..layout.files.len() {
            if gone.contains(&file) {
                // It was taken, and the run killed before it was removed.
                store.unlink(file)?;
                *store.slot_mut(file) = Slot::Gone;
            } else if store.tensors[file] && store.paths[file].exists() {
                *store.slot_mut(file) = Slot::Open(store.create(file)?);
                begun.push(file);
            }
        }
        store.check_room(room)?;
        for file in begun {
            store.count(file);
            store.fill(file)?;
        }
        Ok(store)
    }

    fn new(partial: &Path, layout: &'a Layout, room: Option<Room>) -> Store<'a> {
        Store {
            layout,
            paths: layout.files.iter().map(|file| partial.join(&file.name)).collect(),
            files: layout.files.iter().map(|_| RwLock::new(Slot::Absent)).collect(),
            tensors: holds_tensors(layout),
            room,
        }
    }

    fn slot(&self, file: usize) -> RwLockReadGuard<'_, Slot> {
        self.files[file].read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn slot_mut(&self, file: usize) -> RwLockWriteGuard<'_, Slot> {
        self.files[file].write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn create(&self, file: usize) -> Result<File> {
        let path = &self.paths[file];
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io(path))
    }

    /// Allocates a file in full and writes what is known of it: its header, and what belongs to tensors beside their planes.
    fn fill(&self, file: usize) -> Result<()> {
        self.allocate(file)?;
        self.write(file, 0, &self.layout.files[file].header)?;
        let mut buffer = vec![0; PIECE];
        for known in self.layout.known.values().flatten().filter(|known| known.at.file == file) {
            for start in (0..known.at.len).step_by(PIECE) {
                let piece = &mut buffer[..(known.at.len - start).min(PIECE as u64) as usize];
                known.fill.write(start, piece);
                self.write(file, known.at.offset + start, piece)?;
            }
        }
        Ok(())
    }

    fn count(&self, file: usize) {
        if let Some(room) = &self.room {
            room.count(self.layout.files[file].len);
        }
    }

    /// Makes a file that is not there yet. One that holds tensors waits until there is room for it. Whether there was: if not it
    /// was asked to stop.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the disk can't hold it.
    pub(crate) fn make(&self, file: usize, stop: &Stop<'_>) -> Result<bool> {
        if !matches!(*self.slot(file), Slot::Absent) {
            return Ok(true);
        }
        let len = self.layout.files[file].len;
        if let Some(room) = self.room.as_ref().filter(|_| self.tensors[file])
            && !room.take(len, stop)
        {
            return Ok(false);
        }
        *self.slot_mut(file) = Slot::Open(self.create(file)?);
        self.fill(file)?;
        Ok(true)
    }

    /// Makes the side files that are not there yet, and waits until they are on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn make_side_files(&self) -> Result<()> {
        for file in (0..self.files.len()).filter(|&file| !self.tensors[file]) {
            if matches!(*self.slot(file), Slot::Absent) {
                *self.slot_mut(file) = Slot::Open(self.create(file)?);
                self.fill(file)?;
                self.sync(file)?;
            }
        }
        Ok(())
    }

    /// Removes a file whose bytes are nothing worth: it may be made again.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn discard(&self, file: usize) -> Result<()> {
        self.remove(file, Slot::Absent)
    }

    /// Removes a file that was taken away.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn part_with(&self, file: usize) -> Result<()> {
        self.remove(file, Slot::Gone)
    }

    fn remove(&self, file: usize, left: Slot) -> Result<()> {
        // Closed before its bytes count as free: the system keeps those of an open file.
        let was = std::mem::replace(&mut *self.slot_mut(file), left);
        let was_open = matches!(was, Slot::Open(_));
        drop(was);
        self.unlink(file)?;
        if let Some(room) = self.room.as_ref().filter(|_| was_open) {
            room.free(self.layout.files[file].len);
        }
        Ok(())
    }

    fn unlink(&self, file: usize) -> Result<()> {
        match fs::remove_file(&self.paths[file]) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(&self.paths[file])(error))
            }
            _ => Ok(()),
        }
    }

    /// The files that hold tensors and are on the disk.
    pub(crate) fn open_files(&self) -> Vec<usize> {
        (0..self.files.len()).filter(|&file| self.tensors[file] && self.is_open(file)).collect()
    }

    /// Whether a file is on the disk.
    pub(crate) fn is_open(&self, file: usize) -> bool {
        matches!(*self.slot(file), Slot::Open(_))
    }

    /// Whether files are made one by one and taken away.
    pub(crate) fn is_sparse(&self) -> bool {
        self.room.is_some()
    }

    /// Whether a file was taken away.
    pub(crate) fn is_gone(&self, file: usize) -> bool {
        matches!(*self.slot(file), Slot::Gone)
    }

    /// Where a file is made.
    pub(crate) fn path(&self, file: usize) -> &Path {
        &self.paths[file]
    }

    /// Bytes that are still to be allocated, if at most `room` are allocated at a time.
    fn missing(&self, room: u64) -> u64 {
        let (mut due, mut allocated) = (0u64, 0);
        for (file, output) in self.layout.files.iter().enumerate() {
            match &*self.slot(file) {
                Slot::Absent => due += output.len,
                Slot::Open(handle) => {
                    due += output.len;
                    let blocks = handle.metadata().map_or(0, |metadata| metadata.blocks());
                    allocated += output.len.min(blocks * 512);
                }
                Slot::Gone => {}
            }
        }
        due.min(room).saturating_sub(allocated)
    }

    /// Asks before allocating: a system that runs out half way keeps what it could get, and fills the disk with it.
    fn check_room(&self, room: u64) -> Result<()> {
        let Some(path) = self.paths.first() else { return Ok(()) };
        let Some(system) = path.parent().and_then(|partial| rustix::fs::statvfs(partial).ok()) else {
            return Ok(());
        };
        let (needed, free) = (self.missing(room), system.f_bavail.saturating_mul(system.f_frsize));
        if needed > free {
            return Err(Error::NoSpace { path: path.clone(), needed, free });
        }
        Ok(())
    }

    fn allocate(&self, index: usize) -> Result<()> {
        use rustix::{
            fs::{FallocateFlags, fallocate},
            io::Errno,
        };
        let (len, path) = (self.layout.files[index].len, &self.paths[index]);
        if len == 0 {
            return Ok(());
        }
        let result = {
            let slot = self.slot(index);
            let file = opened(&slot, path)?;
            // Some file systems can't allocate ahead; then a full disk shows while writing.
            match fallocate(file, FallocateFlags::empty(), 0, len) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    return file.set_len(len).map_err(Error::io(path));
                }
                result => result,
            }
        };
        let needed = || if self.room.is_some() { len } else { self.missing(u64::MAX) };
        match result {
            Ok(()) => Ok(()),
            Err(Errno::NOSPC | Errno::DQUOT) => {
                Err(Error::NoSpace { path: path.clone(), needed: needed(), free: 0 })
            }
            Err(errno) => Err(Error::Io { path: path.clone(), source: errno.into() }),
        }
    }

    /// Writes `bytes` at `offset` of file `file`. One that was taken away has them already.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (slot, path) = (self.slot(file), &self.paths[file]);
        if matches!(*slot, Slot::Gone) {
            return Ok(());
        }
        opened(&slot, path)?.write_all_at(bytes, offset).map_err(Error::io(path))
    }

    /// Reads bytes at `offset` of file `file`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn read(&self, file: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (slot, path) = (self.slot(file), &self.paths[file]);
        opened(&slot, path)?.read_exact_at(bytes, offset).map_err(Error::io(path))
    }

    /// Writes whole rows of a tensor's plane, from byte `offset` of the plane on.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn write_rows(&self, tensor: usize, plane: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let Placement { file, offset: start, .. } = self.layout.planes[tensor][plane];
        match self.layout.arranged.get(&(tensor, plane)) {
            None => self.write(file, start + offset, bytes),
            // Nothing can be read of a file that was taken away, nor need be.
            Some(_) if self.is_gone(file) => Ok(()),
            Some(arrangement) => {
                let read = |at, out: &mut [u8]| self.read(file, start + at, out);
                arrangement.write(offset, bytes, read, |at, bytes| self.write(file, start + at, bytes))
            }
        }
    }

    /// Reads bytes of a tensor's plane, from byte `offset` of the plane on.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn read_rows(&self, tensor: usize, plane: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let Placement { file, offset: start, .. } = self.layout.planes[tensor][plane];
        match self.layout.arranged.get(&(tensor, plane)) {
            None => self.read(file, start + offset, bytes),
            Some(arrangement) => arrangement.read(offset, bytes, |at, out| self.read(file, start + at, out)),
        }
    }

    /// Waits until the bytes of file `file` are on the disk, if it is there.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self, file: usize) -> Result<()> {
        match &*self.slot(file) {
            Slot::Open(handle) => handle.sync_data().map_err(Error::io(&self.paths[file])),
            Slot::Absent | Slot::Gone => Ok(()),
        }
    }

    /// SHA-256 of the bytes that lie at a placement now.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn hash(&self, at: Placement) -> Result<String> {
        let mut sha = Sha256::new();
        let mut buffer = vec![0; PIECE];
        let mut offset = 0;
        while offset < at.len {
            let n = (at.len - offset).min(buffer.len() as u64) as usize;
            self.read(at.file, at.offset + offset, &mut buffer[..n])?;
            sha.update(&buffer[..n]);
            offset += n as u64;
        }
        Ok(hex(&sha.finalize()))
    }
}

/// The handle of a file that is there.
fn opened<'f>(slot: &'f Slot, path: &Path) -> Result<&'f File> {
    match slot {
        Slot::Open(file) => Ok(file),
        Slot::Absent | Slot::Gone => Err(Error::io(path)(std::io::ErrorKind::NotFound.into())),
    }
}

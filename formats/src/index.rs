//! The tensors of a source and the open files behind them: what every local container shares.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::mxfp4;
use crate::source::{Opened, ReadAt, Storage};
use crate::tensor::{SourceFile, TensorId, TensorMeta};

/// Sources of more bytes than this are read once and don't fit the page cache beside anything else: what was read is
/// dropped behind the reader. Smaller ones stay cached for the next run.
const DROP_BEHIND: u64 = 8 << 30;

/// Tensors by position and by name, and the files that hold them, open for positioned reads.
#[derive(Debug)]
pub(crate) struct Index {
    storage: Arc<dyn Storage>,
    tensors: Vec<TensorMeta>,
    by_name: HashMap<String, TensorId>,
    /// Of tensors that lie in two places, the second.
    second: HashMap<TensorId, TensorMeta>,
    files: Vec<SourceFile>,
    handles: Vec<Arc<dyn ReadAt>>,
    drop_behind: bool,
}

/// Opens a regular file and returns it with its size.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its writer.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    Ok((file, len))
}

impl Index {
    /// Of nothing yet; its files are those of `storage`.
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Index {
        Index {
            storage,
            tensors: Vec::new(),
            by_name: HashMap::new(),
            second: HashMap::new(),
            files: Vec::new(),
            handles: Vec::new(),
            drop_behind: false,
        }
    }

    /// Adds a file with its tensors, whose `file` is set here.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`] if an earlier file has a tensor of the same name.
    pub(crate) fn add(
        &mut self,
        path: PathBuf,
        opened: Opened,
        tensors: impl IntoIterator<Item = TensorMeta>,
    ) -> Result<()> {
        let file = self.files.len();
        let Opened { handle, len, sha256 } = opened;
        self.files.push(SourceFile { path, len, sha256 });
        self.handles.push(handle);
        self.drop_behind = self.files.iter().map(|f| f.len).fold(0, u64::saturating_add) > DROP_BEHIND;
        for tensor in tensors {
            match self.by_name.entry(tensor.name.clone()) {
                Entry::Occupied(earlier) => {
                    return Err(Error::DuplicateTensor {
                        first: self.files[self.tensors[earlier.get().0].file].path.clone(),
                        second: self.files[file].path.clone(),
                        tensor: tensor.name,
                    });
                }
                Entry::Vacant(place) => place.insert(TensorId(self.tensors.len())),
            };
            self.tensors.push(TensorMeta { file, ..tensor });
        }
        Ok(())
    }

    /// Makes one tensor of every two that are one in MXFP4. To be called when all files are added: tensors get other ids.
    pub(crate) fn join_mxfp4(&mut self) {
        let mut pairs = HashMap::new();
        for blocks in &self.tensors {
            let scales = mxfp4::scales_name(&blocks.name).and_then(|name| self.find(&name));
            let scales = scales.map(|id| &self.tensors[id.0]);
            if let Some((scales, joined)) = scales.and_then(|s| Some((s, mxfp4::joined(blocks, s)?))) {
                pairs.insert(blocks.name.clone(), (joined, scales.clone()));
            }
        }
        if pairs.is_empty() {
            return;
        }
        let scales: HashSet<String> = pairs.values().map(|(_, scales)| scales.name.clone()).collect();
        self.tensors.retain(|tensor| !scales.contains(&tensor.name));
        for (id, tensor) in self.tensors.iter_mut().enumerate() {
            if let Some((joined, scales)) = pairs.remove(&tensor.name) {
                *tensor = joined;
                self.second.insert(TensorId(id), scales);
            }
        }
        let names = self.tensors.iter().enumerate();
        self.by_name = names.map(|(id, tensor)| (tensor.name.clone(), TensorId(id))).collect();
    }

    pub(crate) fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    pub(crate) fn files(&self) -> &[SourceFile] {
        &self.files
    }

    pub(crate) fn find(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }

    /// What opens the files.
    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// See [`TensorSource::expect`](crate::tensor::TensorSource::expect).
    pub(crate) fn expect(&self, steps: Vec<Vec<usize>>) -> Result<()> {
        let path = |file: usize| self.files[file].path.as_path();
        self.storage.expect(steps.into_iter().map(|files| files.into_iter().map(path).collect()).collect())
    }

    /// See [`TensorSource::read_at`](crate::tensor::TensorSource::read_at).
    pub(crate) fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let tensor = &self.tensors[id.0];
        let len = buffer.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > tensor.len) {
            return Err(Error::OutOfTensor { tensor: tensor.name.clone(), offset, len, size: tensor.len });
        }
        let Some(second) = self.second.get(&id) else { return self.read_file(tensor, offset, buffer) };
        let first = tensor.len - second.len;
        let (before, after) = buffer.split_at_mut(first.saturating_sub(offset).min(len) as usize);
        self.read_file(tensor, offset, before)?;
        self.read_file(second, offset.saturating_sub(first), after)
    }

    /// Reads from where the tensor lies in its file.
    fn read_file(&self, tensor: &TensorMeta, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let len = buffer.len() as u64;
        let (file, handle) = (&self.files[tensor.file], &self.handles[tensor.file]);
        let start = tensor.offset + offset;
        handle.read_exact_at(buffer, start).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                path: file.path.clone(),
                what: format!("tensor {}", tensor.name),
                end: tensor.offset + tensor.len,
                len: fs::metadata(&file.path).map_or(0, |m| m.len()),
            },
            _ => Error::Io { path: file.path.clone(), source },
        })?;
        if self.drop_behind {
            handle.drop_behind(start, len);
        }
        Ok(())
    }
}

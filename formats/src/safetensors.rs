//! safetensors: a JSON header of names, types, shapes and byte ranges, then the bytes; and a Hugging Face checkpoint, a
//! folder of one such file or of shards under an index.
//!
//! What is accepted is what the reference implementation (`safetensors`, `Metadata::validate`) accepts: the tensors' ranges
//! cover the data of the file without gap or overlap. Two tensors that make one in MXFP4 are read as one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::path::{Component, Path};
use std::sync::Arc;

use kernels::{Format, float};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::index::{self, Index};
use crate::source::{Disk, Storage};
use crate::tensor::{Dtype, SourceFile, TensorId, TensorMeta, TensorSource};

/// The index of a sharded checkpoint, by its usual name.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// The largest header accepted, as in the reference implementation.
pub const MAX_HEADER: u64 = 100_000_000;

/// Stored types that are carried but not quantized: name and bytes per element.
const OTHER: [(&str, usize); 14] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E5M2", 1),
    ("F8_E4M3FNUZ", 1),
    ("F8_E5M2FNUZ", 1),
    ("I16", 2),
    ("U16", 2),
    ("I32", 4),
    ("U32", 4),
    ("I64", 8),
    ("U64", 8),
    ("F64", 8),
    ("C64", 8),
];

/// Float types and the rows of the kernels' table that stand for them.
static FLOAT: [(&str, &Format); 3] = [("F32", &float::F32), ("F16", &float::F16), ("BF16", &float::BF16)];

/// The type of that name in a header.
pub fn dtype(name: &str) -> Option<Dtype> {
    match name {
        "F8_E4M3" => return Some(Dtype::F8E4M3),
        "F8_E8M0" => return Some(Dtype::F8E8M0),
        _ => {}
    }
    if let Some((_, format)) = FLOAT.iter().find(|(n, _)| *n == name) {
        return Some(Dtype::Block(format));
    }
    OTHER.iter().find(|(n, _)| *n == name).map(|&(name, bytes)| Dtype::Other { name, bytes })
}

/// A header's name for a type, or `None` for a block type, which safetensors can't hold.
pub fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::Block(format) => FLOAT.iter().find(|(_, f)| **f == *format).map(|(name, _)| *name),
        Dtype::F8E4M3 => Some("F8_E4M3"),
        Dtype::F8E8M0 => Some("F8_E8M0"),
        Dtype::Other { name, .. } => Some(name),
    }
}

/// What a file's header says.
#[derive(Debug)]
pub struct Header {
    /// The tensors in the order of their bytes; `file` is 0, `offset` counts from the start of the file.
    pub tensors: Vec<TensorMeta>,
    /// The free strings under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of a file of `len` bytes from its JSON text, which starts at byte 8. `path` is for messages.
///
/// # Errors
/// If the text is no header, or if it contradicts itself or the file's size.
pub fn parse_header(path: &Path, json: &[u8], len: u64) -> Result<Header> {
    let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
    let RawHeader { mut tensors, metadata } = serde_json::from_slice(json)
        .map_err(|e| malformed(format!("the header is not what safetensors prescribes: {e}")))?;
    // Stable, so that an empty tensor stays where the header has it.
    tensors.sort_by_key(|(_, raw)| raw.data_offsets);

    let data = 8 + json.len() as u64;
    let mut end = 0;
    let mut metas: Vec<TensorMeta> = Vec::with_capacity(tensors.len());
    let mut names = HashSet::with_capacity(tensors.len());
    for (name, raw) in tensors {
        if !names.insert(name.clone()) {
            return Err(Error::DuplicateTensor {
                tensor: name,
                first: path.to_owned(),
                second: path.to_owned(),
            });
        }
        let dtype = dtype(&raw.dtype).ok_or_else(|| Error::UnknownDtype {
            path: path.to_owned(),
            tensor: name.clone(),
            dtype: raw.dtype.clone(),
            known: known_dtypes(),
        })?;
        let expected = raw
            .shape
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(*d))
            .and_then(|n| n.checked_mul(element_bytes(dtype)))
            .ok_or_else(|| Error::BadShape {
                path: path.to_owned(),
                tensor: name.clone(),
                shape: raw.shape.clone(),
            })?;
        let [from, to] = raw.data_offsets;
        if from > to {
            return Err(malformed(format!(
                "tensor {name} starts at byte {from} of the data and ends at byte {to}"
            )));
        }
        if to - from != expected {
            return Err(Error::WrongLength {
                path: path.to_owned(),
                tensor: name,
                dtype: raw.dtype,
                shape: raw.shape,
                expected,
                actual: to - from,
            });
        }
        if from < end {
            let previous = metas.last().map(|m| m.name.clone()).unwrap_or_default();
            return Err(Error::Overlap { path: path.to_owned(), tensor: name, start: from, previous, end });
        }
        if from > end {
            return Err(Error::Gap { path: path.to_owned(), tensor: name, start: from, end });
        }
        if data.checked_add(to).is_none_or(|to| to > len) {
            return Err(Error::Truncated {
                path: path.to_owned(),
                what: format!("tensor {name}"),
                end: data.saturating_add(to),
                len,
            });
        }
        end = to;
        metas.push(TensorMeta { name, dtype, shape: raw.shape, file: 0, offset: data + from, len: expected });
    }
    if data + end != len {
        return Err(Error::Trailing { path: path.to_owned(), end: data + end, len });
    }
    Ok(Header { tensors: metas, metadata })
}

fn element_bytes(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::Block(format) => format.planes.iter().sum::<usize>() as u64,
        Dtype::F8E4M3 | Dtype::F8E8M0 => 1,
        Dtype::Other { bytes, .. } => bytes as u64,
    }
}

fn known_dtypes() -> String {
    let mut names: Vec<&str> = FLOAT.iter().map(|(n, _)| *n).collect();
    names.extend(["F8_E4M3", "F8_E8M0"]);
    names.extend(OTHER.iter().map(|(n, _)| *n));
    names.join(", ")
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// An index's `weight_map` as pairs in file order: a name that occurs twice stays visible.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;

        impl<'de> Visitor<'de> for MapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(WeightMap(pairs))
            }
        }

        deserializer.deserialize_map(MapVisitor)
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: WeightMap,
}

/// One safetensors file, or the shards of a checkpoint, as a source.
#[derive(Debug)]
pub struct Safetensors {
    index: Index,
    metadata: BTreeMap<String, String>,
}

impl Safetensors {
    /// Opens the checkpoint in a folder: the shards that `model.safetensors.index.json` names, or `model.safetensors`, or the
    /// folder's only `*.safetensors`. Reads headers alone.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] if the folder has none of these, and everything that [`parse_header`] and the index can have
    /// wrong.
    pub fn open_folder(folder: &Path) -> Result<Safetensors> {
        Safetensors::open_folder_in(folder, Arc::new(Disk))
    }

    /// The same, where `storage` opens the files with weights. The index lies in the folder.
    ///
    /// # Errors
    /// As [`open_folder`](Self::open_folder).
    pub fn open_folder_in(folder: &Path, storage: Arc<dyn Storage>) -> Result<Safetensors> {
        let index = folder.join(INDEX_NAME);
        if index.exists() {
            return Safetensors::open_index(folder, &index, storage);
        }
        let single = folder.join("model.safetensors");
        if storage.is_file(&single) {
            return Safetensors::open_file_in(&single, storage);
        }
        let mut files = storage.list(folder)?;
        files.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
        files.sort();
        match (files.pop(), files.len()) {
            (Some(only), 0) => Safetensors::open_file_in(&only, storage),
            (None, _) => Err(Error::NoCheckpoint {
                path: folder.to_owned(),
                reason: "the folder has no safetensors file".to_owned(),
            }),
            (Some(_), others) => Err(Error::NoCheckpoint {
                path: folder.to_owned(),
                reason: format!(
                    "the folder has {} safetensors files but no {INDEX_NAME} that says which belong together: fetch it too",
                    others + 1
                ),
            }),
        }
    }

    /// Opens a single file.
    ///
    /// # Errors
    /// See [`parse_header`].
    pub fn open_file(path: &Path) -> Result<Safetensors> {
        Safetensors::open_file_in(path, Arc::new(Disk))
    }

    /// The same of a file that `storage` opens.
    ///
    /// # Errors
    /// See [`parse_header`].
    pub fn open_file_in(path: &Path, storage: Arc<dyn Storage>) -> Result<Safetensors> {
        let mut source = Safetensors { index: Index::new(storage), metadata: BTreeMap::new() };
        source.add_file(path)?;
        source.index.join_mxfp4();
        Ok(source)
    }

    fn open_index(folder: &Path, path: &Path, storage: Arc<dyn Storage>) -> Result<Safetensors> {
        let weight_map = read_index(path)?;
        let mut shards = BTreeSet::new();
        let mut names = HashSet::with_capacity(weight_map.len());
        for (tensor, shard) in &weight_map {
            if !names.insert(tensor) {
                return Err(Error::DuplicateTensor {
                    tensor: tensor.clone(),
                    first: path.to_owned(),
                    second: path.to_owned(),
                });
            }
            check_shard(path, shard)?;
            shards.insert(shard);
        }

        let mut source = Safetensors { index: Index::new(storage), metadata: BTreeMap::new() };
        for shard in shards {
            let file = folder.join(shard);
            if !source.index.storage().is_file(&file) {
                return Err(Error::MissingShard { path: file, named_by: path.display().to_string() });
            }
            source.add_file(&file)?;
        }
        for (tensor, shard) in weight_map {
            let file = folder.join(shard);
            let there =
                source.find(&tensor).is_some_and(|id| source.files()[source.meta(id).file].path == file);
            if !there {
                return Err(Error::NotInShard { path: file, tensor, index: path.to_owned() });
            }
        }
        source.index.join_mxfp4();
        Ok(source)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let opened = self.index.storage().open(path)?;
        let (file, len) = (&opened.handle, opened.len);
        let truncated =
            |end| Error::Truncated { path: path.to_owned(), what: "the header".to_owned(), end, len };
        if len < 8 {
            return Err(truncated(8));
        }
        let mut prefix = [0; 8];
        file.read_head_at(&mut prefix, 0).map_err(io)?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER {
            return Err(Error::HeaderTooLarge { path: path.to_owned(), len: header_len, limit: MAX_HEADER });
        }
        if 8 + header_len > len {
            return Err(truncated(8 + header_len));
        }
        let mut json = vec![0; header_len as usize];
        file.read_head_at(&mut json, 8).map_err(io)?;
        let header = parse_header(path, &json, len)?;
        self.metadata.extend(header.metadata);
        self.index.add(path.to_owned(), opened, header.tensors)
    }

    /// The free strings of all files' headers (MLX writes `format`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl TensorSource for Safetensors {
    fn tensors(&self) -> &[TensorMeta] {
        self.index.tensors()
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.index.find(name)
    }

    fn files(&self) -> &[SourceFile] {
        self.index.files()
    }

    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.index.read_at(id, offset, buffer)
    }

    fn expect(&self, steps: Vec<Vec<usize>>) -> Result<()> {
        self.index.expect(steps)
    }

    fn settled(&self, step: usize) {
        self.index.storage().settled(step);
    }
}

/// The files that an index names, sorted.
///
/// # Errors
/// If it is no index, or names a file outside of its folder.
pub fn shards_of(path: &Path) -> Result<Vec<String>> {
    let shards: BTreeSet<String> = read_index(path)?.into_iter().map(|(_, shard)| shard).collect();
    shards.iter().try_for_each(|shard| check_shard(path, shard))?;
    Ok(shards.into_iter().collect())
}

/// Refuses a shard that does not lie in the folder of its index.
fn check_shard(index: &Path, shard: &str) -> Result<()> {
    let mut parts = Path::new(shard).components();
    if parts.clone().next().is_none() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::ShardOutside { path: index.to_owned(), shard: shard.to_owned() });
    }
    Ok(())
}

/// The pairs of tensor and shard in an index file.
fn read_index(path: &Path) -> Result<Vec<(String, String)>> {
    let (_, len) = index::open(path)?;
    if len > MAX_HEADER {
        return Err(Error::HeaderTooLarge { path: path.to_owned(), len, limit: MAX_HEADER });
    }
    let text = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let index: ShardIndex = serde_json::from_slice(&text).map_err(|e| Error::Malformed {
        path: path.to_owned(),
        reason: format!("no index of shards: {e}"),
    })?;
    Ok(index.weight_map.0)
}

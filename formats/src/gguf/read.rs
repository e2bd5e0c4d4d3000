//! Reading: the header with every count and length checked against the file before anything is allocated, and a file or
//! its splits as a source.

use std::collections::HashSet;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::value::{Array, Metadata, Value};
use super::{ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, split_suffix, types};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::source::{Disk, Opened, ReadAt, Storage};
use crate::tensor::{Dtype, SourceFile, TensorId, TensorMeta, TensorSource};

/// The largest header accepted: ten times that of the largest vocabularies with merges.
const MAX_HEADER: u64 = 256 << 20;

/// What a file's header says.
#[derive(Debug)]
pub struct Header {
    /// Keys and values in file order.
    pub metadata: Metadata,
    /// The tensors in the order of their bytes; `file` is 0, `offset` counts from the start of the file.
    pub tensors: Vec<TensorMeta>,
}

/// Reads the header of a file of `len` bytes. `path` is for messages.
///
/// # Errors
/// If it is no GGUF of version 2 or 3, or contradicts itself or the file's size.
pub fn parse_header(path: &Path, reader: impl Read, len: u64) -> Result<Header> {
    let mut parser = Parser { reader, path, what: "the header".to_owned(), position: 0, len };
    let magic: [u8; 4] = parser.array()?;
    if magic != MAGIC {
        return Err(Error::UnknownMagic { path: path.to_owned(), magic: magic.escape_ascii().to_string() });
    }
    match parser.u32()? {
        2 | 3 => {}
        swapped if swapped & 0xffff == 0 => return Err(Error::BigEndian { path: path.to_owned() }),
        version => return Err(Error::UnsupportedVersion { path: path.to_owned(), version }),
    }
    let tensor_count = parser.u64()?;
    let key_count = parser.u64()?;

    let metadata = parser.metadata(key_count)?;
    let alignment = alignment(path, &metadata)?;
    let mut tensors = parser.tensors(tensor_count, alignment)?;

    tensors.sort_by_key(|tensor| tensor.offset);
    let data = parser.position.next_multiple_of(alignment);
    for tensor in &mut tensors {
        let end = tensor.offset.checked_add(tensor.len).and_then(|end| end.checked_add(data));
        if end.is_none_or(|end| end > len) {
            return Err(Error::Truncated {
                path: path.to_owned(),
                what: format!("tensor {}", tensor.name),
                end: end.unwrap_or(u64::MAX),
                len,
            });
        }
        tensor.offset += data;
    }
    for pair in tensors.windows(2) {
        let end = pair[0].offset + pair[0].len;
        if end > pair[1].offset {
            return Err(Error::Overlap {
                path: path.to_owned(),
                tensor: pair[1].name.clone(),
                start: pair[1].offset - data,
                previous: pair[0].name.clone(),
                end: end - data,
            });
        }
    }
    Ok(Header { metadata, tensors })
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    match metadata.get(ALIGNMENT) {
        None => Ok(DEFAULT_ALIGNMENT.into()),
        Some(Value::U32(n)) if n.is_power_of_two() => Ok(u64::from(*n)),
        Some(Value::U32(n)) => Err(Error::BadAlignment { path: path.to_owned(), alignment: u64::from(*n) }),
        Some(_) => Err(Error::Malformed { path: path.to_owned(), reason: format!("{ALIGNMENT} is no u32") }),
    }
}

/// A reader that knows where it is and how far it may go.
struct Parser<'a, R> {
    reader: R,
    path: &'a Path,
    /// What is being read, for messages.
    what: String,
    position: u64,
    len: u64,
}

impl<R: Read> Parser<'_, R> {
    /// Checks that `count` items of at least `size` bytes each can follow.
    fn expect(&self, count: u64, size: u64) -> Result<()> {
        let end = count.checked_mul(size).and_then(|n| n.checked_add(self.position)).unwrap_or(u64::MAX);
        if end > self.len {
            let (path, what) = (self.path.to_owned(), self.what.clone());
            return Err(Error::Truncated { path, what, end, len: self.len });
        }
        if end > MAX_HEADER {
            return Err(Error::HeaderTooLarge { path: self.path.to_owned(), len: end, limit: MAX_HEADER });
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.expect(buffer.len() as u64, 1)?;
        self.reader.read_exact(buffer).map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::Malformed { path: self.path.to_owned(), reason: format!("{} {reason}", self.what) }
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.expect(len, 1)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("holds a string that is no UTF-8"))
    }

    fn bool(&mut self) -> Result<bool> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(format!("holds a truth value of {other}"))),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata> {
        self.what = format!("the list of {count} metadata keys");
        // A length, a type and a value of one byte.
        self.expect(count, 8 + 4 + 1)?;
        let mut metadata = Metadata::new();
        let mut seen = HashSet::new();
        for i in 0..count {
            self.what = format!("metadata key {i}");
            let key = self.string()?;
            if key.is_empty() {
                return Err(self.malformed("is empty"));
            }
            if !seen.insert(key.clone()) {
                return Err(Error::DuplicateKey { path: self.path.to_owned(), key });
            }
            self.what = format!("metadata key {key}");
            let kind = self.u32()?;
            let value = self.value(kind)?;
            metadata.push(key, value);
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(u32::from_le_bytes(self.array()?)),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.values()?),
            10 => Value::U64(u64::from_le_bytes(self.array()?)),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(self.malformed(format!("has the unknown type {other}"))),
        })
    }

    fn values(&mut self) -> Result<Array> {
        let kind = self.u32()?;
        let count = self.u64()?;
        Ok(match kind {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => {
                self.expect(count, 1)?;
                Array::Bool((0..count).map(|_| self.bool()).collect::<Result<_>>()?)
            }
            8 => {
                self.expect(count, 8)?;
                Array::String((0..count).map(|_| self.string()).collect::<Result<_>>()?)
            }
            9 => return Err(self.malformed("is an array of arrays, which llama.cpp does not read either")),
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            other => return Err(self.malformed(format!("is an array of the unknown type {other}"))),
        })
    }

    fn numbers<T, const N: usize>(&mut self, count: u64, number: fn([u8; N]) -> T) -> Result<Vec<T>> {
        self.expect(count, N as u64)?;
        (0..count).map(|_| self.array().map(number)).collect()
    }

    /// The tensors in the order of the index, their offsets still from the start of the data.
    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<TensorMeta>> {
        self.what = format!("the list of {count} tensors");
        // A name's length, a number of dimensions, a type, an offset.
        self.expect(count, 8 + 4 + 4 + 8)?;
        let mut tensors = Vec::with_capacity(count as usize);
        let mut seen = HashSet::with_capacity(count as usize);
        for i in 0..count {
            self.what = format!("the entry of tensor {i}");
            let name = self.string()?;
            self.what = format!("the entry of tensor {name}");
            let path = || self.path.to_owned();
            if !seen.insert(name.clone()) {
                return Err(Error::DuplicateTensor { tensor: name, first: path(), second: path() });
            }
            let dimensions = self.u32()?;
            if dimensions > 4 {
                let (path, dimensions) = (self.path.to_owned(), dimensions.into());
                return Err(Error::TooManyDimensions { path, tensor: name, dimensions });
            }
            let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
            // GGUF counts from the innermost dimension.
            shape.reverse();
            let id = self.u32()?;
            let offset = self.u64()?;
            tensors.push(self.tensor(name, shape, id, offset, alignment)?);
        }
        Ok(tensors)
    }

    fn tensor(
        &self,
        name: String,
        shape: Vec<u64>,
        id: u32,
        offset: u64,
        alignment: u64,
    ) -> Result<TensorMeta> {
        let path = || self.path.to_owned();
        let dtype = types::dtype(id).map_err(|dtype| Error::UnknownDtype {
            path: path(),
            tensor: name.clone(),
            dtype,
            known: types::known(),
        })?;
        let (block, bytes) = match dtype {
            Dtype::Block(format) => (format.block, format.planes.iter().sum::<usize>()),
            Dtype::Other { bytes, .. } => (1, bytes),
            Dtype::F8E4M3 | Dtype::F8E8M0 => (1, 1),
        };
        let columns = shape.last().copied().unwrap_or(1);
        if let Dtype::Block(format) = dtype
            && !format.holds_row(columns)
        {
            return Err(Error::RaggedRow { path: path(), tensor: name, columns, format: format.name, block });
        }
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
        let Some(len) = elements.and_then(|n| (n / block as u64).checked_mul(bytes as u64)) else {
            return Err(Error::BadShape { path: path(), tensor: name, shape });
        };
        if !offset.is_multiple_of(alignment) {
            return Err(Error::Misaligned { path: path(), tensor: name, offset, alignment });
        }
        Ok(TensorMeta { name, dtype, shape, file: 0, offset, len })
    }
}

/// A GGUF file, or all files of a split one, as a source.
#[derive(Debug)]
pub struct Gguf {
    index: Index,
    metadata: Metadata,
}

impl Gguf {
    /// Opens a file; of a split model, any of its files opens all of them, which must lie in one folder.
    ///
    /// # Errors
    /// See [`parse_header`]; [`Error::MissingShard`] and [`Error::SplitMismatch`] if the splits are not whole.
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::open_in(path, Arc::new(Disk))
    }

    /// The same of a file that `storage` opens.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(path: &Path, storage: Arc<dyn Storage>) -> Result<Gguf> {
        let (opened, header) = open_one(&*storage, path)?;
        let count = header.metadata.get(SPLIT_COUNT).and_then(Value::as_u64).unwrap_or(1);
        let mut source = Gguf { index: Index::new(storage), metadata: Metadata::new() };
        if count <= 1 {
            source.metadata = header.metadata;
            source.index.add(path.to_owned(), opened, header.tensors)?;
            return Ok(source);
        }

        let no = header.metadata.get(SPLIT_NO).and_then(Value::as_u64).unwrap_or(0);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let suffix = split_suffix(no.min(count), count);
        let Some(stem) = name.strip_suffix(suffix.as_str()) else {
            return Err(Error::SplitMismatch {
                path: path.to_owned(),
                what: "the end of its name",
                found: name.into_owned(),
                expected: suffix,
            });
        };
        for no in 0..count {
            let shard = path.with_file_name(format!("{stem}{}", split_suffix(no, count)));
            if !source.index.storage().is_file(&shard) {
                return Err(Error::MissingShard {
                    path: shard,
                    named_by: format!("{SPLIT_COUNT} = {count}"),
                });
            }
            source.add_split(shard, no, count)?;
        }
        let total = source.metadata.get(SPLIT_TENSORS).and_then(Value::as_u64);
        let found = source.index.tensors().len() as u64;
        if total.is_some_and(|total| total != found) {
            return Err(Error::SplitMismatch {
                path: path.to_owned(),
                what: SPLIT_TENSORS,
                found: total.unwrap_or_default().to_string(),
                expected: found.to_string(),
            });
        }
        Ok(source)
    }

    fn add_split(&mut self, path: PathBuf, no: u64, count: u64) -> Result<()> {
        let (opened, header) = open_one(self.index.storage(), &path)?;
        for (what, expected) in [(SPLIT_NO, no), (SPLIT_COUNT, count)] {
            let value = header.metadata.get(what).and_then(Value::as_u64);
            if value != Some(expected) {
                let found = value.map_or_else(|| "missing".to_owned(), |n| n.to_string());
                return Err(Error::SplitMismatch { path, what, found, expected: expected.to_string() });
            }
        }
        if no == 0 {
            self.metadata = header.metadata;
        }
        self.index.add(path, opened, header.tensors)
    }

    /// The keys and values of the file, of a split model those of its first file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

fn open_one(storage: &dyn Storage, path: &Path) -> Result<(Opened, Header)> {
    let opened = storage.open(path)?;
    let head = Head { handle: &*opened.handle, position: 0, len: opened.len };
    let header = parse_header(path, BufReader::with_capacity(1 << 20, head), opened.len)?;
    Ok((opened, header))
}

/// Reads a file's header from its beginning on.
struct Head<'a> {
    handle: &'a dyn ReadAt,
    position: u64,
    len: u64,
}

impl Read for Head<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min((self.len - self.position) as usize);
        self.handle.read_head_at(&mut buffer[..len], self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl TensorSource for Gguf {
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

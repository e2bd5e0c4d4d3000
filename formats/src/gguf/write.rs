//! Writing: the bytes of every header and the place of every tensor, as a function of metadata, shapes and formats.

use super::value::{Array, Metadata, Value};
use super::{ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, split_suffix, types};
use crate::error::{Error, Result};
use crate::layout::{Layout, OutputFile, Placement};
use crate::shards::{Piece, shards};
use kernels::Format;

/// The longest tensor name that llama.cpp takes (`GGML_MAX_NAME` less the final zero).
const MAX_NAME: usize = 63;

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The block it belongs to, if any.
    pub layer: Option<u32>,
    /// Row-major, outermost dimension first.
    pub shape: &'a [u64],
    /// How it is stored.
    pub format: &'static Format,
}

/// How the output is cut into files.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The file's name without `.gguf` and without the numbers of a split.
    pub stem: &'a str,
    /// Where tensors start: a multiple of this power of two, in bytes.
    pub alignment: u32,
    /// The most bytes of tensors in a file, which ends with a layer where it can; one larger tensor gets a file of its own.
    /// `None`: no limit.
    pub shard_size: Option<u64>,
    /// A file ends behind each of these layers.
    pub shard_after: &'a [u32],
}

/// Lays out a model: one file `<stem>.gguf`, or as many as the shard size asks for, named and keyed as llama.cpp's
/// `gguf-split` does (the first holds the metadata; `general.alignment` stands in each, as each is read by itself).
///
/// The metadata's own `general.alignment` and `split.*` are replaced.
///
/// # Errors
/// What GGUF or llama.cpp would not read: [`Error::NameTooLong`], [`Error::DuplicateTensor`],
/// [`Error::TooManyDimensions`], [`Error::BadShape`], [`Error::RaggedRow`], [`Error::NotInContainer`],
/// [`Error::BadAlignment`], [`Error::TooManyShards`].
pub fn layout(metadata: &Metadata, tensors: &[Tensor<'_>], options: &Options<'_>) -> Result<Layout> {
    let name = format!("{}.gguf", options.stem);
    if !options.alignment.is_power_of_two() {
        return Err(Error::BadAlignment { path: name.into(), alignment: options.alignment.into() });
    }
    let alignment = u64::from(options.alignment);
    let mut names = std::collections::HashSet::with_capacity(tensors.len());
    let mut lens = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if !names.insert(tensor.name) {
            let (tensor, first) = (tensor.name.to_owned(), name.clone().into());
            return Err(Error::DuplicateTensor { tensor, first, second: name.into() });
        }
        lens.push(checked_len(tensor, &name, alignment)?);
    }

    let pieces: Vec<_> = tensors
        .iter()
        .zip(&lens)
        .map(|(tensor, len)| Piece { layer: tensor.layer, len: len.next_multiple_of(alignment) })
        .collect();
    let shards = shards(&pieces, options.shard_size, options.shard_after);
    let count = u16::try_from(shards.len()).map_err(|_| Error::TooManyShards { shards: shards.len() })?;
    let mut layout = Layout::default();
    for (no, range) in (0u16..).zip(shards) {
        let mut keys = Metadata::new();
        if no == 0 {
            for (key, value) in metadata.iter().filter(|(key, _)| !is_ours(key)) {
                keys.push(key.to_owned(), value.clone());
            }
        }
        if options.alignment != DEFAULT_ALIGNMENT {
            keys.set(ALIGNMENT, options.alignment);
        }
        if count > 1 {
            keys.set(SPLIT_NO, no);
            keys.set(SPLIT_COUNT, count);
            keys.set(SPLIT_TENSORS, tensors.len() as i32);
        }
        let (header, offsets) = header(&keys, &tensors[range.clone()], &lens[range.clone()], alignment);
        let data = header.len() as u64;
        let mut len = data;
        for (offset, tensor_len) in offsets.into_iter().zip(&lens[range]) {
            layout.planes.push(vec![Placement { file: no.into(), offset: data + offset, len: *tensor_len }]);
            len = (data + offset + tensor_len).next_multiple_of(alignment);
        }
        let name = match count {
            1 => name.clone(),
            _ => format!("{}{}", options.stem, split_suffix(no.into(), count.into())),
        };
        layout.files.push(OutputFile { name, header, len });
    }
    Ok(layout)
}

/// Keys that say how the output is cut into files, which only the layout knows.
fn is_ours(key: &str) -> bool {
    [ALIGNMENT, SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(&key)
}

/// The tensor's bytes, once it is sure that it can be stored.
fn checked_len(tensor: &Tensor<'_>, file: &str, alignment: u64) -> Result<u64> {
    let &Tensor { name, shape, format, .. } = tensor;
    if name.len() > MAX_NAME {
        return Err(Error::NameTooLong { tensor: name.to_owned(), len: name.len() });
    }
    if types::id(format).is_none() {
        return Err(Error::NotInContainer {
            tensor: name.to_owned(),
            format: format.name,
            container: "GGUF".to_owned(),
        });
    }
    if shape.len() > 4 {
        let (path, dimensions) = (file.into(), shape.len() as u64);
        return Err(Error::TooManyDimensions { path, tensor: name.to_owned(), dimensions });
    }
    let bad_shape = || Error::BadShape { path: file.into(), tensor: name.to_owned(), shape: shape.to_vec() };
    let columns = *shape.last().ok_or_else(bad_shape)?;
    if !format.holds_row(columns) {
        let (path, tensor) = (file.into(), name.to_owned());
        return Err(Error::RaggedRow { path, tensor, columns, format: format.name, block: format.block });
    }
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0);
    elements
        .and_then(|n| format.plane_bytes(0, n))
        // Room for the padding and for the sum of all tensors.
        .filter(|len| *len < u64::MAX >> 16 && len.checked_next_multiple_of(alignment).is_some())
        .ok_or_else(bad_shape)
}

/// The first bytes of a file, up to its first tensor, and where each tensor starts behind them.
fn header(metadata: &Metadata, tensors: &[Tensor<'_>], lens: &[u64], alignment: u64) -> (Vec<u8>, Vec<u64>) {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut bytes, key);
        put_value(&mut bytes, value);
    }
    let mut offset = 0u64;
    let mut offsets = Vec::with_capacity(tensors.len());
    for (tensor, len) in tensors.iter().zip(lens) {
        put_string(&mut bytes, tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for dimension in tensor.shape.iter().rev() {
            bytes.extend(dimension.to_le_bytes());
        }
        bytes.extend(types::id(tensor.format).unwrap_or_default().to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offsets.push(offset);
        offset += len.next_multiple_of(alignment);
    }
    bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
    (bytes, offsets)
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A value's type and bytes.
fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    macro_rules! put {
        ($kind:literal, $value:expr) => {{
            bytes.extend(u32::to_le_bytes($kind));
            bytes.extend($value.to_le_bytes());
        }};
    }
    match value {
        Value::U8(v) => put!(0, v),
        Value::I8(v) => put!(1, v),
        Value::U16(v) => put!(2, v),
        Value::I16(v) => put!(3, v),
        Value::U32(v) => put!(4, v),
        Value::I32(v) => put!(5, v),
        Value::F32(v) => put!(6, v),
        Value::Bool(v) => put!(7, u8::from(*v)),
        Value::String(v) => {
            bytes.extend(8u32.to_le_bytes());
            put_string(bytes, v);
        }
        Value::Array(array) => {
            bytes.extend(9u32.to_le_bytes());
            put_array(bytes, array);
        }
        Value::U64(v) => put!(10, v),
        Value::I64(v) => put!(11, v),
        Value::F64(v) => put!(12, v),
    }
}

/// An array's type of elements, their number and their bytes.
fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    fn head(bytes: &mut Vec<u8>, kind: u32, count: usize) {
        bytes.extend(kind.to_le_bytes());
        bytes.extend((count as u64).to_le_bytes());
    }
    macro_rules! put {
        ($kind:literal, $values:expr) => {{
            head(bytes, $kind, $values.len());
            $values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => put!(0, v),
        Array::I8(v) => put!(1, v),
        Array::U16(v) => put!(2, v),
        Array::I16(v) => put!(3, v),
        Array::U32(v) => put!(4, v),
        Array::I32(v) => put!(5, v),
        Array::F32(v) => put!(6, v),
        Array::Bool(v) => {
            head(bytes, 7, v.len());
            bytes.extend(v.iter().map(|b| u8::from(*b)));
        }
        Array::String(v) => {
            head(bytes, 8, v.len());
            v.iter().for_each(|text| put_string(bytes, text));
        }
        Array::U64(v) => put!(10, v),
        Array::I64(v) => put!(11, v),
        Array::F64(v) => put!(12, v),
    }
}

//! Folders of safetensors shards with their index, as MLX and Hugging Face have them.
//!
//! # Alignment
//! safetensors allows no gap between tensors, so alignment can only come from order. The header is padded with spaces until
//! the data starts at a multiple of 64 bytes; within a shard the tensors whose length is a multiple of 64 come first, then
//! those of 32, 16 and so on, each in the model's own order. So every tensor starts at a multiple of the largest power of two, up to 64, that divides its
//! length: all matrices at 64 bytes, and whatever is left at least at a multiple of its element.

use std::collections::HashSet;

use kernels::{Format, float};
use serde_json::{Map, Value, json};

use crate::arrangement::Arrangement;
use crate::error::{Error, Result};
use crate::layout::{Fill, Known, Layout, OutputFile, Placement};
use crate::safetensors::INDEX_NAME;
use crate::shards::{Piece, shards};

/// What every tensor's start is a multiple of, where its length is one too.
const ALIGNMENT: u64 = 64;

/// What is written beside the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The most bytes of tensors in a shard, which ends with a layer where it can; one larger tensor gets a shard of its own.
    pub shard_size: u64,
    /// A shard ends behind each of these layers.
    pub shard_after: &'a [u32],
    /// Free strings for every shard's header, beside `format`.
    pub metadata: &'a [(&'a str, &'a str)],
}

/// A tensor of a file.
pub(crate) struct Stored {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub layer: Option<u32>,
    pub len: u64,
    pub content: Content,
}

/// What is in it.
pub(crate) enum Content {
    /// A plane of an output tensor: which tensor, and which of its planes.
    Plane(usize, usize),
    /// The same of a plane whose rows lie apart.
    Arranged(usize, usize, Arrangement),
    /// Bytes beside the planes of a tensor that are known beforehand, but many.
    Known(usize, Fill),
    /// These bytes, known beforehand; less than [`ALIGNMENT`].
    Bytes(Vec<u8>),
}

/// safetensors' name of a float.
pub(crate) fn float_name(format: &Format) -> Option<&'static str> {
    let floats = [("F32", &float::F32), ("F16", &float::F16), ("BF16", &float::BF16)];
    floats.into_iter().find_map(|(name, float)| (format == float).then_some(name))
}

/// Lays out the shards and their index, which is the last file. `planes` is the number of planes of each output tensor,
/// `parameters` that of all weights, `format` the shards' `format` ("mlx", "pt").
///
/// # Errors
/// [`Error::DuplicateTensor`].
pub(crate) fn layout(
    stored: Vec<Stored>,
    planes: impl Iterator<Item = usize>,
    parameters: u64,
    format: &str,
    options: &Options<'_>,
) -> Result<Layout> {
    let mut names = HashSet::with_capacity(stored.len());
    for tensor in &stored {
        if !names.insert(&tensor.name) {
            let (first, second) = (INDEX_NAME.into(), INDEX_NAME.into());
            return Err(Error::DuplicateTensor { tensor: tensor.name.clone(), first, second });
        }
    }

    let pieces: Vec<_> = stored.iter().map(|tensor| Piece { layer: tensor.layer, len: tensor.len }).collect();
    let shards = shards(&pieces, Some(options.shard_size), options.shard_after);
    let count = shards.len();
    let mut stored = stored.into_iter();
    let nowhere = Placement { file: 0, offset: 0, len: 0 };
    let places = planes.map(|planes| vec![nowhere; planes]).collect();
    let mut layout = Layout { planes: places, ..Layout::default() };
    let mut weight_map = Vec::new();
    let mut total_size = 0;
    for (file, range) in shards.into_iter().enumerate() {
        let mut shard: Vec<_> = stored.by_ref().take(range.len()).collect();
        // What is known already goes on where the header ends, and is written with it: it ends where alignment begins, so what needs least
        // of that is first.
        shard.sort_by_key(|tensor| {
            let aligned = tensor.len.trailing_zeros().min(ALIGNMENT.ilog2());
            match tensor.content {
                Content::Bytes(_) => (false, aligned),
                _ => (true, ALIGNMENT.ilog2() - aligned),
            }
        });
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", file + 1),
        };
        let header = header(&shard, format, options.metadata);
        let mut offset = header.len() as u64;
        for tensor in shard {
            let at = Placement { file, offset, len: tensor.len };
            match tensor.content {
                Content::Plane(of, plane) => layout.planes[of][plane] = at,
                Content::Arranged(of, plane, arrangement) => {
                    layout.planes[of][plane] = at;
                    layout.arranged.insert((of, plane), arrangement);
                }
                Content::Known(of, fill) => layout.known.entry(of).or_default().push(Known { at, fill }),
                Content::Bytes(_) => {}
            }
            if !matches!(tensor.content, Content::Bytes(_)) {
                offset += tensor.len;
            }
            total_size += tensor.len;
            weight_map.push((tensor.name, name.clone()));
        }
        layout.files.push(OutputFile { name, header, len: offset });
    }

    weight_map.sort();
    let index = json!({
        "metadata": { "total_size": total_size, "total_parameters": parameters },
        "weight_map": weight_map.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>(),
    });
    let text = format!("{index:#}\n").into_bytes();
    layout.files.push(OutputFile { name: INDEX_NAME.to_owned(), len: text.len() as u64, header: text });
    Ok(layout)
}

/// The length and the JSON of a shard's header, and the bytes that are known already; padded so that the planes behind them are
/// aligned.
fn header(tensors: &[Stored], format: &str, metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut free = Map::new();
    free.insert("format".to_owned(), format.into());
    free.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())));
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), free.into());
    let mut start = 0;
    let mut known = Vec::new();
    for tensor in tensors {
        let end = start + tensor.len;
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
        if let Content::Bytes(bytes) = &tensor.content {
            known.extend_from_slice(bytes);
        }
    }
    let mut json = Value::from(entries).to_string().into_bytes();
    let whole = (8 + json.len() + known.len()).next_multiple_of(ALIGNMENT as usize);
    json.resize(whole - 8 - known.len(), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json, &known].concat()
}

//! MLX folders: safetensors shards as mlx-lm's `convert` writes them, their index, and what `config.json` says about the
//! quantization. (mlx-lm: `utils.py`, `make_shards`, `save_model`, `quantize_model`, `load_model`; mlx: `io/safetensors.cpp`.)
//!
//! A quantized module is three tensors, `.weight` (codes, in U32 words), `.scales` and `.biases`, or the first two with scales
//! in U8 for the floating-point modes.
//!
//! # Alignment
//! safetensors allows no gap between tensors, so alignment can only come from order. The header is padded with spaces until
//! the data starts at a multiple of 64 bytes; within a shard the tensors whose length is a multiple of 64 come first, then
//! those of 32, 16 and so on, each in the model's own order. So every tensor starts at a multiple of the largest power of two, up to 64, that divides its
//! length: all matrices at 64 bytes, and whatever is left at least at a multiple of its element.

use std::collections::HashSet;
use std::path::Path;

use kernels::mlx_affine::scales_of;
use kernels::{Format, float};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::layout::{Layout, OutputFile, Placement};
use crate::older_keys::add_older_keys;
use crate::safetensors::INDEX_NAME;
use crate::shards::{Piece, shards};

/// The most bytes of tensors that mlx-lm puts into a shard: 5 GiB.
pub const SHARD_SIZE: u64 = 5 << 30;

/// What every tensor's start is a multiple of, where its length is one too.
const ALIGNMENT: u64 = 64;

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// A module's path, if the tensor is the weight of a module that could be quantized; else the tensor's whole name.
    pub name: &'a str,
    /// Whether `name` is a module's path.
    pub module: bool,
    /// The layer it belongs to, if any.
    pub layer: Option<u32>,
    /// Row-major, outermost dimension first.
    pub shape: &'a [u64],
    /// A quantization mode of MLX, or a float.
    pub format: &'static Format,
}

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

/// The parameters of a quantization mode, as `config.json` states them; `None` for a float.
///
/// The affine modes are those with three planes; the floating-point modes are called what MLX calls them.
fn parameters(format: &Format) -> Option<Value> {
    let mode = match format.planes.len() {
        1 => return None,
        2 => format.name,
        _ => "affine",
    };
    Some(json!({ "group_size": format.block, "bits": bits(format), "mode": mode }))
}

/// Bits per code.
fn bits(format: &Format) -> usize {
    format.planes[0] * 8 / format.block
}

/// safetensors' name of a float.
fn float_name(format: &Format) -> Option<&'static str> {
    let floats = [("F32", &float::F32), ("F16", &float::F16), ("BF16", &float::BF16)];
    floats.into_iter().find_map(|(name, float)| (format == float).then_some(name))
}

/// A tensor of a file: a plane of an output tensor.
struct Plane {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    len: u64,
    /// Which output tensor, and which of its planes.
    of: (usize, usize),
}

/// Lays out the shards and their index, which is the last file. The caller adds `config.json` (see [`config`]) and the
/// tokenizer.
///
/// # Errors
/// [`Error::DuplicateTensor`], [`Error::BadShape`], [`Error::RaggedRow`], and [`Error::NotInContainer`] for a format that is
/// no mode of MLX.
pub fn layout(tensors: &[Tensor<'_>], options: &Options<'_>) -> Result<Layout> {
    let mut planes = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        planes.extend(tensor_planes(tensor, i)?);
    }
    let mut names = HashSet::with_capacity(planes.len());
    for plane in &planes {
        if !names.insert(&plane.name) {
            let (first, second) = (INDEX_NAME.into(), INDEX_NAME.into());
            return Err(Error::DuplicateTensor { tensor: plane.name.clone(), first, second });
        }
    }

    let pieces: Vec<_> =
        planes.iter().map(|plane| Piece { layer: tensors[plane.of.0].layer, len: plane.len }).collect();
    let shards = shards(&pieces, Some(options.shard_size), options.shard_after);
    let count = shards.len();
    let mut planes = planes.into_iter();
    let nowhere = Placement { file: 0, offset: 0, len: 0 };
    let places = tensors.iter().map(|tensor| vec![nowhere; tensor.format.planes.len()]).collect();
    let mut layout = Layout { files: Vec::with_capacity(count + 1), planes: places };
    let mut weight_map = Vec::new();
    let mut total_size = 0;
    for (file, range) in shards.into_iter().enumerate() {
        let mut shard: Vec<_> = planes.by_ref().take(range.len()).collect();
        shard.sort_by_key(|plane| std::cmp::Reverse(plane.len.trailing_zeros().min(ALIGNMENT.ilog2())));
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", file + 1),
        };
        let header = header(&shard, options.metadata);
        let mut offset = header.len() as u64;
        for plane in shard {
            layout.planes[plane.of.0][plane.of.1] = Placement { file, offset, len: plane.len };
            offset += plane.len;
            total_size += plane.len;
            weight_map.push((plane.name, name.clone()));
        }
        layout.files.push(OutputFile { name, header, len: offset });
    }

    weight_map.sort();
    let parameters: u64 = tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    let index = json!({
        "metadata": { "total_size": total_size, "total_parameters": parameters },
        "weight_map": weight_map.into_iter().map(|(k, v)| (k, v.into())).collect::<Map<_, _>>(),
    });
    let text = format!("{index:#}\n").into_bytes();
    layout.files.push(OutputFile { name: INDEX_NAME.to_owned(), len: text.len() as u64, header: text });
    Ok(layout)
}

/// The tensor's planes, once it is sure that MLX can hold them.
fn tensor_planes(tensor: &Tensor<'_>, index: usize) -> Result<Vec<Plane>> {
    let &Tensor { name, module, shape, format, .. } = tensor;
    let refused = || Error::NotInContainer {
        tensor: name.to_owned(),
        format: format.name,
        container: if module { "MLX" } else { "MLX, outside of a module that can be quantized," },
    };
    let bad_shape =
        || Error::BadShape { path: INDEX_NAME.into(), tensor: name.to_owned(), shape: shape.to_vec() };
    let (&columns, outer) = shape.split_last().ok_or_else(bad_shape)?;
    if !format.holds_row(columns) {
        let (path, tensor) = (INDEX_NAME.into(), name.to_owned());
        return Err(Error::RaggedRow { path, tensor, columns, format: format.name, block: format.block });
    }
    let groups = columns / format.block as u64;
    // Type of the plane's elements and their number in a group.
    let kinds: Vec<(&'static str, u64)> = match *format.planes {
        [_] => vec![(float_name(format).ok_or_else(refused)?, 1)],
        [codes, 1] if module => vec![("U32", codes as u64 / 4), ("U8", 1)],
        [codes, _, _] if module => {
            let dtype = scales_of(format).and_then(float_name).ok_or_else(refused)?;
            vec![("U32", codes as u64 / 4), (dtype, 1), (dtype, 1)]
        }
        _ => return Err(refused()),
    };
    let elements =
        shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0).ok_or_else(bad_shape)?;
    let mut planes = Vec::with_capacity(kinds.len());
    for (plane, (end, (dtype, per_group))) in ["weight", "scales", "biases"].iter().zip(kinds).enumerate() {
        let name = if module { format!("{name}.{end}") } else { name.to_owned() };
        // Room for the sum of all tensors.
        let len =
            format.plane_bytes(plane, elements).filter(|n| *n < u64::MAX >> 16).ok_or_else(bad_shape)?;
        let shape = [outer, &[groups * per_group]].concat();
        planes.push(Plane { name, dtype, shape, len, of: (index, plane) });
    }
    Ok(planes)
}

/// The length and the JSON of a shard's header, padded so that the data behind it is aligned.
fn header(planes: &[Plane], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut free = Map::new();
    free.insert("format".to_owned(), "mlx".into());
    free.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())));
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), free.into());
    let mut start = 0;
    for plane in planes {
        let end = start + plane.len;
        let entry = json!({ "dtype": plane.dtype, "shape": plane.shape, "data_offsets": [start, end] });
        entries.insert(plane.name.clone(), entry);
        start = end;
    }
    let mut json = Value::from(entries).to_string().into_bytes();
    json.resize((8 + json.len()).next_multiple_of(ALIGNMENT as usize) - 8, b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

/// The `config.json` of the folder: the source's, with what mlx-lm needs to know about the quantized modules in the place of
/// what the source said about its own quantization, and the keys that only older checkpoints have. `path` is for messages.
///
/// The mode of most weights becomes the default; every other module that could have it is stated with its own, or with
/// `false` if it is not quantized. Transformers and the Hub look for `quantization_config`, mlx-lm for `quantization`: both
/// say the same.
///
/// # Errors
/// [`Error::Malformed`] if `source` is no JSON object.
pub fn config(path: &Path, source: &str, tensors: &[Tensor<'_>]) -> Result<String> {
    let mut config: Map<String, Value> = serde_json::from_str(source)
        .map_err(|e| Error::Malformed { path: path.to_owned(), reason: format!("no JSON object: {e}") })?;
    config.remove("quantization");
    config.remove("quantization_config");
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.remove("quantization_config");
    }
    add_older_keys(&mut config);
    // mlx-lm has one file for the model that sees and for its language model alone.
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if let Some(whole) = model_type.strip_suffix("_text").filter(|whole| whole.starts_with("qwen3_5")) {
        config.insert("model_type".to_owned(), whole.into());
    }
    if let Some(default) = main_mode(tensors) {
        let mut quantization = parameters(default).unwrap_or_default();
        for tensor in tensors.iter().filter(|t| t.module && t.format != default) {
            quantization[tensor.name] = parameters(tensor.format).unwrap_or(false.into());
        }
        config.insert("quantization".to_owned(), quantization.clone());
        config.insert("quantization_config".to_owned(), quantization);
    }
    Ok(format!("{:#}\n", Value::from(config)))
}

/// The quantization mode of most weights, of equals the first; `None` if there is no quantized tensor.
fn main_mode(tensors: &[Tensor<'_>]) -> Option<&'static Format> {
    let mut modes: Vec<(&'static Format, u64)> = Vec::new();
    for tensor in tensors.iter().filter(|t| t.format.planes.len() > 1) {
        let weights = tensor.shape.iter().product::<u64>();
        match modes.iter_mut().find(|(mode, _)| *mode == tensor.format) {
            Some((_, sum)) => *sum += weights,
            None => modes.push((tensor.format, weights)),
        }
    }
    // `max_by_key` takes the last of equals.
    modes.into_iter().rev().max_by_key(|(_, sum)| *sum).map(|(mode, _)| mode)
}

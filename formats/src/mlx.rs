//! MLX folders: safetensors shards as mlx-lm's `convert` writes them, their index, and what `config.json` says about the
//! quantization. (mlx-lm: `utils.py`, `make_shards`, `save_model`, `quantize_model`, `load_model`; mlx: `io/safetensors.cpp`.)
//!
//! A quantized module is three tensors, `.weight` (codes, in U32 words), `.scales` and `.biases`, or the first two with scales
//! in U8 for the floating-point modes.

use std::path::Path;

use kernels::Format;
use kernels::mlx_affine::scales_of;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
pub use crate::folder::Options;
use crate::folder::{self, Content, Stored, float_name};
use crate::layout::Layout;
use crate::older_keys::add_older_keys;
use crate::safetensors::INDEX_NAME;

/// The most bytes of tensors that mlx-lm puts into a shard: 5 GiB.
pub const SHARD_SIZE: u64 = 5 << 30;

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
    let parameters = tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    let count = tensors.iter().map(|tensor| tensor.format.planes.len());
    folder::layout(planes, count, parameters, "mlx", options)
}

/// The tensor's planes, once it is sure that MLX can hold them.
fn tensor_planes(tensor: &Tensor<'_>, index: usize) -> Result<Vec<Stored>> {
    let &Tensor { name, module, layer, shape, format } = tensor;
    let refused = || Error::NotInContainer {
        tensor: name.to_owned(),
        format: format.name,
        container: if module { "MLX" } else { "MLX, outside of a module that can be quantized," }.to_owned(),
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
        let content = Content::Plane(index, plane);
        planes.push(Stored { name, dtype, shape, layer, len, content });
    }
    Ok(planes)
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

//! Folders of compressed-tensors, which vLLM, SGLang and transformers load: safetensors shards under Hugging Face's own names, their
//! index, and what `config.json` says about the quantization. (compressed-tensors: `compressors/pack_quantized/base.py`,
//! `quantization/quant_config.py`, `quant_scheme.py`, `quant_args.py`.)
//!
//! A quantized weight `X.weight` [N, K] is three tensors: `X.weight_packed` (codes, in I32 words [N, K/8]), `X.weight_scale` [N, K/g]
//! and `X.weight_shape` (I64 [2]: N and K). [`join`](crate::compressed_folder::join) reads them.

use std::path::Path;

use kernels::Format;
use kernels::w4a16::scales_of;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::folder::{self, Content, Options, Stored, float_name};
use crate::layout::Layout;
use crate::safetensors::INDEX_NAME;

/// The most bytes of tensors in a shard: what transformers has long cut models at.
pub const SHARD_SIZE: u64 = 5_000_000_000;

/// The end of the name of a linear's weight.
pub(crate) const WEIGHT: &str = ".weight";
/// The ends of the names of what a quantized weight is stored as: the formats' planes, and the shape.
pub(crate) const PACKED: &str = ".weight_packed";
pub(crate) const SCALE: &str = ".weight_scale";
pub(crate) const SHAPE: &str = ".weight_shape";

/// The head's module. Where it is the embedding there is no tensor of it, but a module, which must not be taken for a quantized one.
const HEAD: &str = "lm_head";

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its whole name.
    pub name: &'a str,
    /// Whether it is the weight of a linear, which consumers take for quantized unless told otherwise.
    pub linear: bool,
    /// The layer it belongs to, if any.
    pub layer: Option<u32>,
    /// Row-major, outermost dimension first.
    pub shape: &'a [u64],
    /// A scheme of compressed-tensors, or a float.
    pub format: &'static Format,
}

impl<'a> Tensor<'a> {
    /// The linear's path.
    fn module(&self) -> Option<&'a str> {
        self.name.strip_suffix(WEIGHT).filter(|_| self.linear)
    }

    fn is_quantized(&self) -> bool {
        scales_of(self.format).is_some()
    }
}

/// Lays out the shards and their index, which is the last file. The caller adds `config.json` (see [`config`]) and the
/// tokenizer.
///
/// # Errors
/// [`Error::DuplicateTensor`], [`Error::BadShape`], [`Error::RaggedRow`], and [`Error::NotInContainer`] for a format that
/// compressed-tensors has not, or not for such a tensor.
pub fn layout(tensors: &[Tensor<'_>], options: &Options<'_>) -> Result<Layout> {
    let mut stored = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        stored.extend(stored_as(tensor, i)?);
    }
    let parameters = tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
    let planes = tensors.iter().map(|tensor| tensor.format.planes.len());
    folder::layout(stored, planes, parameters, "pt", options)
}

/// What a tensor is in the files.
fn stored_as(tensor: &Tensor<'_>, index: usize) -> Result<Vec<Stored>> {
    let &Tensor { name, layer, shape, format, .. } = tensor;
    let refused = || Error::NotInContainer {
        tensor: name.to_owned(),
        format: format.name,
        container: "compressed-tensors, or not for this tensor,",
    };
    let bad_shape =
        || Error::BadShape { path: INDEX_NAME.into(), tensor: name.to_owned(), shape: shape.to_vec() };
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).ok_or_else(bad_shape)?;
    // Room for the sum of all tensors.
    let len =
        |plane| format.plane_bytes(plane, elements).filter(|n| *n < u64::MAX >> 16).ok_or_else(bad_shape);
    let plane = |name: String, dtype, shape: &[u64], plane| {
        let (shape, content) = (shape.to_vec(), Content::Plane(index, plane));
        Ok(Stored { name, dtype, shape, layer, len: len(plane)?, content })
    };
    let Some(scales) = scales_of(format) else {
        let dtype = float_name(format).ok_or_else(refused)?;
        return Ok(vec![plane(name.to_owned(), dtype, shape, 0)?]);
    };
    let (Some(module), &[rows, columns]) = (tensor.module(), shape) else { return Err(refused()) };
    if !format.holds_row(columns) {
        let (path, tensor) = (INDEX_NAME.into(), name.to_owned());
        return Err(Error::RaggedRow { path, tensor, columns, format: format.name, block: format.block });
    }
    let of_scales = float_name(scales).ok_or_else(refused)?;
    let sizes: Vec<u8> = [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect();
    Ok(vec![
        plane(format!("{module}{PACKED}"), "I32", &[rows, columns / 8], 0)?,
        plane(format!("{module}{SCALE}"), of_scales, &[rows, columns / format.block as u64], 1)?,
        Stored {
            name: format!("{module}{SHAPE}"),
            dtype: "I64",
            shape: vec![2],
            layer,
            len: sizes.len() as u64,
            content: Content::Bytes(sizes),
        },
    ])
}

/// The `config.json` of the folder: the source's, with what consumers need to know about the quantized linears in the place of what
/// the source said about its own quantization. `path` is for messages.
///
/// One scheme for all is said of every `Linear` but those listed; with several, each says which modules it is for.
///
/// # Errors
/// [`Error::Malformed`] if `source` is no JSON object.
pub fn config(path: &Path, source: &str, tensors: &[Tensor<'_>]) -> Result<String> {
    let mut config: Map<String, Value> = serde_json::from_str(source)
        .map_err(|e| Error::Malformed { path: path.to_owned(), reason: format!("no JSON object: {e}") })?;
    config.remove("quantization_config");
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.remove("quantization_config");
    }
    let mut schemes: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut ignored = Vec::new();
    for tensor in tensors {
        let Some(module) = tensor.module() else { continue };
        if !tensor.is_quantized() {
            ignored.push(module);
            continue;
        }
        match schemes.iter_mut().find(|(group, _)| *group == tensor.format.block) {
            Some((_, modules)) => modules.push(module),
            None => schemes.push((tensor.format.block, vec![module])),
        }
    }
    if schemes.is_empty() {
        return Ok(format!("{:#}\n", Value::from(config)));
    }
    if !ignored.iter().any(|module| module.ends_with(HEAD)) {
        ignored.push(HEAD);
    }
    let is_only = schemes.len() == 1;
    let groups: Map<String, Value> = schemes
        .into_iter()
        .enumerate()
        .map(|(i, (group, modules))| {
            let targets = if is_only { vec!["Linear"] } else { modules };
            (format!("group_{i}"), scheme(group, &targets))
        })
        .collect();
    let quantization = json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    });
    config.insert("quantization_config".to_owned(), quantization);
    Ok(format!("{:#}\n", Value::from(config)))
}

/// A `QuantizationScheme` of weights in groups of `group`.
fn scheme(group: usize, targets: &[&str]) -> Value {
    json!({
        "targets": targets,
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": true,
            "strategy": "group",
            "group_size": group,
            "block_structure": null,
            "dynamic": false,
            "actorder": null,
            "observer": "minmax",
            "observer_kwargs": {},
        },
        "input_activations": null,
        "output_activations": null,
    })
}

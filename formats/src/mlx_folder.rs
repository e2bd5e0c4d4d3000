//! MLX folders as a source: the `.weight`, `.scales` and `.biases` of a quantized module are one tensor in one of MLX's
//! formats, whose bytes are those of its planes, one after the other. (mlx-lm: `utils.py`, `load_model`; [`mlx`](crate::mlx)
//! writes such folders.)

use std::path::Path;

use kernels::{Format, mlx_affine, table};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::joined::{Convention, Joined, Whole};
use crate::safetensors::Safetensors;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// Ends of the names of a quantized module's tensors, in the order of the formats' planes.
const PLANES: [&str; 3] = [".weight", ".scales", ".biases"];

/// Puts the planes of every quantized module together. `quantization` is what `config` (`config.json`) says under that key;
/// without it, all tensors are what they are.
///
/// # Errors
/// [`Error::Malformed`] if a module's mode is none of MLX's, or its tensors contradict it.
pub fn join(config: &Path, stored: Safetensors, quantization: Option<&Map<String, Value>>) -> Result<Joined> {
    let mut logical = Vec::new();
    let mut is_plane = vec![false; stored.tensors().len()];
    for (id, meta) in stored.tensors().iter().enumerate() {
        let module = meta.name.strip_suffix(PLANES[0]);
        let module = quantization.zip(module).map(|(quantization, module)| {
            let plane = |end| stored.find(&format!("{module}{end}"));
            (quantization, module, plane(PLANES[1]), plane(PLANES[2]))
        });
        let Some((quantization, module, Some(scales), biases)) = module else {
            logical.push(Whole::new(meta.clone(), vec![TensorId(id).into()]));
            continue;
        };
        let module = Module { config, module, words: meta, scales: stored.meta(scales) };
        let whole = module.whole(quantization, biases.map(|biases| stored.meta(biases)))?;
        let planes: Vec<TensorId> =
            [Some(TensorId(id)), Some(scales), biases].into_iter().flatten().collect();
        planes[1..].iter().for_each(|plane| is_plane[plane.0] = true);
        logical.push(Whole::new(whole, planes.into_iter().map(Into::into).collect()));
    }
    logical.retain(|whole| !is_plane[whole.planes[0].stored.0]);
    Ok(Joined::new(Convention::Mlx, stored, logical))
}

/// What the text of `config`, a `config.json`, says about MLX's quantization, if anything.
pub(crate) fn quantization(config: &Path, text: &str) -> Result<Option<Map<String, Value>>> {
    let mut keys: Map<String, Value> = serde_json::from_str(text)
        .map_err(|e| Error::Malformed { path: config.to_owned(), reason: format!("no JSON object: {e}") })?;
    match keys.remove("quantization") {
        Some(Value::Object(quantization)) => Ok(Some(quantization)),
        _ => Ok(None),
    }
}

/// Whether a tensor has what MLX's quantized modules have: packed codes and scales.
pub(crate) fn has_packed(stored: &Safetensors) -> bool {
    stored.tensors().iter().any(|meta| {
        let module = meta.name.strip_suffix(PLANES[0]).filter(|_| is_words(meta));
        module.is_some_and(|module| stored.find(&format!("{module}{}", PLANES[1])).is_some())
    })
}

/// Whether a tensor can be packed codes.
fn is_words(meta: &TensorMeta) -> bool {
    matches!(meta.dtype, Dtype::Other { name: "U32", .. })
}

/// A module with scales.
struct Module<'a> {
    config: &'a Path,
    module: &'a str,
    words: &'a TensorMeta,
    scales: &'a TensorMeta,
}

impl Module<'_> {
    fn malformed(&self, reason: String) -> Error {
        Error::Malformed { path: self.config.to_owned(), reason }
    }

    /// The module's weight as one tensor.
    fn whole(&self, quantization: &Map<String, Value>, biases: Option<&TensorMeta>) -> Result<TensorMeta> {
        let (mode, bits, group) = self.mode(quantization)?;
        let format = self.format(mode, bits, group, biases)?;
        let (words, scales) = (self.words, self.scales);
        let columns = scales.columns().checked_mul(group);
        let outer = |meta: &TensorMeta| meta.shape.split_last().map(|(_, outer)| outer.to_vec());
        if columns.and_then(|n| n.checked_mul(bits)) != words.columns().checked_mul(32)
            || outer(words) != outer(scales)
        {
            return Err(self.malformed(format!(
                "{bits} bits in groups of {group} contradict the shapes of {} {:?} and its scales {:?}",
                words.name, words.shape, scales.shape
            )));
        }
        if let Some(biases) = biases.filter(|biases| biases.shape != scales.shape) {
            return Err(self.malformed(format!(
                "{} has the shape {:?}, its scales {:?}",
                biases.name, biases.shape, scales.shape
            )));
        }
        let mut shape = words.shape.clone();
        if let (Some(last), Some(columns)) = (shape.last_mut(), columns) {
            *last = columns;
        }
        let len = [words.len, scales.len, biases.map_or(0, |biases| biases.len)];
        let len = len.into_iter().try_fold(0u64, u64::checked_add);
        let len = len.ok_or_else(|| self.malformed(format!("{} is impossibly large", words.name)))?;
        Ok(TensorMeta { dtype: Dtype::Block(format), shape, len, ..words.clone() })
    }

    /// What `config.json` says about the module, its own entry before the folder's default: mode, bits and group size.
    fn mode<'q>(&self, quantization: &'q Map<String, Value>) -> Result<(&'q str, u64, u64)> {
        let own = match quantization.get(self.module) {
            Some(Value::Object(own)) => own,
            Some(Value::Bool(false)) => {
                let reason =
                    format!("says that {} is not quantized, but the folder has its scales", self.module);
                return Err(self.malformed(reason));
            }
            _ => quantization,
        };
        let number = |key: &str| {
            own.get(key).and_then(Value::as_u64).filter(|n| (1..=1024).contains(n)).ok_or_else(|| {
                self.malformed(format!("the quantization of {} states no possible {key}", self.module))
            })
        };
        let mode = own.get("mode").and_then(Value::as_str).unwrap_or("affine");
        Ok((mode, number("bits")?, number("group_size")?))
    }

    /// The format of that mode, if the tensors are of the types that it has.
    fn format(
        &self,
        mode: &str,
        bits: u64,
        group: u64,
        biases: Option<&TensorMeta>,
    ) -> Result<&'static Format> {
        let described =
            || format!("the quantization of {}: {mode}, {bits} bits in groups of {group}", self.module);
        let types = || {
            let found = [Some(self.words), Some(self.scales), biases];
            let found: Vec<_> =
                found.iter().flatten().map(|meta| format!("{} {}", meta.name, meta.dtype)).collect();
            self.malformed(format!("{}, can't have {}", described(), found.join(", ")))
        };
        let unknown = || self.malformed(format!("{}, is none of MLX's", described()));
        if !is_words(self.words) {
            return Err(types());
        }
        if mode != "affine" {
            let format = table::mlx(mode).filter(|format| format.planes.len() == 2).ok_or_else(unknown)?;
            if (format.block as u64, format.planes[0] as u64 * 8) != (group, group * bits) {
                return Err(unknown());
            }
            let bytes = matches!(self.scales.dtype, Dtype::Other { name: "U8", .. });
            return if bytes && biases.is_none() { Ok(format) } else { Err(types()) };
        }
        let (Dtype::Block(float), Some(biases)) = (self.scales.dtype, biases) else { return Err(types()) };
        if biases.dtype != self.scales.dtype || mlx_affine::affine(4, 64, float).is_none() {
            return Err(types());
        }
        mlx_affine::affine(bits as u32, group as usize, float).ok_or_else(unknown)
    }
}

//! Folders of compressed-tensors as a source: `X.weight_packed` and `X.weight_scale` of a quantized linear are one tensor `X.weight`,
//! whose bytes are those of the two. ([`compressed_tensors`](crate::compressed_tensors) says what they are, and writes such folders.)
//!
//! Read is `pack-quantized` of symmetric four bits in groups, as llm-compressor and this project write it. What config.json says is
//! held to that; the size of a module's groups follows from its tensors' shapes.

use std::path::Path;

use kernels::w4a16::w4a16;
use serde_json::{Map, Value};

use crate::compressed_tensors::{PACKED, SCALE, SHAPE, WEIGHT};
use crate::error::{Error, Result};
use crate::joined::Joined;
use crate::safetensors::Safetensors;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// The ends of names that only schemes have which aren't read, and what these are.
const OTHERS: [(&str, &str); 4] = [
    (".weight_zero_point", "zero points (asymmetric quantization)"),
    (".weight_g_idx", "columns out of order (actorder)"),
    (".weight_global_scale", "a scale of scales (NVFP4)"),
    (".input_global_scale", "quantized activations (NVFP4)"),
];

/// Whether a tensor has the name of packed codes.
pub(crate) fn has_packed(stored: &Safetensors) -> bool {
    stored.tensors().iter().any(|meta| meta.name.ends_with(PACKED))
}

/// What the text of `config`, a `config.json`, says about compressed-tensors, if anything.
pub(crate) fn quantization(config: &Path, text: &str) -> Result<Option<Map<String, Value>>> {
    let keys: Map<String, Value> = serde_json::from_str(text)
        .map_err(|e| Error::Malformed { path: config.to_owned(), reason: format!("no JSON object: {e}") })?;
    let key = "quantization_config";
    // Of a model that also sees, the language model's.
    let found = keys.get(key).or_else(|| keys.get("text_config")?.get(key));
    let is_ours = |q: &&Map<String, Value>| q.get("quant_method").is_some_and(|m| m == "compressed-tensors");
    Ok(found.and_then(Value::as_object).filter(is_ours).cloned())
}

/// Makes one tensor of the codes and the scales of every quantized linear. `quantization` is what `config` (`config.json`) says under
/// `quantization_config`.
///
/// # Errors
/// [`Error::Malformed`] if a scheme is none that is read, or tensors contradict each other or are missing.
pub fn join(config: &Path, stored: Safetensors, quantization: &Map<String, Value>) -> Result<Joined> {
    check(config, quantization)?;
    let (mut joined, mut shapes) = (Vec::new(), Vec::new());
    for (id, meta) in stored.tensors().iter().enumerate() {
        if let Some((_, what)) = OTHERS.iter().find(|(end, _)| meta.name.ends_with(end)) {
            return Err(malformed(
                &stored,
                meta,
                &format!(
                    "{} means {what}, which is not supported: give the full-precision checkpoint",
                    meta.name
                ),
            ));
        }
        let name = meta.name.as_str();
        let has_codes = |module: &&str| stored.find(&format!("{module}{PACKED}")).is_some();
        if name.strip_suffix(SCALE).filter(has_codes).is_some() {
            continue;
        }
        if let Some(module) = name.strip_suffix(SHAPE).filter(has_codes) {
            if meta.shape != [2] || !matches!(meta.dtype, Dtype::Other { name: "I64" | "I32", .. }) {
                let reason = format!("{name} is {} {:?}, not two integers, I64 [2]", meta.dtype, meta.shape);
                return Err(malformed(&stored, meta, &reason));
            }
            shapes.push((format!("{module}{WEIGHT}"), TensorId(id)));
            continue;
        }
        joined.push(match name.strip_suffix(PACKED) {
            Some(module) => linear(&stored, TensorId(id), module)?,
            None => (meta.clone(), vec![TensorId(id)]),
        });
    }
    Ok(Joined::new(stored, joined, false).with_shapes(shapes))
}

fn malformed(stored: &Safetensors, meta: &TensorMeta, reason: &str) -> Error {
    Error::Malformed { path: stored.files()[meta.file].path.clone(), reason: reason.to_owned() }
}

/// A quantized linear's weight and its planes.
fn linear(stored: &Safetensors, codes: TensorId, module: &str) -> Result<(TensorMeta, Vec<TensorId>)> {
    let packed = stored.meta(codes);
    let wrong = |reason: String| malformed(stored, packed, &reason);
    let Some(scales) = stored.find(&format!("{module}{SCALE}")) else {
        return Err(wrong(format!("there is {}, but no {module}{SCALE}: fetch all shards", packed.name)));
    };
    let scale = stored.meta(scales);
    let contradiction = |what: &str| {
        wrong(format!(
            "{} {} {:?} and {} {} {:?} {what}",
            packed.name, packed.dtype, packed.shape, scale.name, scale.dtype, scale.shape
        ))
    };
    let (&[rows, words], &[scale_rows, groups]) = (&packed.shape[..], &scale.shape[..]) else {
        return Err(contradiction("are no matrices"));
    };
    if !matches!(packed.dtype, Dtype::Other { name: "I32", .. }) {
        return Err(contradiction("are no codes in I32 with scales"));
    }
    let columns = words.checked_mul(8).filter(|_| scale_rows == rows);
    let Some(columns) = columns.filter(|columns| groups > 0 && columns.is_multiple_of(groups)) else {
        return Err(contradiction(
            "don't belong together: eight codes are a word, and rows are whole groups",
        ));
    };
    let Dtype::Block(float) = scale.dtype else {
        return Err(contradiction("have scales that are neither BF16 nor F16 nor F32"));
    };
    let format = w4a16(columns / groups, float).ok_or_else(|| {
        contradiction(&format!("make groups of {}: read are 32, 64 and 128", columns / groups))
    })?;
    let shape = vec![rows, columns];
    let len = packed.len.checked_add(scale.len);
    let len = len.ok_or_else(|| wrong(format!("{} is impossibly large", packed.name)))?;
    let name = format!("{module}{WEIGHT}");
    if stored.find(&name).is_some() {
        return Err(wrong(format!("there is {name} beside {}", packed.name)));
    }
    Ok((TensorMeta { name, dtype: Dtype::Block(format), shape, len, ..packed.clone() }, vec![codes, scales]))
}

/// Holds config.json to the schemes that are read.
fn check(config: &Path, quantization: &Map<String, Value>) -> Result<()> {
    let refused = |reason: String| {
        let advice =
            "read is pack-quantized of 4 bits, symmetric, in groups; give the full-precision checkpoint";
        Error::Malformed { path: config.to_owned(), reason: format!("{reason}: {advice}") }
    };
    let format = quantization.get("format").and_then(Value::as_str).unwrap_or_default();
    if format != "pack-quantized" {
        return Err(refused(format!("quantization_config.format is `{format}`")));
    }
    let groups = quantization.get("config_groups").and_then(Value::as_object);
    for (name, group) in groups.into_iter().flatten() {
        let said = |key: &str| group.get("weights").and_then(|weights| weights.get(key));
        let wrong = |key: &str| {
            let value = said(key).unwrap_or(&Value::Null);
            Err(refused(format!("quantization_config.config_groups.{name}.weights.{key} is {value}")))
        };
        if said("num_bits").and_then(Value::as_u64) != Some(4) {
            return wrong("num_bits");
        }
        if said("type").is_some_and(|kind| kind != "int") {
            return wrong("type");
        }
        if said("symmetric").is_some_and(|symmetric| symmetric != true) {
            return wrong("symmetric");
        }
        if said("strategy").is_some_and(|strategy| strategy != "group") {
            return wrong("strategy");
        }
        // "weight" is an order that only its calibration went by.
        let orders = [Value::Null, false.into(), "weight".into(), "static".into()];
        if said("actorder").is_some_and(|order| !orders.contains(order)) {
            return wrong("actorder");
        }
        if group.get("input_activations").is_some_and(|inputs| !inputs.is_null()) {
            return Err(refused(format!("quantization_config.config_groups.{name} quantizes activations")));
        }
    }
    Ok(())
}

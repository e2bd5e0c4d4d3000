//! What a model on disk holds, read from headers alone: `halfbyte inspect`.
//!
//! A tensor here is a logical one: what a container spreads over several (MLX's `.weight`, `.scales` and `.biases`; an FP8
//! weight and its block scales) is counted together.

use std::collections::HashSet;

use kernels::w4a16_asym::{self, w4a16_asym};
use kernels::{Format, float, mlx_affine, w4a16};
use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::checkpoint::{Checkpoint, Weights};
use crate::error::Result;
use crate::gguf;
use crate::joined::Joined;
use crate::safetensors::Safetensors;
use crate::scales;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// A model on disk.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// `safetensors`, `mlx`, `compressed-tensors`, `gptq`, `awq` or `gguf`.
    pub container: &'static str,
    /// Files with weights.
    pub files: Vec<File>,
    /// GGUF's keys; the free strings of safetensors headers.
    pub metadata: Map<String, Value>,
    /// In the order of the files.
    pub tensors: Vec<Tensor>,
}

/// A file with weights.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A logical tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tensor {
    /// Its name; of a quantized MLX module, with `.weight`.
    pub name: String,
    /// How it is stored, by the name that its container's users know.
    pub format: String,
    /// Row-major, outermost dimension first, in weights.
    pub shape: Vec<u64>,
    /// Bytes in all, scales included.
    pub bytes: u64,
    /// Bits per weight, scales included (0 for an empty tensor).
    pub bits_per_weight: f64,
}

/// All tensors of one format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Total {
    /// The format.
    pub format: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of weights.
    pub weights: u64,
    /// Bytes, scales included.
    pub bytes: u64,
}

impl Tensor {
    fn new(name: &str, format: String, shape: Vec<u64>, bytes: u64) -> Tensor {
        let weights = shape.iter().product::<u64>();
        let bits_per_weight = if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 };
        Tensor { name: name.to_owned(), format, shape, bytes, bits_per_weight }
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.shape.iter().product()
    }
}

impl Summary {
    /// Number of weights in all.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(Tensor::weights).fold(0, u64::saturating_add)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).fold(0, u64::saturating_add)
    }

    /// The tensors by format, those with most bytes first.
    pub fn totals(&self) -> Vec<Total> {
        let mut totals: Vec<Total> = Vec::new();
        for tensor in &self.tensors {
            let (weights, bytes) = (tensor.weights(), tensor.bytes);
            match totals.iter_mut().find(|total| total.format == tensor.format) {
                Some(total) => {
                    total.tensors += 1;
                    total.weights = total.weights.saturating_add(weights);
                    total.bytes = total.bytes.saturating_add(bytes);
                }
                None => totals.push(Total { format: tensor.format.clone(), tensors: 1, weights, bytes }),
            }
        }
        totals.sort_by_key(|total| std::cmp::Reverse(total.bytes));
        totals
    }
}

/// Summarizes an opened model.
///
/// # Errors
/// If `config.json` can't be read, or contradicts the shapes of a quantized MLX folder.
pub fn summarize(checkpoint: &Checkpoint) -> Result<Summary> {
    let source = checkpoint.source();
    let files = source.files().iter().map(|file| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        File { name, bytes: file.len }
    });
    let files = files.collect();
    match &checkpoint.weights {
        Weights::Gguf(gguf) => Ok(Summary {
            container: "gguf",
            files,
            metadata: gguf.metadata().iter().map(|(key, value)| (key.to_owned(), json(value))).collect(),
            tensors: source.tensors().iter().map(plain).collect(),
        }),
        Weights::Safetensors(stored) => {
            let tensors = logical(stored, |id| plain(stored.meta(id)));
            Ok(Summary { container: "safetensors", files, metadata: strings(stored), tensors })
        }
        Weights::Mlx(folder) | Weights::Packed(folder) => Ok(Summary {
            container: folder.convention().name(),
            files,
            metadata: strings(folder.stored()),
            tensors: logical(folder, |id| joined(folder, id)),
        }),
    }
}

fn strings(stored: &Safetensors) -> Map<String, Value> {
    stored.metadata().iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect()
}

/// A tensor of a folder whose tensors are stored in several.
fn joined(folder: &Joined, id: TensorId) -> Tensor {
    let meta = folder.meta(id);
    let format = match (folder.decoded_from(id), meta.dtype) {
        (Some((name, _)), _) => name.to_owned(),
        (None, Dtype::Block(format)) => without_scales(format).to_string(),
        (None, other) => other.to_string(),
    };
    Tensor::new(&meta.name, format, meta.shape.clone(), folder.stored_bytes(id))
}

/// A format's name. The type of its scales is the model's own and nothing of interest.
fn without_scales(format: &'static Format) -> &'static str {
    let format = w4a16::with_scales(mlx_affine::with_scales(format, &float::BF16), &float::BF16);
    let asymmetric = w4a16_asym::scales_of(format);
    asymmetric.and_then(|_| w4a16_asym(format.block as u64, &float::BF16)).unwrap_or(format).name
}

fn plain(meta: &TensorMeta) -> Tensor {
    Tensor::new(&meta.name, meta.dtype.to_string(), meta.shape.clone(), meta.len)
}

/// A source's tensors, a weight in FP8 and its scales as one.
fn logical(source: &dyn TensorSource, of: impl Fn(TensorId) -> Tensor) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut parts = HashSet::new();
    for (id, meta) in source.tensors().iter().enumerate() {
        let mut tensor = of(TensorId(id));
        if meta.dtype == Dtype::F8E4M3
            && let Some(scales) = scales::scale_of(source, &meta.name)
        {
            let scales = source.meta(scales);
            parts.insert(scales.name.as_str());
            let bytes = meta.len.saturating_add(scales.len);
            tensor = Tensor::new(&meta.name, tensor.format, tensor.shape, bytes);
        }
        tensors.push((meta, tensor));
    }
    let whole = tensors.into_iter().filter(|(meta, _)| !parts.contains(meta.name.as_str()));
    whole.map(|(_, tensor)| tensor).collect()
}

/// A value as JSON. A float that JSON can't hold is null.
fn json(value: &gguf::Value) -> Value {
    use gguf::Value as V;
    match value {
        V::U8(v) => (*v).into(),
        V::I8(v) => (*v).into(),
        V::U16(v) => (*v).into(),
        V::I16(v) => (*v).into(),
        V::U32(v) => (*v).into(),
        V::I32(v) => (*v).into(),
        V::F32(v) => shortest(*v),
        V::Bool(v) => (*v).into(),
        V::String(v) => v.as_str().into(),
        V::Array(array) => json_array(array),
        V::U64(v) => (*v).into(),
        V::I64(v) => (*v).into(),
        V::F64(v) => (*v).into(),
    }
}

fn json_array(array: &gguf::Array) -> Value {
    use gguf::Array as A;
    match array {
        A::U8(v) => v.as_slice().into(),
        A::I8(v) => v.as_slice().into(),
        A::U16(v) => v.as_slice().into(),
        A::I16(v) => v.as_slice().into(),
        A::U32(v) => v.as_slice().into(),
        A::I32(v) => v.as_slice().into(),
        A::F32(v) => v.iter().map(|v| shortest(*v)).collect(),
        A::Bool(v) => v.as_slice().into(),
        A::String(v) => v.as_slice().into(),
        A::U64(v) => v.as_slice().into(),
        A::I64(v) => v.as_slice().into(),
        A::F64(v) => v.as_slice().into(),
    }
}

/// The shortest decimal that is this float: 0.1 stays 0.1, which as a double would be 0.10000000149011612.
fn shortest(value: f32) -> Value {
    let double = value.to_string().parse().ok();
    double.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

//! Folders of safetensors under the checkpoint's own names in which each quantized linear is several tensors: what
//! [`compressed_tensors`](crate::compressed_tensors), [`gptq`](crate::gptq) and [`awq`](crate::awq) have in common as an output.

use std::path::Path;

use kernels::{Format, float, table, w4a16, w4a16_asym};
use serde_json::{Map, Value};

use crate::arrangement::{Arrangement, Order};
use crate::error::{Error, Result};
use crate::folder::{self, Content, Options, Stored, float_name};
use crate::layout::{Fill, Layout};
use crate::safetensors::INDEX_NAME;

/// The most bytes of tensors in a shard: what transformers has long cut models at.
pub const SHARD_SIZE: u64 = 5_000_000_000;

/// The end of the name of a linear's weight.
pub(crate) const WEIGHT: &str = ".weight";

/// The head's module. Where it is the embedding there is no tensor of it, but a module, which must not be taken for a quantized one.
pub(crate) const HEAD: &str = "lm_head";

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
    /// A scheme of the packing, or a float.
    pub format: &'static Format,
}

impl<'a> Tensor<'a> {
    /// The linear's path.
    fn module(&self) -> Option<&'a str> {
        self.name.strip_suffix(WEIGHT).filter(|_| self.linear)
    }
}

/// A way of storing quantized linears, and of saying so.
#[derive(Debug)]
pub struct Packing {
    /// What people call it.
    pub name: &'static str,
    /// What its folders can hold.
    pub formats: &'static [&'static Format],
    /// The type of all scales; the model's own if absent.
    pub scales: Option<&'static Format>,
    /// What the number of a linear's rows is a multiple of.
    pub rows: u64,
    /// Whether all quantized linears have the same format.
    pub uniform: bool,
    /// The tensors that a quantized linear is; `None` if it can't be.
    pub(crate) parts: fn(&Linear) -> Option<Vec<Part>>,
    /// `quantization_config`.
    pub(crate) quantization: fn(&Modules<'_>) -> Value,
}

/// A quantized linear.
pub(crate) struct Linear {
    pub rows: u64,
    pub columns: u64,
    pub format: &'static Format,
}

impl Linear {
    /// Scales, or zero points, of a row.
    pub fn groups(&self) -> u64 {
        self.columns / self.format.block as u64
    }

    /// The name of the type of integer formats' scales.
    pub fn scales(&self) -> Option<&'static str> {
        scales_of(self.format).and_then(float_name)
    }
}

/// The float format of an integer format's scales.
fn scales_of(format: &Format) -> Option<&'static Format> {
    w4a16::scales_of(format).or_else(|| w4a16_asym::scales_of(format))
}

/// A tensor that a linear is made of.
pub(crate) struct Part {
    /// What comes behind the module's path.
    pub end: &'static str,
    /// safetensors' name of its elements' type.
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub holds: Holds,
}

/// What is in it.
pub(crate) enum Holds {
    /// A plane of the format.
    Plane(usize),
    /// One whose rows, of so many values, lie apart.
    Arranged(usize, Order, u64),
    /// Many bytes that are known beforehand.
    Known(Fill),
    /// Few of them.
    Bytes(Vec<u8>),
}

impl Part {
    pub fn new(end: &'static str, dtype: &'static str, shape: &[u64], holds: Holds) -> Part {
        Part { end, dtype, shape: shape.to_vec(), holds }
    }

    /// Its bytes; `None` if it is too large for all tensors' sum to be counted.
    fn len(&self) -> Option<u64> {
        let bytes: u64 = match self.dtype {
            "I64" => 8,
            "I32" | "F32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        self.shape.iter().try_fold(bytes, |len, n| len.checked_mul(*n)).filter(|len| *len < u64::MAX >> 16)
    }
}

/// A model's linears.
pub(crate) struct Modules<'a> {
    pub quantized: Vec<(&'a str, &'static Format)>,
    pub left: Vec<&'a str>,
}

impl<'a> Modules<'a> {
    fn of(tensors: &[Tensor<'a>]) -> Modules<'a> {
        let mut modules = Modules { quantized: Vec::new(), left: Vec::new() };
        for tensor in tensors {
            match tensor.module() {
                Some(module) if tensor.format.block > 1 => modules.quantized.push((module, tensor.format)),
                Some(module) => modules.left.push(module),
                None => {}
            }
        }
        modules
    }

    /// Those that aren't quantized, the head among them.
    pub fn left_with_head(&self) -> Vec<&'a str> {
        let has_head = self.left.iter().any(|module| module.ends_with(HEAD));
        self.left.iter().copied().chain((!has_head).then_some(HEAD)).collect()
    }
}

impl Packing {
    /// Lays out the shards and their index, which is the last file. The caller adds `config.json` (see [`config`](Self::config)) and
    /// the tokenizer.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`], [`Error::BadShape`], [`Error::RaggedRow`], and [`Error::NotInContainer`] for a format that
    /// the packing has not, or not for such a tensor, or not beside the others.
    pub fn layout(&self, tensors: &[Tensor<'_>], options: &Options<'_>) -> Result<Layout> {
        let mut quantized = tensors.iter().filter(|tensor| tensor.format.block > 1);
        if let Some(first) = quantized.next().filter(|_| self.uniform)
            && let Some(other) = quantized.find(|tensor| tensor.format != first.format)
        {
            let container = format!("{}, where {} is {},", self.name, first.name, first.format.name);
            let (tensor, format) = (other.name.to_owned(), other.format.name);
            return Err(Error::NotInContainer { tensor, format, container });
        }
        let mut stored = Vec::new();
        for (i, tensor) in tensors.iter().enumerate() {
            stored.extend(self.stored_as(tensor, i)?);
        }
        let parameters = tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum();
        let planes = tensors.iter().map(|tensor| tensor.format.planes.len());
        folder::layout(stored, planes, parameters, "pt", options)
    }

    /// Bytes of a tensor in the files, without what stands beside the header.
    ///
    /// # Errors
    /// As [`layout`](Self::layout).
    pub fn tensor_bytes(&self, tensor: &Tensor<'_>) -> Result<u64> {
        let stored = self.stored_as(tensor, 0)?;
        let beside = |stored: &&Stored| !matches!(stored.content, Content::Bytes(_));
        Ok(stored.iter().filter(beside).map(|stored| stored.len).sum())
    }

    /// What a tensor is in the files.
    fn stored_as(&self, tensor: &Tensor<'_>, index: usize) -> Result<Vec<Stored>> {
        let &Tensor { name, layer, shape, format, .. } = tensor;
        let refused = || {
            let container = format!("{}, or not for this tensor,", self.name);
            Error::NotInContainer { tensor: name.to_owned(), format: format.name, container }
        };
        let bad_shape =
            || Error::BadShape { path: INDEX_NAME.into(), tensor: name.to_owned(), shape: shape.to_vec() };
        if !self.formats.contains(&format) {
            return Err(refused());
        }
        let mut rows = 0;
        let (module, parts) = if let Some(dtype) = float_name(format) {
            (name, vec![Part::new("", dtype, shape, Holds::Plane(0))])
        } else {
            let (Some(module), &[n, columns]) = (tensor.module(), shape) else { return Err(refused()) };
            if !format.holds_row(columns) {
                let (path, tensor) = (INDEX_NAME.into(), name.to_owned());
                return Err(Error::RaggedRow {
                    path,
                    tensor,
                    columns,
                    format: format.name,
                    block: format.block,
                });
            }
            if !n.is_multiple_of(self.rows) {
                return Err(bad_shape());
            }
            rows = n;
            (module, (self.parts)(&Linear { rows, columns, format }).ok_or_else(refused)?)
        };
        let stored = parts.into_iter().map(|part| {
            let len = part.len().ok_or_else(bad_shape)?;
            let content = match part.holds {
                Holds::Plane(plane) => Content::Plane(index, plane),
                Holds::Arranged(plane, order, columns) => {
                    Content::Arranged(index, plane, Arrangement { order, rows, columns })
                }
                Holds::Known(fill) => Content::Known(index, fill),
                Holds::Bytes(bytes) => Content::Bytes(bytes),
            };
            let name = format!("{module}{}", part.end);
            Ok(Stored { name, dtype: part.dtype, shape: part.shape, layer, len, content })
        });
        stored.collect()
    }

    /// The `config.json` of the folder: the source's, with what consumers need to know about the quantized linears in the place of
    /// what the source said about its own quantization. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Malformed`] if `source` is no JSON object.
    pub fn config(&self, path: &Path, source: &str, tensors: &[Tensor<'_>]) -> Result<String> {
        let mut config: Map<String, Value> = serde_json::from_str(source).map_err(|e| Error::Malformed {
            path: path.to_owned(),
            reason: format!("no JSON object: {e}"),
        })?;
        config.remove("quantization_config");
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            text.remove("quantization_config");
        }
        let modules = Modules::of(tensors);
        if !modules.quantized.is_empty() {
            config.insert("quantization_config".to_owned(), (self.quantization)(&modules));
        }
        Ok(format!("{:#}\n", Value::from(config)))
    }

    /// Formats as users name them: one whose scales are in BF16 stands for that with scales as they are held.
    pub fn named(&self) -> Vec<&'static Format> {
        let holds = |format: &&'static Format| self.formats.contains(&self.scaled(format, &float::BF16));
        let is_short = |format: &Format| scales_of(format).is_none_or(|scales| *scales == float::BF16);
        let all = table::COMPRESSED_TENSORS.iter().copied();
        all.filter(|format| self.formats.contains(format) || is_short(format) && holds(format)).collect()
    }

    /// Bits per weight of a large matrix in the files.
    pub fn bits_per_weight(&self, format: &'static Format) -> f64 {
        // Large, and a multiple of all groups.
        let shape = &[1 << 16, 1 << 16];
        let bytes = self.tensor_bytes(&Tensor { name: WEIGHT, linear: true, layer: None, shape, format });
        bytes.map_or(0.0, |bytes| bytes as f64 * 8.0 / shape.iter().product::<u64>() as f64)
    }

    /// A format as this packing holds it: with scales of its own type, or of `full` unless its name says another.
    pub fn scaled(&self, format: &'static Format, full: &'static Format) -> &'static Format {
        match self.scales {
            None if scales_of(format) != Some(&float::BF16) => format,
            scales => {
                let scales = scales.unwrap_or(full);
                w4a16_asym::with_scales(w4a16::with_scales(format, scales), scales)
            }
        }
    }
}

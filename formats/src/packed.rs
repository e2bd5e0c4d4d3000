//! Whose quantization a folder with Hugging Face's names has: what `config.json` says under `quantization_config`, and which reader
//! that means.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::joined::Joined;
use crate::safetensors::Safetensors;
use crate::tensor::TensorSource;
use crate::{awq_folder, compressed_folder, gptq_folder};

/// Ends of names that only quantized linears' tensors have.
const ENDS: [&str; 3] = [".weight_packed", ".weight_scale", ".qweight"];

/// Values of `quant_method` whose folders are read, as are folders without any. The first ones' need no reader of their own: their
/// tensors are weights in FP8 with scales, or what a family knows.
pub(crate) const METHODS: [&str; 9] = [
    "fp8",
    "fbgemm_fp8",
    "modelopt",
    "mxfp4",
    "compressed-tensors",
    "gptq",
    "awq",
    "auto-round",
    "intel/auto-round",
];

/// Whether a tensor has the name of quantized weights, so that what config.json says matters.
pub(crate) fn has_packed(stored: &Safetensors) -> bool {
    stored.tensors().iter().any(|meta| ENDS.iter().any(|end| meta.name.ends_with(end)))
}

/// Makes one tensor of the tensors of each quantized linear.
///
/// # Errors
/// [`Error::Malformed`] if the quantization is none that is read, or tensors contradict it or each other, or are missing.
pub type Reader = fn(&Quantization, Safetensors) -> Result<Joined>;

/// A folder's quantization.
#[derive(Debug)]
pub struct Quantization {
    config: PathBuf,
    keys: Map<String, Value>,
}

impl Quantization {
    /// What the text of `config`, a `config.json`, says, if anything.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no JSON object.
    pub fn of(config: &Path, text: &str) -> Result<Option<Quantization>> {
        let mut root: Map<String, Value> = serde_json::from_str(text).map_err(|e| Error::Malformed {
            path: config.to_owned(),
            reason: format!("no JSON object: {e}"),
        })?;
        let key = "quantization_config";
        // Of a model that also sees, the language model's.
        let found = root.remove(key).or_else(|| root.get_mut("text_config")?.get_mut(key).map(Value::take));
        let Some(Value::Object(keys)) = found else { return Ok(None) };
        Ok(Some(Quantization { config: config.to_owned(), keys }))
    }

    /// Its reader; `None` if it needs none of its own.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a form that is not read.
    pub fn reader(&self) -> Result<Option<Reader>> {
        Ok(match self.text("quant_method")? {
            Some("compressed-tensors") => Some(compressed_folder::join),
            Some("gptq") => Some(gptq_folder::join),
            Some("awq") => Some(awq_folder::join),
            Some("auto-round" | "intel/auto-round") => Some(self.of_autoround()?),
            Some("modelopt") if self.text("quant_algo")?.is_some_and(|algorithm| algorithm != "FP8") => {
                return Err(self.refused("quant_algo", "read is `FP8`"));
            }
            _ => None,
        })
    }

    /// In which of the others' forms AutoRound wrote (auto-round: `inference/backend.py`).
    fn of_autoround(&self) -> Result<Reader> {
        match self.text("packing_format")?.unwrap_or_default() {
            "auto_round:auto_gptq" | "auto_round:gptq" | "auto_round:gptqmodel" | "auto_round" => {
                Ok(gptq_folder::join)
            }
            "auto_round:auto_awq" | "auto_round:awq" => Ok(awq_folder::join),
            "auto_round:llm_compressor" => Ok(compressed_folder::join),
            _ => Err(self.refused(
                "packing_format",
                "read are `auto_round`, and of it `auto_gptq`, `gptqmodel`, `auto_awq` and `llm_compressor`",
            )),
        }
    }

    /// What is said under a key, `null` being nothing.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.refused(key, "read is a text"))
    }

    /// Holds the weights to be in four bits.
    pub(crate) fn check_bits(&self) -> Result<()> {
        match self.get("bits").and_then(Value::as_u64) {
            Some(4) => Ok(()),
            _ => Err(self.refused("bits", "read are 4")),
        }
    }

    /// Holds a module's groups of so many columns (all of them if they are one group) to what is said about all modules. Where modules
    /// may differ, tensors decide.
    pub(crate) fn check_group(&self, group: u64, is_one: bool) -> Result<(), String> {
        let may_differ = self.get("dynamic").or(self.get("extra_config")).is_some();
        match self.get("group_size").and_then(Value::as_i64) {
            Some(-1) if is_one => Ok(()),
            Some(said) if !may_differ && u64::try_from(said) != Ok(group) => {
                Err(format!("make groups of {group}, but config.json says group_size {said}"))
            }
            _ => Ok(()),
        }
    }

    /// An error about `config.json`.
    pub(crate) fn malformed(&self, reason: String) -> Error {
        Error::Malformed { path: self.config.clone(), reason }
    }

    /// An error about what is said under a key, and what would be read.
    pub(crate) fn refused(&self, key: &str, read: &str) -> Error {
        let said = self.get(key).map_or("missing".to_owned(), Value::to_string);
        self.malformed(format!(
            "quantization_config.{key} is {said}: {read}; or give the full-precision checkpoint"
        ))
    }
}

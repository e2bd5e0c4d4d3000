//! The families of models: how the tensors of a Hugging Face checkpoint become those of a GGUF file or an MLX folder, and
//! which hyper-parameters a GGUF file states. One file per family; the table is [`FAMILIES`].
//!
//! GGUF names and metadata are those that llama.cpp's converter writes for the architecture (`conversion/*.py`,
//! `gguf-py/gguf/constants.py`); MLX names are those that mlx-lm's models leave after `sanitize` (`mlx_lm/models/*.py`).

mod builder;
mod common;
mod deepseek_v3;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod gguf;
mod glm4_moe;
mod glm_moe_dsa;
mod gpt_oss;
mod llama;
mod minimax_m2;
mod mistral;
mod mistral4;
mod mixtral;
mod mixture;
mod mla;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod smollm3;
mod stored;
mod windows;

use builder::Builder;
pub use gguf::gguf_tensors;
pub use stored::as_stored;

use crate::config::{ModelConfig, SourceQuantization};
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value};
use crate::output::OutputTensor;
use crate::packed;
use crate::tensor::TensorSource;

/// The container whose names and shapes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One GGUF file (or its splits), for llama.cpp.
    Gguf,
    /// A folder of safetensors, for mlx-lm.
    Mlx,
}

/// What a model type's file says about it.
struct Family {
    /// `model_type` of its `config.json`.
    model_type: &'static str,
    /// `general.architecture` of its GGUF files.
    arch: &'static str,
    /// Lists the tensors, layer by layer.
    tensors: fn(&mut Builder) -> Result<()>,
    /// States the hyper-parameters.
    metadata: fn(&ModelConfig, &mut Keys) -> Result<()>,
}

static FAMILIES: &[Family] = &[
    deepseek_v3::DEEPSEEK_V3,
    gemma2::GEMMA2,
    gemma3::GEMMA3,
    gemma4::GEMMA4,
    glm4_moe::GLM4_MOE,
    glm_moe_dsa::GLM_MOE_DSA,
    gpt_oss::GPT_OSS,
    llama::LLAMA,
    minimax_m2::MINIMAX_M2,
    mistral::MISTRAL,
    mistral4::MISTRAL4,
    mixtral::MIXTRAL,
    olmo2::OLMO2,
    phi3::PHI3,
    qwen2::QWEN2,
    qwen3::QWEN3,
    qwen3_5::QWEN3_5,
    qwen3_5::QWEN3_5_TEXT,
    qwen3_5::QWEN3_5_MOE,
    qwen3_5::QWEN3_5_MOE_TEXT,
    qwen3_moe::QWEN3_MOE,
    smollm3::SMOLLM3,
];

/// The model types that can be converted.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

fn family(config: &ModelConfig) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == config.model_type).ok_or_else(|| {
        let known: Vec<_> = known().collect();
        config.error("model_type", format!("is `{}`; known are {}", config.model_type, known.join(", ")))
    })
}

/// The tensors of the converted model, in order of execution: embedding, blocks, final norm, head.
///
/// # Errors
/// If the family is unknown, a tensor is missing or contradicts the configuration, or the checkpoint holds weights that no
/// output would use.
pub fn plan(config: &ModelConfig, source: &dyn TensorSource, target: Target) -> Result<Vec<OutputTensor>> {
    let family = family(config)?;
    // An MLX folder's tensors say themselves how they are quantized.
    let foreign = |q: &&SourceQuantization| !packed::METHODS.contains(&q.method.as_str()) && !source.is_mlx();
    if let Some(quantization) = config.quantization.as_ref().filter(foreign) {
        let problem = format!(
            "is `{}`; read are {}; give one of these, or the full-precision checkpoint",
            quantization.method,
            packed::METHODS.join(", ")
        );
        return Err(config.error("quantization_config.quant_method", problem));
    }
    let mut builder = Builder::new(config, source, target);
    (family.tensors)(&mut builder)?;
    builder.finish()
}

/// `general.architecture` and the architecture's own keys.
///
/// # Errors
/// If the family is unknown or the configuration lacks what llama.cpp must know.
pub fn gguf_metadata(config: &ModelConfig) -> Result<Metadata> {
    let family = family(config)?;
    let mut keys = Keys { arch: family.arch, metadata: Metadata::new() };
    keys.metadata.set("general.architecture", family.arch);
    (family.metadata)(config, &mut keys)?;
    Ok(keys.metadata)
}

/// Metadata whose keys begin with the architecture's name.
struct Keys {
    arch: &'static str,
    metadata: Metadata,
}

impl Keys {
    fn count(&mut self, key: &str, value: u64) -> Result<()> {
        let name = format!("{}.{key}", self.arch);
        let value = u32::try_from(value).map_err(|_| Error::Value { key: name.clone(), value })?;
        self.metadata.set(name, value);
        Ok(())
    }

    /// One count for each layer.
    fn counts(&mut self, key: &str, values: impl Iterator<Item = u64>) -> Result<()> {
        let name = format!("{}.{key}", self.arch);
        let one = |value| u32::try_from(value).map_err(|_| Error::Value { key: name.clone(), value });
        let values: Vec<u32> = values.map(one).collect::<Result<_>>()?;
        self.metadata.set(name, values);
        Ok(())
    }

    /// One flag for each layer.
    fn flags(&mut self, key: &str, values: Vec<bool>) {
        self.metadata.set(format!("{}.{key}", self.arch), values);
    }

    fn number(&mut self, key: &str, value: f64) {
        self.metadata.set(format!("{}.{key}", self.arch), value as f32);
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.metadata.set(format!("{}.{key}", self.arch), value);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.set(key, value);
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.set(format!("{}.{key}", self.arch), value);
    }
}

#[cfg(test)]
mod tests;

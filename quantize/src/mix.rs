//! Mixes: which type each tensor gets.
//!
//! GGUF's mixes carry the names that users of llama.cpp know, and its published choices (`src/llama-quant.cpp`), with these
//! differences, all towards more precision where it is cheap:
//! - MLA's `attn_k_b` and `attn_v_b` are Q8_0 in every mix below 8 bits (0.15 % of DeepSeek-R1's weights, through which all of
//!   attention passes), and its latent's down-projection `attn_kv_a_mqa` gets what a plain model's `attn_v` gets;
//! - `mxfp4` and `nvfp4` keep embedding and head in Q8_0; `mxfp4_moe` puts experts, and only experts, into MXFP4.
//!
//! [`Overrides`] come before any rule.

use formats::gguf::Metadata;
use formats::output::{Class, OutputTensor};
use formats::{ModelConfig, config::FloatType};
use kernels::mlx_affine::{scales_of, with_scales};
use kernels::{Format, float, table};

use crate::error::{Choice, Error, Result};
use crate::overrides::{Overrides, writable};

/// A mix of GGUF types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// The name users type.
    pub name: &'static str,
    /// The type of tensors that no rule singles out.
    pub base: &'static str,
    /// llama.cpp's number for it (`general.file_type`, `enum llama_ftype`).
    pub file_type: u32,
    size: Size,
}

/// The suffix of a K-quant mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// One type for everything but the head.
    Plain,
    Small,
    Medium,
    Large,
    /// Experts only.
    Experts,
}

/// The mixes, in the order of their size.
pub static MIXES: &[Mix] = {
    const fn mix(name: &'static str, base: &'static str, file_type: u32, size: Size) -> Mix {
        Mix { name, base, file_type, size }
    }
    use Size::{Experts, Large, Medium, Plain, Small};
    &[
        mix("q2_k_s", "q2_k", 21, Small),
        mix("q2_k", "q2_k", 10, Medium),
        mix("q3_k_s", "q3_k", 11, Small),
        mix("q3_k_m", "q3_k", 12, Medium),
        mix("q3_k_l", "q3_k", 13, Large),
        mix("mxfp4", "mxfp4", 38, Plain),
        mix("mxfp4_moe", "mxfp4", 38, Experts),
        mix("nvfp4", "nvfp4", 39, Plain),
        mix("iq4_xs", "iq4_xs", 30, Plain),
        mix("iq4_nl", "iq4_nl", 25, Plain),
        mix("q4_0", "q4_0", 2, Plain),
        mix("q4_k_s", "q4_k", 14, Small),
        mix("q4_k_m", "q4_k", 15, Medium),
        mix("q4_1", "q4_1", 3, Plain),
        mix("q5_0", "q5_0", 8, Plain),
        mix("q5_k_s", "q5_k", 16, Small),
        mix("q5_k_m", "q5_k", 17, Medium),
        mix("q5_1", "q5_1", 9, Plain),
        mix("q6_k", "q6_k", 18, Plain),
        mix("q8_0", "q8_0", 7, Plain),
        mix("f16", "f16", 1, Plain),
        mix("bf16", "bf16", 32, Plain),
        mix("f32", "f32", 0, Plain),
    ]
};

impl Mix {
    /// The mix of that name (in any case); `q3_k`, `q4_k` and `q5_k` mean their middle size.
    ///
    /// # Errors
    /// If there is none: the message lists them.
    pub fn find(name: &str) -> Result<&'static Mix> {
        let name = name.to_ascii_lowercase();
        let full = if ["q3_k", "q4_k", "q5_k"].contains(&name.as_str()) { format!("{name}_m") } else { name };
        MIXES.iter().find(|mix| mix.name == full).ok_or_else(|| {
            let known: Vec<_> = MIXES.iter().map(|mix| mix.name).collect();
            format_error(format!("unknown GGUF format `{full}`; known are {}", known.join(", ")))
        })
    }

    fn is_float(&self) -> bool {
        ["f16", "bf16", "f32"].contains(&self.base)
    }

    fn is_fp4(&self) -> bool {
        ["mxfp4", "nvfp4"].contains(&self.base)
    }
}

/// What the rules must know of a model besides its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// Number of blocks.
    pub layers: u32,
    /// Routed experts per layer; 0 in a dense model.
    pub experts: u64,
    /// Query heads per key head.
    pub gqa: u64,
    /// Llama or Qwen 2 of 80 layers with grouped heads, whose `attn_v` is small (llama.cpp's `LLM_TYPE_70B`).
    pub is_70b: bool,
    /// Whether the encoders know the importance of columns.
    pub importance: bool,
    /// The type of a checkpoint's unquantized weights, where it states one.
    pub dtype: Option<FloatType>,
}

impl ModelFacts {
    /// Of a checkpoint.
    pub fn of_config(config: &ModelConfig) -> ModelFacts {
        let gqa = config.heads / config.kv_heads.max(1);
        ModelFacts {
            layers: config.layers,
            experts: config.moe.as_ref().map_or(0, |moe| moe.experts),
            gqa,
            is_70b: is_70b(&config.model_type, config.layers, gqa),
            importance: false,
            dtype: config.dtype,
        }
    }

    /// Of a GGUF file.
    pub fn of_metadata(metadata: &Metadata) -> ModelFacts {
        let arch = metadata.get("general.architecture").and_then(|value| value.as_str()).unwrap_or_default();
        let count = |key: &str| metadata.get(&format!("{arch}.{key}")).and_then(|value| value.as_u64());
        let layers = count("block_count").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let heads = count("attention.head_count").unwrap_or(1);
        let gqa = heads / count("attention.head_count_kv").unwrap_or(heads).max(1);
        let experts = count("expert_count").unwrap_or(0);
        ModelFacts { layers, experts, gqa, is_70b: is_70b(arch, layers, gqa), importance: false, dtype: None }
    }
}

fn is_70b(family: &str, layers: u32, gqa: u64) -> bool {
    match family {
        "llama" | "mistral" => layers == 80 && gqa > 1,
        "qwen2" => layers == 80,
        _ => false,
    }
}

/// A row that the wanted type can't hold, or a tensor kept out of quantization for its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// The type it was meant to have.
    pub wanted: &'static Format,
    /// The type it gets.
    pub got: &'static Format,
    /// Length of its rows, which `wanted`'s block doesn't divide unless `rows` is the reason.
    pub columns: u64,
    /// Their number and what it is no multiple of, if that is the reason.
    pub rows: Option<(u64, u64)>,
}

impl Fallback {
    /// Why it is not what was wanted.
    pub fn reason(&self) -> String {
        match self.rows {
            Some((rows, multiple)) => format!("its {rows} rows are no multiple of {multiple}"),
            None => format!("its rows of {} are no multiple of {}", self.columns, self.wanted.block),
        }
    }
}

/// The type of each tensor, and which of them fell back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// In the tensors' order.
    pub formats: Vec<&'static Format>,
    /// Those that didn't get what they were meant to have.
    pub fallbacks: Vec<Fallback>,
}

/// The GGUF type of each tensor.
///
/// # Errors
/// If an override finds no tensor, or a type isn't there.
pub fn choose(
    mix: &Mix,
    tensors: &[OutputTensor],
    facts: &ModelFacts,
    overrides: &Overrides,
) -> Result<Choices> {
    overrides.check_used(tensors)?;
    // llama.cpp counts fused tensors here, but not in the running number.
    let is_any_value = |tensor: &&OutputTensor| is_value(tensor.class) || tensor.class == Class::AttnQkv;
    let values = tensors.iter().filter(is_any_value).count();
    let tied = !tensors.iter().any(|tensor| tensor.class == Class::Output);
    let mut seen = 0;
    let mut choices = Choices::default();
    for tensor in tensors {
        let wanted = if !tensor.quantizable {
            "f32"
        } else if let Some(format) = overrides.of(tensor) {
            format.name
        } else {
            let rules = Rules { mix, facts, value: seen, values, tied };
            rules.choose(tensor)
        };
        if is_value(tensor.class) {
            seen += 1;
        }
        let (format, fallback) = fit(tensor, wanted)?;
        choices.formats.push(format);
        choices.fallbacks.extend(fallback);
    }
    Ok(choices)
}

/// llama.cpp's number for a file of these types (`general.file_type`): that of the one in which most weights are.
pub(crate) fn file_type(tensors: &[OutputTensor], formats: &[&'static Format]) -> u32 {
    let weights = |mix: &&Mix| -> u64 {
        let all = tensors.iter().zip(formats).filter(|(_, format)| format.name == mix.base);
        all.map(|(tensor, _)| tensor.elements()).sum()
    };
    MIXES.iter().max_by_key(weights).map_or(0, |mix| mix.file_type)
}

/// Whether a tensor makes attention's values alone, where damage shows most.
fn is_value(class: Class) -> bool {
    matches!(class, Class::AttnV | Class::AttnKvA)
}

/// One tensor's circumstances.
struct Rules<'a> {
    mix: &'a Mix,
    facts: &'a ModelFacts,
    /// Of the tensors that make attention's values, how many came before, and how many there are.
    value: usize,
    values: usize,
    /// The embedding is also the head.
    tied: bool,
}

impl Rules<'_> {
    fn choose(&self, tensor: &OutputTensor) -> &'static str {
        let Mix { base, .. } = *self.mix;
        if self.mix.is_float() || base == "q8_0" {
            return base;
        }
        match tensor.class {
            Class::AttnKB | Class::AttnVB => "q8_0",
            class if class.is_routed_expert() && self.mix.size == Size::Experts => base,
            _ if self.mix.size == Size::Experts => "q8_0",
            Class::Embedding | Class::Output if self.mix.is_fp4() => "q8_0",
            Class::Output => "q6_k",
            Class::Embedding if self.tied => "q6_k",
            Class::AttnQkv => self.fused(),
            class if is_value(class) => self.value(),
            Class::AttnK if self.facts.experts == 8 => "q8_0",
            Class::FfnDown | Class::SharedDown | Class::ExpertDown => self.down(tensor.layer.unwrap_or(0)),
            Class::AttnOutput => self.attention_output(),
            _ => base,
        }
    }

    fn value(&self) -> &'static str {
        let (base, gqa) = (self.mix.base, self.facts.gqa);
        let chosen = match (base, self.mix.size) {
            _ if self.facts.experts == 8 => return "q8_0",
            ("q2_k", Size::Medium) if gqa < 4 => "q3_k",
            ("q2_k", _) if gqa >= 4 => "q4_k",
            ("q3_k", Size::Medium) if self.value < 2 => "q5_k",
            ("q3_k", Size::Medium) => "q4_k",
            ("q3_k", Size::Large) => "q5_k",
            ("iq4_nl" | "iq4_xs", _) if gqa >= 4 => "q5_k",
            ("q4_k" | "q5_k", Size::Medium) if more_bits(self.value as u32, self.values as u32) => "q6_k",
            ("q4_k", Size::Small) if self.value < 4 => "q5_k",
            _ => base,
        };
        if self.facts.is_70b && ["q3_k", "q4_k"].contains(&chosen) { "q5_k" } else { chosen }
    }

    fn fused(&self) -> &'static str {
        match (self.mix.base, self.mix.size) {
            ("q3_k", Size::Medium | Size::Large) => "q4_k",
            ("q4_k", Size::Medium) => "q5_k",
            ("q5_k", Size::Medium) => "q6_k",
            (base, _) => base,
        }
    }

    fn down(&self, layer: u32) -> &'static str {
        let (base, layers) = (self.mix.base, self.facts.layers);
        let first_eighth = layer < layers / 8;
        match (base, self.mix.size) {
            ("q2_k", Size::Medium) => "q3_k",
            ("q2_k", Size::Small) if first_eighth => "q4_k",
            ("q3_k", Size::Medium) if layer < layers / 16 => "q5_k",
            ("q3_k", Size::Medium) => "q4_k",
            ("q3_k", Size::Large) => "q5_k",
            ("q4_k" | "q5_k", Size::Medium) if more_bits(layer, layers) => "q6_k",
            ("q4_k", Size::Small) if first_eighth => "q5_k",
            ("iq4_nl" | "iq4_xs", _) if first_eighth && !self.facts.importance => "q5_k",
            ("q4_0", _) if first_eighth && self.facts.importance => "q4_1",
            ("q5_0", _) if first_eighth && self.facts.importance => "q5_1",
            _ => base,
        }
    }

    fn attention_output(&self) -> &'static str {
        let (base, size) = (self.mix.base, self.mix.size);
        if self.facts.experts == 8 {
            let raised = matches!(
                (base, size),
                ("q2_k", Size::Medium)
                    | ("q3_k", Size::Small | Size::Medium)
                    | ("q4_k" | "iq4_nl" | "iq4_xs", _)
            );
            return if raised { "q5_k" } else { base };
        }
        match (base, size) {
            ("q2_k", Size::Medium) => "q3_k",
            ("q3_k", Size::Medium) => "q4_k",
            ("q3_k", Size::Large) => "q5_k",
            _ => base,
        }
    }
}

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: u32, layers: u32) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// What a type gives way to where its blocks don't divide a row: first a type of smaller blocks, in the end F16.
fn weaker(name: &str) -> &'static str {
    match name {
        "q2_k" | "q3_k" | "iq4_xs" | "nvfp4" => "iq4_nl",
        "q4_k" => "q5_0",
        "q5_k" => "q5_1",
        "q6_k" => "q8_0",
        _ => "f16",
    }
}

fn fit(tensor: &OutputTensor, wanted: &'static str) -> Result<(&'static Format, Option<Fallback>)> {
    let find = |name: &str| {
        table::gguf(name).ok_or_else(|| Error::Usage(format!("the type `{name}` isn't built in")))
    };
    let wanted = find(wanted)?;
    let mut got = wanted;
    while !got.holds_row(tensor.columns()) {
        got = find(weaker(got.name))?;
    }
    let fallback =
        Fallback { tensor: tensor.name.clone(), wanted, got, columns: tensor.columns(), rows: None };
    Ok((got, (got != wanted).then_some(fallback)))
}

pub(crate) fn format_error(detail: String) -> Error {
    Error::Choice { choice: Choice::Format, detail }
}

/// What a checkpoint's unquantized tensors are stored in: its own type, or BF16 where it states none.
pub(crate) fn full_precision(dtype: Option<FloatType>) -> &'static Format {
    match dtype {
        Some(FloatType::F32) => &float::F32,
        Some(FloatType::F16) => &float::F16,
        Some(FloatType::Bf16) | None => &float::BF16,
    }
}

/// An affine mode with its scales and biases in the type `full`, unless its name says another (`4bit-g64-f32`): MLX computes
/// in single precision as soon as two half-precision types meet.
fn scaled_in(full: &Format, mode: &'static Format) -> &'static Format {
    if scales_of(mode) == Some(&float::BF16) { with_scales(mode, full) } else { mode }
}

/// What an MLX folder has a tensor in that isn't quantized.
pub(crate) fn mlx_plain(tensor: &OutputTensor, dtype: Option<FloatType>) -> &'static Format {
    match tensor.class {
        Class::RouterBias | Class::Decay => &float::F32,
        _ => full_precision(dtype),
    }
}

/// The MLX format of each tensor: `spec` (`4bit-g64`, `mxfp4`, … or a float type) for linears, embeddings and experts, the
/// model's own type for the rest, and for the scales of the affine modes. Routers stay in it too, unless an override says otherwise.
///
/// # Errors
/// If `spec` is unknown, or an override finds no tensor.
pub fn mlx_formats(
    spec: &str,
    tensors: &[OutputTensor],
    dtype: Option<FloatType>,
    overrides: &Overrides,
) -> Result<Choices> {
    overrides.check_used(tensors)?;
    let format = writable(table::MLX, spec).map_err(format_error)?;
    let full = full_precision(dtype);
    let mut choices = Choices::default();
    for tensor in tensors {
        let wanted = match overrides.of(tensor) {
            Some(chosen) if tensor.quantizable => scaled_in(full, chosen),
            None if tensor.quantizable && tensor.class != Class::Router => scaled_in(full, format),
            _ => mlx_plain(tensor, dtype),
        };
        let holds = wanted.holds_row(tensor.columns());
        if !holds {
            choices.fallbacks.push(Fallback {
                tensor: tensor.name.clone(),
                wanted,
                got: full,
                columns: tensor.columns(),
                rows: None,
            });
        }
        choices.formats.push(if holds { wanted } else { full });
    }
    Ok(choices)
}

#[cfg(test)]
mod tests;

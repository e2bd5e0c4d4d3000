//! What is to be evaluated, on what, and with how much of the machine.

use std::path::{Path, PathBuf};

use formats::Source;

use crate::processor::Processor;

/// One evaluation.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model to measure: a GGUF file, an MLX folder or a checkpoint.
    pub model: Source,
    /// What to measure it against, usually the checkpoint that it was made of. Without it there is only perplexity.
    pub against: Option<Source>,
    /// The tokens.
    pub input: Input,
    /// Tokens in a chunk: how far the model looks back.
    pub context: usize,
    /// How many chunks, from the start of the text; all of them if not given.
    pub chunks: Option<usize>,
    /// Slide the window by so many tokens and score only those that are new to it, instead of the second half of
    /// chunks that follow each other.
    pub stride: Option<usize>,
    /// A safetensors file to write the model's logits to.
    pub logits: Option<PathBuf>,
    /// What computes.
    pub processor: Processor,
    /// How products with weights are computed.
    pub precision: Precision,
    /// Threads that compute; all cores if not given. They do not change the figures.
    pub threads: Option<usize>,
    /// Bytes of hidden states to hold before they are spilled to the disk.
    pub memory: u64,
}

impl Options {
    /// What the line `protocol` says of how it was computed.
    pub(crate) fn arithmetic(&self) -> String {
        let products = match (self.precision, &self.processor) {
            (Precision::F32, _) => "",
            (Precision::Fixed, Processor::Cpu) => ", products in fixed point",
            #[cfg(feature = "gpu")]
            (Precision::Fixed, Processor::Gpu(device)) if device.has_halves() => {
                ", products in half precision"
            }
            #[cfg(feature = "gpu")]
            (Precision::Fixed, Processor::Gpu(_)) => "",
        };
        let on = match &self.processor {
            Processor::Cpu => String::new(),
            #[cfg(feature = "gpu")]
            Processor::Gpu(device) if device.was_helped() => {
                format!(", on {} and in part on the processor", device.info.name)
            }
            #[cfg(feature = "gpu")]
            Processor::Gpu(device) => format!(", on {}", device.info.name),
        };
        products.to_owned() + &on
    }
}

/// How activations are multiplied with weights, in both models. All else is computed in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In `f32`.
    #[default]
    F32,
    /// In fixed point, both sides rounded to 16 bits, see [`kernels::fixed`]: twice as fast, and closer to `f32` than with
    /// activations in half floats, as llama.cpp has them for F16 weights. A graphics processor takes both sides in half precision,
    /// each token's activations scaled by a power of two, and sums in `f32`.
    Fixed,
}

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A text file in UTF-8, for the model's own tokenizer.
    Text(PathBuf),
    /// A safetensors file with `input_ids` [n, length], one sequence each.
    Tokens(PathBuf),
}

impl Input {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Input::Text(path) | Input::Tokens(path) => path,
        }
    }
}

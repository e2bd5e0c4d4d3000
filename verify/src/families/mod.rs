//! The families' graphs, written in [`Ops`](crate::ops::Ops) over GGUF's tensors and hyper-parameters. One file per graph; [`graph`]
//! is the table.

mod attention;
mod common;
mod gemma;
mod gemma4;
mod gpt_oss;
mod llama;
mod long_rope;
mod mla;
mod qwen3_5;

use crate::error::{Error, Result};
use crate::hidden::Hidden;
use crate::ops::Ops;
use crate::weights::{Linear, Weights};

/// A model's graph.
pub trait Graph<O: Ops>: Sync {
    /// Number of layers.
    fn layers(&self) -> usize;

    /// Width of the hidden states.
    fn width(&self) -> usize;

    /// Values that a layer holds for each token while it computes, for choosing how many tokens to compute at once.
    fn values_per_token(&self) -> usize;

    /// The hidden states before the first layer: [tokens, width].
    ///
    /// # Errors
    /// If the weights can't be read.
    fn embed(&self, ops: &O, tokens: &[u32]) -> Result<O::Tensor>;

    /// One layer over all hidden states.
    ///
    /// # Errors
    /// If weights or states can't be read or written.
    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()>;

    /// What the head is applied to: the normed states.
    fn finish(&self, ops: &O, x: &O::Tensor) -> O::Tensor;

    /// The head: [vocabulary, width].
    fn head(&self) -> &Linear;

    /// What becomes of the logits: x ← cap · tanh(x / cap).
    fn soft_cap(&self) -> Option<f32> {
        None
    }
}

/// The graph of a model, by GGUF's name of its architecture.
///
/// # Errors
/// [`Error::NoGraph`] for a family without one; and if tensors or hyper-parameters are missing or contradict each other.
pub fn graph<O: Ops>(weights: &Weights) -> Result<Box<dyn Graph<O>>> {
    Ok(match weights.hyper.arch.as_str() {
        "llama" | "qwen2" | "qwen3" | "qwen3moe" | "phi3" | "smollm3" | "olmo2" | "glm4moe"
        | "minimax-m2" => Box::new(llama::read(weights)?),
        "deepseek2" | "mistral4" | "glm-dsa" => Box::new(mla::read(weights)?),
        "gemma2" | "gemma3" => Box::new(gemma::read(weights)?),
        "gemma4" => Box::new(gemma4::read(weights)?),
        "gpt-oss" => Box::new(gpt_oss::read(weights)?),
        "qwen35" | "qwen35moe" => Box::new(qwen3_5::read(weights)?),
        arch => return Err(Error::NoGraph { arch: arch.to_owned() }),
    })
}

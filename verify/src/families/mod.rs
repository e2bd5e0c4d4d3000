//! The families' graphs, written in [`Ops`](crate::ops::Ops) over GGUF's tensors and hyper-parameters. One file per graph; [`graph`]
//! is the table.

mod attention;
mod common;
mod ends;
mod gemma;
mod gemma4;
mod gpt_oss;
mod llama;
mod long_rope;
pub mod memory;
mod mla;
mod qwen3_5;

pub use ends::Ends;

use crate::error::{Error, Result};
use crate::hidden::Hidden;
use crate::ops::Ops;
use crate::weights::Weights;

/// A model's graph.
pub trait Graph<O: Ops>: Sync {
    /// Embedding, final norm and head.
    fn ends(&self) -> &Ends;

    /// Number of layers.
    fn layers(&self) -> usize;

    /// Values that a layer holds for each token while it computes, for choosing how many tokens to compute at once.
    fn values_per_token(&self) -> usize;

    /// One layer over all hidden states.
    ///
    /// # Errors
    /// If weights or states can't be read or written.
    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()>;
}

/// The graph of a model, by GGUF's name of its architecture.
///
/// # Errors
/// [`Error::NoGraph`] for a family without one; and if tensors or hyper-parameters are missing or contradict each other.
pub fn graph<O: Ops>(weights: &Weights) -> Result<Box<dyn Graph<O>>> {
    let (hyper, tensors) = (&weights.hyper, weights.tensors.len());
    // Before anything is made for each layer.
    if let Some(layers) = hyper.optional_count("block_count")?.filter(|&layers| layers > tensors) {
        return Err(
            hyper.error("block_count", format!("is {layers}, but there are {tensors} tensors in all"))
        );
    }
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

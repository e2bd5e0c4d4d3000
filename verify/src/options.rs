//! What is to be evaluated, on what, and with how much of the machine.

use std::path::{Path, PathBuf};

/// One evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The model to measure: a GGUF file, an MLX folder or a checkpoint.
    pub model: PathBuf,
    /// What to measure it against, usually the checkpoint that it was made of. Without it there is only perplexity.
    pub against: Option<PathBuf>,
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
    /// Threads that compute; all cores if not given. They do not change the figures.
    pub threads: Option<usize>,
    /// Bytes of hidden states to hold before they are spilled to the disk.
    pub memory: u64,
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

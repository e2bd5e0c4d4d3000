//! The reference inference core: perplexity and KL divergence of any model that `formats` can read, in little memory.
//!
//! - [`options`]: what is to be evaluated.
//! - [`outcome`]: what was found, out of [`metrics`] (with the [`histogram`] of divergences) and a [`description`] of each
//!   model.
//! - [`verdict`]: what the figures come to, in words; [`report`]: all of it as a page.
//! - [`progress`]: how an evaluation tells what it does.
//! - [`weights`], [`hyper`]: any container, seen through GGUF's names, conventions and metadata.
//! - [`families`]: the graphs, written in [`ops`]; [`mixture`] for their experts.
//! - [`cpu`]: the operations on the processor.
//! - `gpu`: the same on a graphics processor.
//! - [`evaluate`](mod@evaluate): from options to outcome.
//! - [`processor`]: what the core runs on.
//! - [`tap`]: what stands between a graph and its weights.
//! - [`forward`]: a model over all tokens, layer by layer.
//! - [`tokenizer`]: from text to token ids.
//! - [`windows`]: the sequences and what is scored of them.
//! - [`damage`]: where along the layers and in which weights the damage is.
//! - [`hidden`], [`store`]: the hidden states of all tokens, in memory or on disk.

pub mod cpu;
pub mod damage;
pub mod description;
pub mod error;
pub mod evaluate;
pub mod families;
pub mod forward;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod hidden;
pub mod histogram;
pub mod hyper;
mod logits;
pub mod metrics;
pub mod mixture;
pub mod ops;
pub mod options;
pub mod outcome;
pub mod processor;
pub mod progress;
pub mod report;
mod score;
pub mod store;
pub mod tap;
pub mod text;
pub mod tokenizer;
pub mod verdict;
pub mod weights;
pub mod windows;

pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use options::{Input, Options, Precision};
pub use outcome::Outcome;
pub use processor::{Device, Processor};
pub use progress::Progress;
pub use tokenizer::Tokenizer;

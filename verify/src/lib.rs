//! The reference inference core: perplexity and KL divergence of any model that `formats` can read, in little memory.

pub mod error;

pub use error::{Error, Result};

//! The reference inference core: perplexity and KL divergence of any model that `formats` can read, in little memory.
//!
//! - [`options`]: what is to be evaluated.
//! - [`outcome`]: what was found, out of [`metrics`] (with the [`histogram`] of divergences) and a [`description`] of each
//!   model.
//! - [`progress`]: how an evaluation tells what it does.

pub mod description;
pub mod error;
pub mod histogram;
pub mod metrics;
pub mod options;
pub mod outcome;
pub mod progress;

pub use error::{Error, Result};
pub use options::{Input, Options};
pub use outcome::Outcome;
pub use progress::Progress;

//! What can be wrong with a checkpoint or a container. Each message names the file, the tensor and the numbers.

use std::path::PathBuf;

/// A condition of a file or a model that stops the work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key of a model's configuration is missing, malformed, or says what can't be done.
    #[error("{path}: `{key}` {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration asks for a tensor that the checkpoint doesn't have.
    #[error("tensor `{name}` is missing: {hint}")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// Which key asks for it, and what to do.
        hint: String,
    },
    /// A tensor's shape contradicts the configuration.
    #[error("tensor `{name}` has shape {found:?}, but the configuration means {expected:?} ({reason})")]
    Shape {
        /// The tensor.
        name: String,
        /// As the checkpoint has it.
        found: Vec<u64>,
        /// As the configuration has it.
        expected: Vec<u64>,
        /// Where the expected numbers come from.
        reason: String,
    },
    /// The checkpoint holds weights that the family doesn't know: converting would lose them silently.
    #[error("{count} tensors of the checkpoint are unknown to `{family}` and would be lost: {names}")]
    UnknownTensors {
        /// `model_type`.
        family: String,
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// A number that a container's field can't hold.
    #[error("`{key}` would be {value}, which doesn't fit its 32 bits")]
    Value {
        /// The container's key.
        key: String,
        /// The number.
        value: u64,
    },
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

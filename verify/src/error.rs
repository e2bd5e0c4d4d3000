//! What can go wrong while a model is evaluated.

/// A condition that stops an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container could not be read, or lacks something.
    #[error(transparent)]
    Formats(#[from] formats::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

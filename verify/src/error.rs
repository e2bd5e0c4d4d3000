//! What can go wrong while a model is evaluated. Each message names the numbers and says what to do next.

use std::path::{Path, PathBuf};

/// A condition that stops an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A container could not be read, or lacks something.
    #[error(transparent)]
    Formats(#[from] formats::Error),
    /// What stands between the graph and its weights could not go on.
    #[error(transparent)]
    Tap(Box<dyn std::error::Error + Send + Sync>),
    /// A hyper-parameter is missing or can't be.
    #[error("{place}: `{key}` {problem}")]
    Hyper {
        /// The file or folder.
        place: String,
        /// The key, without the architecture's prefix.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The graph needs a tensor that the model doesn't have.
    #[error("tensor {tensor} is missing, which its architecture's graph needs")]
    MissingTensor {
        /// The tensor, by GGUF's name.
        tensor: String,
    },
    /// A tensor's shape contradicts the hyper-parameters.
    #[error("tensor {tensor} has shape {found:?}, where the hyper-parameters mean {expected:?}")]
    Shape {
        /// The tensor, by GGUF's name.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// What it should be.
        expected: Vec<u64>,
    },
    /// A family whose forward pass isn't built.
    #[error("architecture `{arch}` can't be evaluated yet (`halfbyte quantize` may still convert it)")]
    NoGraph {
        /// The architecture.
        arch: String,
    },
    /// A model's tokenizer is missing or can't be used.
    #[error("{path}: {problem}; give the text as token ids (--tokens) instead")]
    Tokenizer {
        /// The file, or the folder where it should be.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Attention to selected tokens only, which isn't built: as long as all are selected it is the plain one.
    #[error(
        "a sequence has {length} tokens, and beyond {selected} this model attends to selected ones only, which can't be \
         evaluated yet: give a smaller --context"
    )]
    SparseAttention {
        /// Tokens of the sequence.
        length: usize,
        /// Tokens that are selected.
        selected: usize,
    },
    /// A token that the model doesn't have.
    #[error(
        "token {token} at position {position} of sequence {sequence} is not in the vocabulary of {vocabulary}: \
         is this another model's tokenizer?"
    )]
    NotInVocabulary {
        /// Which sequence, counted from 0.
        sequence: usize,
        /// Where in it.
        position: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The forward pass broke down.
    #[error(
        "after {place} the hidden state of token {position} of sequence {sequence} is NaN or infinite: \
         the weights there are damaged, or their type overflows"
    )]
    HiddenNotFinite {
        /// `the embedding`, or `layer` and its number, counted from 0.
        place: String,
        /// Which sequence, counted from 0.
        sequence: usize,
        /// Where in it: the first such token.
        position: usize,
    },
    /// Not one chunk of text.
    #[error(
        "the text has {tokens} tokens, which do not fill one chunk of {context}: \
         give a longer text or a smaller --context"
    )]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a chunk.
        context: usize,
    },
    /// A file of token ids that isn't one.
    #[error("{path}: {problem}")]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Two models that do not predict the same tokens.
    #[error("the model's vocabulary has {model} tokens, the reference's {reference}: they can't be compared")]
    Vocabularies {
        /// Of the model.
        model: usize,
        /// Of the reference.
        reference: usize,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is nothing to take a mean of.
    #[error(
        "{scored} tokens would be scored, and figures with an error need two or more: give a longer text or a larger --context"
    )]
    TooFewTokens {
        /// How many.
        scored: usize,
    },
    /// A value of a scored token is no number.
    #[error(
        "the {what} of scored token {token} is infinite or NaN: the model's weights or its evaluation are at fault"
    )]
    NotFinite {
        /// Which value.
        what: &'static str,
        /// Counted from 0 over all scored tokens.
        token: usize,
    },
    /// A figure is beyond a double.
    #[error("the {what} is e^{ln:.0}, too large to be stated: the model does not predict this text at all")]
    TooLarge {
        /// Which figure.
        what: &'static str,
        /// Its logarithm.
        ln: f64,
    },
    /// The reference did not score the tokens that the model scored.
    #[error("{scored} tokens were scored, but {compared} compared with the reference")]
    Uneven {
        /// By the model.
        scored: usize,
        /// With the reference.
        compared: usize,
    },
    /// The report's template and its values do not fit each other.
    #[error("the report can't be rendered: {0}")]
    Report(#[from] minijinja::Error),
    /// A graphics processor could not go on: it ran out of memory, was lost, or refused.
    #[error("{device}: {problem}")]
    Device {
        /// Its name.
        device: String,
        /// What it said.
        problem: String,
    },
    /// The user stopped the evaluation.
    #[error("interrupted; an evaluation keeps nothing to resume from")]
    Interrupted,
    /// A choice of the user is at fault.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// An operating system's error with the file it is about.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! What can stop a job. Each message names the file, the tensor and the numbers, and says what to do next.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::recipe_file::Key;

/// A condition that stops a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint or the container is at fault.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// A model's hyper-parameters are at fault.
    #[error(transparent)]
    Model(#[from] verify::Error),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk can't hold the output.
    #[error(
        "{path}: the file system has no room for the output: {needed} bytes are still to be allocated, {free} are free. \
         Make room and run the same command again"
    )]
    NoSpace {
        /// The file that could not be allocated.
        path: PathBuf,
        /// Bytes still to be allocated.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The disk may not hold all the files that are under way at a time.
    #[error(
        "{path}: tensors come in the order of the source, and so up to {needed} bytes of output files are under way at a time, but \
         only {room} bytes may lie on the disk. Give more, or make smaller files (--shard-size)"
    )]
    Room {
        /// Where the files are made.
        path: PathBuf,
        /// Bytes under way at a time.
        needed: u64,
        /// Bytes that may lie on the disk.
        room: u64,
    },
    /// The format has no encoder here.
    #[error("{format} can be read but not written; `halfbyte formats` lists what can")]
    ReadOnly {
        /// The format.
        format: &'static str,
    },
    /// The parts of an output tensor do not make up its shape.
    #[error("tensor {tensor}: {detail}")]
    Shape {
        /// The output tensor.
        tensor: String,
        /// What does not add up.
        detail: String,
    },
    /// An importance matrix is damaged, or is for another model.
    #[error("{path}: {detail}. An importance matrix is made by llama-imatrix, of this very model")]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Some weights are NaN or infinite.
    #[error(
        "tensor {tensor}: {count} of its {elements} weights are NaN or infinite. The checkpoint is damaged or was saved wrong; \
         --allow-nonfinite writes them as zeros in quantized tensors (as they are in F32, F16 and BF16)"
    )]
    NonFinite {
        /// The output tensor.
        tensor: String,
        /// How many: in the first of its segments that has any, which ends the run.
        count: u64,
        /// Out of how many.
        elements: u64,
    },
    /// Quantized weights are to stay as they are, and no format of the container can hold them.
    #[error(
        "tensor {tensor}: no format of {container} holds its weights in {from} just as they are{}. {}",
        tried_of(tried), cost_of(cost.as_ref(), container)
    )]
    NotHeld {
        /// The output tensor.
        tensor: String,
        /// The source's format.
        from: String,
        /// The container.
        container: &'static str,
        /// The formats with the same levels, whose scales or zero points can't be the source's.
        tried: Vec<&'static str>,
        /// The nearest format, and the relative RMS error of quantizing again in it.
        cost: Option<(&'static str, f64)>,
    },
    /// What was written is not the source's weights, though it was to be.
    #[error("tensor {tensor}: {detail}. This should not be: report it, and do not use what was written")]
    Different {
        /// The tensor, by its name in GGUF.
        tensor: String,
        /// What differs.
        detail: String,
    },
    /// Some finite weights lie beyond what the format can hold.
    #[error(
        "tensor {tensor}: {count} of its {elements} weights are beyond what {format} can hold and would become infinite. \
         Choose bf16 or f32 for it: --tensor '{tensor}=bf16'"
    )]
    Overflow {
        /// The output tensor.
        tensor: String,
        /// The format.
        format: &'static str,
        /// How many.
        count: u64,
        /// Out of how many.
        elements: u64,
    },
    /// The output is there already and is something else.
    #[error(
        "{path} exists already and is not what this command would write. Remove it, choose another --out, or pass --overwrite"
    )]
    OutputExists {
        /// The file or folder.
        path: PathBuf,
    },
    /// Another process works on the same output.
    #[error("{path}: another halfbyte is writing this output")]
    Busy {
        /// The journal that it holds.
        path: PathBuf,
    },
    /// The unfinished output was begun by another job.
    #[error(
        "{path} holds an unfinished job that differs from this one: {difference}. \
         Run the command that began it, or remove the folder to begin anew"
    )]
    OtherJob {
        /// The folder of the unfinished output.
        path: PathBuf,
        /// The first difference of the two recipes.
        difference: String,
    },
    /// The source is not what it was when the job began.
    #[error(
        "{path} has changed since this job began ({difference}), so the tensors written so far may not belong to it. \
         Remove {partial} to begin anew"
    )]
    SourceChanged {
        /// The source's file.
        path: PathBuf,
        /// What differs.
        difference: String,
        /// The folder of the unfinished output.
        partial: PathBuf,
    },
    /// The journal is unreadable.
    #[error("{path}, line {line}: not a journal entry ({detail}). Remove the folder {partial} to begin anew")]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        detail: String,
        /// The folder of the unfinished output.
        partial: PathBuf,
    },
    /// The buffers do not fit the ceiling.
    #[error(
        "--memory {memory} is too small: the largest piece of this model (tensor {tensor}) needs buffers of {needed} bytes"
    )]
    Memory {
        /// The ceiling in bytes.
        memory: u64,
        /// The tensor.
        tensor: String,
        /// Bytes needed.
        needed: u64,
    },
    /// The user stopped the job; it can be resumed.
    #[error("interrupted; {} is kept: run the same command again to go on", partial.display())]
    Interrupted {
        /// The folder of the unfinished output.
        partial: PathBuf,
    },
    /// The target is unknown, or its description wrong.
    #[error(transparent)]
    Target(#[from] crate::target::Error),
    /// A choice of the user is at fault.
    #[error("{choice}: {detail}")]
    Choice {
        /// Which.
        choice: Choice,
        /// What is wrong with it.
        detail: String,
    },
    /// A recipe is at fault.
    #[error("{path}, line {line}: {detail}")]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// Wrong use in another way.
    #[error("{0}")]
    Usage(String),
}

/// Something that the user chooses, by an option or in a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The mix or format.
    Format,
    /// One of the rules for single tensors.
    Rule {
        /// Which, from 0.
        index: usize,
        /// Its text.
        text: String,
    },
    /// The alignment of tensors.
    Align,
    /// One of the layers behind which a file ends, counted from 0 in their list.
    ShardAfter(usize),
}

impl Choice {
    /// Where a recipe says it.
    pub(crate) fn place(&self) -> Vec<Key> {
        match self {
            Choice::Format => vec![Key::Name("format")],
            Choice::Rule { index, .. } => vec![Key::Name("rules"), Key::Index(*index)],
            Choice::Align => vec![Key::Name("align")],
            Choice::ShardAfter(index) => vec![Key::Name("shard_after"), Key::Index(*index)],
        }
    }
}

/// The option of the command line.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Format => write!(f, "--format"),
            Choice::Rule { text, .. } => write!(f, "--tensor `{text}`"),
            Choice::Align => write!(f, "--align"),
            Choice::ShardAfter(_) => write!(f, "shard_after"),
        }
    }
}

impl Error {
    /// An operating system's error with the file it is about.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source }
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn tried_of(tried: &[&str]) -> String {
    if tried.is_empty() {
        return String::new();
    }
    format!(" ({} would need scales or offsets that they can't store)", tried.join(", "))
}

fn cost_of(cost: Option<&(&str, f64)>, container: &str) -> String {
    cost.map_or("Choose another container".to_owned(), |(format, error)| {
        format!(
            "Quantizing again as {format} adds an error of {:.2} % (relative RMS, of some of its rows): `halfbyte quantize --to \
             {container} --format {format}` does, or choose another container",
            100.0 * error
        )
    })
}

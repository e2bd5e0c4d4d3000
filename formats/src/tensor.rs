//! The index of a source and how to read a range of one tensor's bytes.

use std::fmt;
use std::path::PathBuf;

use kernels::Format;

use crate::error::Result;

/// How a source stores a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// A row of the kernels' table: F32, F16, BF16 (blocks of one weight) and every GGUF block type.
    Block(&'static Format),
    /// FP8 E4M3 (finite, no infinities); its block scales are a tensor of their own.
    F8E4M3,
    /// FP8 E8M0, a power of two: only ever a scale.
    F8E8M0,
    /// Stored integers, booleans and 64-bit floats: carried in indexes, not quantized.
    Other {
        /// The name the file gives it.
        name: &'static str,
        /// Bytes per element.
        bytes: usize,
    },
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::Block(format) => format.name,
            Dtype::F8E4M3 => "f8_e4m3",
            Dtype::F8E8M0 => "f8_e8m0",
            Dtype::Other { name, .. } => name,
        })
    }
}

/// The position of a tensor in its source's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// One tensor of a source.
#[derive(Clone, Debug)]
pub struct TensorMeta {
    /// The name in the file.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Row-major, outermost dimension first (GGUF's order is reversed on reading).
    pub shape: Vec<u64>,
    /// Which of the source's files holds it.
    pub file: usize,
    /// The first byte, from the start of that file.
    pub offset: u64,
    /// Bytes in all, checked against dtype, shape and file size.
    pub len: u64,
}

impl TensorMeta {
    /// Length of a row: the last dimension (1 for a scalar).
    pub fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows when all dimensions but the last are flattened.
    pub fn rows(&self) -> u64 {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A file of a source.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes when the index was read.
    pub len: u64,
    /// SHA-256 of its bytes, where it is known without reading them: a Hub states it.
    pub sha256: Option<String>,
}

/// Where weights come from: a folder of safetensors shards, a GGUF file, later a Hub repository read by HTTP range.
/// The index is read from headers alone.
pub trait TensorSource: Send + Sync {
    /// Every tensor, in the order of the files.
    fn tensors(&self) -> &[TensorMeta];

    /// The tensor of that name.
    fn find(&self, name: &str) -> Option<TensorId>;

    /// The files behind the tensors.
    fn files(&self) -> &[SourceFile];

    /// Fills `buffer` with the tensor's bytes from `offset` on (from the tensor's own start).
    ///
    /// # Errors
    /// If the range leaves the tensor or the file can't be read in full.
    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Tells what is about to be read: for each step of the work, in order, the files (indices into [`files`](Self::files)) that it
    /// reads. A source that lies elsewhere fetches them ahead in this order; one on this disk has nothing to do.
    ///
    /// # Errors
    /// If the files of one step are more than it may hold.
    fn expect(&self, _steps: Vec<Vec<usize>>) -> Result<()> {
        Ok(())
    }

    /// Tells that what was made of the steps up to `step` is safe, so that the files that no later one reads may be dropped.
    fn settled(&self, _step: usize) {}

    /// The files that a tensor is read from: several if its parts are in several shards.
    fn files_of(&self, id: TensorId) -> Vec<usize> {
        vec![self.meta(id).file]
    }

    /// What a tensor is stored as, and in how many bytes, if its elements are decoded as they are read.
    fn decoded_from(&self, _id: TensorId) -> Option<(&'static str, u64)> {
        None
    }

    /// Whether names and values are those of mlx-lm's models, not those of the checkpoint that they were made from: experts
    /// are stacked, and what `sanitize` does to values is done.
    fn is_mlx(&self) -> bool {
        false
    }

    /// The tensor behind an id.
    fn meta(&self, id: TensorId) -> &TensorMeta {
        &self.tensors()[id.0]
    }
}

//! What can be wrong with a checkpoint or a container. Each message names the file, the tensor and the numbers, and where
//! something can be done about it, what.

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

    /// A folder, a pipe or a device where a file was expected.
    #[error("{path} is no regular file")]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },

    /// Nothing at the path is a checkpoint that can be read.
    #[error("{path}: {reason}")]
    NoCheckpoint {
        /// What was named.
        path: PathBuf,
        /// What is there instead and what to do.
        reason: String,
    },

    /// Something that the header promises lies behind the end of the file.
    #[error(
        "{path}: {what} ends at byte {end}, but the file has {len} bytes; it is truncated: fetch or write it again"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What does not fit: the header, or a tensor by name.
        what: String,
        /// Where it would end.
        end: u64,
        /// The size of the file.
        len: u64,
    },

    /// The file goes on behind the last tensor.
    #[error(
        "{path}: the last tensor ends at byte {end}, but the file has {len} bytes: fetch or write it again"
    )]
    Trailing {
        /// The file.
        path: PathBuf,
        /// End of the last tensor.
        end: u64,
        /// The size of the file.
        len: u64,
    },

    /// A header, or an index file, larger than any that a real model needs.
    #[error(
        "{path}: the header has {len} bytes or more, the limit is {limit}: the file is damaged or no model"
    )]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// The length it states.
        len: u64,
        /// The largest accepted.
        limit: u64,
    },

    /// A header or a JSON file that does not follow its specification.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },

    /// A tensor's name occurs twice.
    #[error("tensor {tensor} is in {first} and again in {second}")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// The file that has it.
        first: PathBuf,
        /// The file that has it again, possibly the same.
        second: PathBuf,
    },

    /// A type of element that this project does not know.
    #[error("{path}: tensor {tensor} has the type {dtype}, which is not among the supported ones: {known}")]
    UnknownDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name or number.
        dtype: String,
        /// The types that are supported.
        known: String,
    },

    /// Dimensions that are zero where they must not be, or whose product does not fit 64 bits.
    #[error("{path}: tensor {tensor} has the impossible shape {shape:?}")]
    BadShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dimensions, outermost first.
        shape: Vec<u64>,
    },

    /// The bytes given to a tensor are not those that its type and shape take.
    #[error(
        "{path}: tensor {tensor}, {dtype} {shape:?}, takes {expected} bytes but the header gives it {actual}"
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// Its dimensions, outermost first.
        shape: Vec<u64>,
        /// What type and shape take.
        expected: u64,
        /// What the header says.
        actual: u64,
    },

    /// A tensor's bytes start before those of the previous one end.
    #[error(
        "{path}: tensor {tensor} starts at byte {start} of the data, but {previous} ends only at byte {end}"
    )]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The later tensor.
        tensor: String,
        /// Where it starts.
        start: u64,
        /// The earlier tensor.
        previous: String,
        /// Where that ends.
        end: u64,
    },

    /// Bytes that belong to no tensor, where the container forbids them.
    #[error(
        "{path}: tensor {tensor} starts at byte {start} of the data, but the bytes from {end} on belong to no tensor"
    )]
    Gap {
        /// The file.
        path: PathBuf,
        /// The tensor behind the gap.
        tensor: String,
        /// Where it starts.
        start: u64,
        /// Where it should start.
        end: u64,
    },

    /// A shard's name in an index that leads out of the checkpoint's folder.
    #[error("{path}: the shard {shard:?} is outside the checkpoint's folder")]
    ShardOutside {
        /// The index.
        path: PathBuf,
        /// The name it gives.
        shard: String,
    },

    /// A shard that an index or another shard names is not there.
    #[error("{path} is missing, but {named_by} needs it: fetch that shard too")]
    MissingShard {
        /// Where it should be.
        path: PathBuf,
        /// What says that it exists.
        named_by: String,
    },

    /// A shard lacks a tensor that the index places in it.
    #[error(
        "{path} has no tensor {tensor}, although {index} places it there: index and shards are of different models"
    )]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The index.
        index: PathBuf,
    },

    /// A read that leaves its tensor: an error of the caller.
    #[error("bytes {offset}..{offset}+{len} leave tensor {tensor} of {size} bytes")]
    OutOfTensor {
        /// The tensor.
        tensor: String,
        /// Start of the range.
        offset: u64,
        /// Its length.
        len: u64,
        /// The tensor's size.
        size: u64,
    },

    /// A tensor whose elements are no weights, or whose rows are not whole blocks.
    #[error(
        "tensor {tensor} is no matrix of weights that can be read row by row: {dtype} of shape {shape:?}"
    )]
    NotWeights {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
    },

    /// A file that starts like no known container.
    #[error("{path} starts with `{magic}`: it is neither safetensors nor GGUF")]
    UnknownMagic {
        /// The file.
        path: PathBuf,
        /// Its first bytes, escaped.
        magic: String,
    },

    /// A GGUF for big-endian machines.
    #[error(
        "{path} is a big-endian GGUF, which is not supported: convert it with llama.cpp's gguf_convert_endian.py"
    )]
    BigEndian {
        /// The file.
        path: PathBuf,
    },

    /// A version of GGUF that this project does not read.
    #[error("{path} is GGUF version {version}; versions 2 and 3 are supported")]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },

    /// A metadata key occurs twice.
    #[error("{path}: the metadata key {key} occurs twice")]
    DuplicateKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },

    /// A GGUF alignment that is no power of two.
    #[error("{path}: the alignment {alignment} is no power of two")]
    BadAlignment {
        /// The file.
        path: PathBuf,
        /// The alignment.
        alignment: u64,
    },

    /// A tensor that does not start where the alignment wants it.
    #[error(
        "{path}: tensor {tensor} starts at byte {offset} of the data, which is no multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it starts.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },

    /// More dimensions than GGUF knows.
    #[error("{path}: tensor {tensor} has {dimensions} dimensions; GGUF knows at most 4")]
    TooManyDimensions {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many it has.
        dimensions: u64,
    },

    /// Rows that are no whole number of a format's blocks.
    #[error(
        "{path}: the rows of tensor {tensor} have {columns} weights, which {format} can't hold in blocks of {block}"
    )]
    RaggedRow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Weights in a row.
        columns: u64,
        /// The format's name.
        format: &'static str,
        /// Weights in a block.
        block: usize,
    },

    /// The shards of a split GGUF contradict each other.
    #[error(
        "{path}: {what} is {found} but should be {expected}: the shards are not all of one model, or were renamed"
    )]
    SplitMismatch {
        /// The shard.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What it says.
        found: String,
        /// What the other shards say.
        expected: String,
    },

    /// A name that llama.cpp refuses.
    #[error("the tensor name {tensor:?} has {len} bytes; llama.cpp reads at most 63")]
    NameTooLong {
        /// The name.
        tensor: String,
        /// Its length.
        len: usize,
    },

    /// A format that a container can't hold.
    #[error("tensor {tensor}: {container} has no type {format}")]
    NotInContainer {
        /// The tensor.
        tensor: String,
        /// The format.
        format: &'static str,
        /// The container.
        container: String,
    },

    /// More shards than a container can count.
    #[error("the model would take {shards} shards, and GGUF counts at most 65535: choose larger ones")]
    TooManyShards {
        /// How many there would be.
        shards: usize,
    },

    /// A block of no weights.
    #[error(
        "the FP8 blocks of config.json's weight_block_size have {block:?} rows and columns: neither may be zero"
    )]
    BadBlock {
        /// Rows and columns.
        block: [u64; 2],
    },

    /// An FP8 weight without scales.
    #[error("tensor {weight} is FP8 (E4M3) but there is no {scale} with its scales: fetch all shards")]
    MissingScale {
        /// The weight.
        weight: String,
        /// What its scales should be called.
        scale: String,
    },

    /// Scales of a shape that does not fit the weight.
    #[error(
        "{scale} has the shape {found:?}, but its weight of {shape:?} in blocks of {block:?} needs {expected:?}, or one for each row, \
         or a single one: compare weight_block_size in config.json"
    )]
    ScaleShape {
        /// The scales.
        scale: String,
        /// The shape of their weight.
        shape: Vec<u64>,
        /// Rows and columns of a block.
        block: [u64; 2],
        /// The shape the scales should have.
        expected: Vec<u64>,
        /// The shape they have.
        found: Vec<u64>,
    },

    /// Scales of a type that can't be one.
    #[error("{scale} has the type {dtype}; FP8 scales are F32, BF16, F16 or F8_E8M0")]
    ScaleDtype {
        /// The scales.
        scale: String,
        /// Their type.
        dtype: String,
    },

    /// Scales that nothing uses: to ignore them would be to use a weight unscaled.
    #[error("there are scales {scale}, but no FP8 tensor {weight}: fetch all shards of one revision")]
    LeftoverScale {
        /// The scales.
        scale: String,
        /// What they would scale.
        weight: String,
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
    /// A checkpoint's tokenizer is missing, malformed, or none that llama.cpp runs.
    #[error("{path}: {problem}")]
    Tokenizer {
        /// The file, or the folder where it should be.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

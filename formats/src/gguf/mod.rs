//! GGUF: llama.cpp's container. Typed metadata and an index of tensors, then the tensors' bytes, each aligned; a large model
//! may be split at tensor boundaries. Specification: `ggml/docs/gguf.md`; behaviour: `ggml/src/gguf.cpp`.

pub mod read;
pub mod types;
pub mod value;
pub mod write;

pub use read::Gguf;
pub use value::{Array, Metadata, Value};

/// The first bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensors start, in bytes, if `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u32 = 32;

/// The key of the alignment, a `u32`.
const ALIGNMENT: &str = "general.alignment";

/// The key of a shard's number, from 0, a `u16`.
const SPLIT_NO: &str = "split.no";

/// The key of the number of shards, a `u16`.
const SPLIT_COUNT: &str = "split.count";

/// The key of the number of tensors in all shards, an `i32`.
const SPLIT_TENSORS: &str = "split.tensors.count";

/// How the name of shard `no` (from 0) of `count` ends.
fn split_suffix(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

//! GGUF: llama.cpp's container.

pub mod value;

pub use value::{Array, Metadata, Value};

//! Containers and names: what lies in a checkpoint, what a converted file must hold, and under which names.
//!
//! - [`source`]: where a model is, on this disk or elsewhere.
//! - [`arrangement`]: planes whose rows do not lie one after the other.
//! - [`checkpoint`]: a model, whichever container it is in.
//! - [`config`]: a model's hyper-parameters.
//! - [`tensor`]: a source's index and how to read a byte range of one tensor.
//! - [`output`]: the tensors of a converted model, each assembled from parts of source tensors.
//! - [`safetensors`]: Hugging Face's container, a file or a folder of shards.
//! - [`rows`]: rows of source tensors, widened to f32.
//! - [`scales`]: the block scales of FP8 weights.
//! - [`families`]: from a checkpoint's names to those of GGUF and MLX.
//! - [`gguf`]: llama.cpp's container.
//! - [`mlx`]: the folders of mlx-lm; [`mlx_folder`]: the same as a source.
//! - [`compressed_tensors`]: the folders of vLLM and transformers; [`compressed_folder`]: the same as a source.
//! - [`packed`]: whose quantization a checkpoint's folder has; [`gptq_folder`] and [`awq_folder`]: theirs as sources.
//! - [`gptq`], [`awq`]: other folders of theirs; [`linears`]: what the three have in common as an output.
//! - [`folder`]: what all folders have in common as an output; [`joined`]: as a source.
//! - [`renamed`]: a converted model under its checkpoint's names again.
//! - [`summary`]: what a model on disk holds.
//! - [`order`]: the order of tensors in a GGUF file.
//! - [`layout`]: every output byte's file and offset, fixed before the first byte is written.
//! - [`tokenizer`]: a checkpoint's tokenizer as GGUF metadata.
//! - [`metadata`]: all metadata of a GGUF file, with what the [`model_card`] says.
//!
//! Every size and offset that comes from a file is hostile until checked.

pub mod arrangement;
pub mod awq;
pub mod awq_folder;
pub mod checkpoint;
pub mod compressed_folder;
mod compressed_schemes;
pub mod compressed_tensors;
pub mod config;
mod decoded;
mod defaults;
pub mod error;
pub mod families;
pub mod folder;
pub mod gguf;
pub mod gptq;
pub mod gptq_folder;
mod group_index;
mod index;
pub mod joined;
mod keys;
pub mod layout;
pub mod linears;
pub mod metadata;
pub mod mlx;
pub mod mlx_folder;
pub mod model_card;
mod module;
mod mxfp4;
mod older_keys;
pub mod order;
pub mod output;
pub mod packed;
pub mod renamed;
pub mod rows;
pub mod safetensors;
pub mod scales;
mod shards;
pub mod source;
pub mod summary;
pub mod tensor;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use keys::Keys;
pub use layout::Layout;
pub use output::{Content, OutputTensor, Part};
pub use source::Source;
pub use tensor::{Dtype, TensorId, TensorMeta, TensorSource};

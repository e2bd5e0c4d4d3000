//! Mistral 7B: Llama's graph. Neither llama.cpp's `llama` nor mlx-lm's applies the first version's sliding window; the key
//! says it all the same, so that an evaluation can.

use super::{Family, Keys, llama};
use crate::config::ModelConfig;
use crate::error::Result;

pub(super) const MISTRAL: Family =
    Family { model_type: "mistral", arch: "llama", tensors: llama::tensors, metadata };

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    llama::metadata(config, keys)?;
    if let Some(window) = config.sliding_window {
        keys.count("attention.sliding_window", window)?;
    }
    Ok(())
}

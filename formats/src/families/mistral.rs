//! Mistral 7B: Llama's graph. Neither llama.cpp's `llama` nor mlx-lm's applies the first version's sliding window.

use super::{Family, llama};

pub(super) const MISTRAL: Family =
    Family { model_type: "mistral", arch: "llama", tensors: llama::tensors, metadata: llama::metadata };

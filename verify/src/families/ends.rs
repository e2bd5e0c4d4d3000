//! What lies before the first layer and after the last: the same in all families.

use super::common;
use crate::error::Result;
use crate::ops::Ops;
use crate::weights::{Linear, Weights};

/// Embedding, final norm and head.
pub struct Ends {
    /// Width of the hidden states.
    pub width: usize,
    /// ε of the norms, those of the layers too.
    pub eps: f64,
    /// The embedding: [vocabulary, width].
    pub embedding: Linear,
    /// Factor of the embedded tokens (Gemma).
    embedding_scale: Option<f32>,
    norm: Vec<f32>,
    /// The head: [vocabulary, width].
    pub head: Linear,
    /// What becomes of the logits: x ← cap · tanh(x / cap).
    pub soft_cap: Option<f32>,
}

impl Ends {
    /// Reads them; neither the embedding nor the logits are changed.
    pub(super) fn read(weights: &Weights) -> Result<Ends> {
        let hyper = &weights.hyper;
        let width = hyper.count("embedding_length")?;
        let vocab = common::vocabulary(weights)?;
        Ok(Ends {
            width,
            eps: hyper.number("attention.layer_norm_rms_epsilon")?,
            embedding: weights.linear("token_embd", vocab, width)?,
            embedding_scale: None,
            norm: weights.vector("output_norm.weight", width)?,
            head: common::head(weights, vocab, width)?,
            soft_cap: None,
        })
    }

    /// Gemma's: embedded tokens are multiplied by √width, logits softly capped.
    pub(super) fn read_gemma(weights: &Weights, soft_cap: Option<f32>) -> Result<Ends> {
        let ends = Ends::read(weights)?;
        Ok(Ends { embedding_scale: Some((ends.width as f32).sqrt()), soft_cap, ..ends })
    }

    /// The hidden states before the first layer: [tokens, width].
    ///
    /// # Errors
    /// If the weights can't be read.
    pub fn embed<O: Ops>(&self, ops: &O, tokens: &[u32]) -> Result<O::Tensor> {
        let mut x = ops.embed(&self.embedding, tokens)?;
        if let Some(scale) = self.embedding_scale {
            ops.scale(&mut x, scale);
        }
        Ok(x)
    }

    /// What the head is applied to: the normed states.
    pub fn finish<O: Ops>(&self, ops: &O, x: &O::Tensor) -> O::Tensor {
        ops.rms_norm(x, self.width, Some(&self.norm), self.eps)
    }
}

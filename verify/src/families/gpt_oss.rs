//! gpt-oss: windows in every other layer, sinks in attention, experts with biases and a clamped activation in every layer.
//!
//! h ← h + Wo · attention(norm(h));  h ← h + experts(norm(h)). A head's sink takes part in the softmax as one more token whose value is 0;
//! the router's softmax is over the chosen experts.

use kernels::rope::Pairs;

use super::Graph;
use super::attention::{SelfAttention, plain, windows};
use super::common::{self, RouterDefaults};
use super::ends::Ends;
use crate::error::{Error, Result};
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::{Mixture, Scoring};
use crate::ops::{Activation, Attention, Ops};
use crate::weights::Weights;

pub(super) struct GptOss {
    ends: Ends,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Vec<f32>,
    attention: SelfAttention,
    mixture_norm: Vec<f32>,
    mixture: Mixture,
}

/// For each layer the window of its attention, where it has one.
pub(super) fn layer_windows(hyper: &Hyper, count: usize) -> Result<Vec<Option<usize>>> {
    windows(hyper, count, hyper.count("attention.sliding_window")?, 2)
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<GptOss> {
    let hyper = &weights.hyper;
    let width = hyper.count("embedding_length")?;
    let count = hyper.count("block_count")?;
    let attention = plain(hyper, width)?;
    let key = attention.key;
    let theta = hyper.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    let rotary = common::rotary(weights, theta, key, key, 0, Pairs::Halves)?;
    // Where the file doesn't say, what llama.cpp's graph has.
    let constant = |key, default| Ok::<_, Error>(hyper.optional_number(key)?.unwrap_or(default) as f32);
    let activation = Activation::Clamped {
        alpha: constant("swiglu_alpha", 1.702)?,
        limit: constant("swiglu_limit", 7.0)?,
    };
    let router = RouterDefaults { scoring: Scoring::SoftmaxOfChosen, normalize: false };

    let mut layers = Vec::with_capacity(count);
    for (layer, window) in layer_windows(hyper, count)?.into_iter().enumerate() {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let sinks = weights.vector(&name("attn_sinks.weight"), attention.heads)?;
        let attention = Attention { window, sinks: Some(sinks), ..attention.clone() };
        let mixture = common::mixture(weights, layer, width, activation, &router)?;
        layers.push(Layer {
            attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
            attention: SelfAttention::read(weights, layer, width, rotary.clone(), attention)?,
            mixture_norm: weights.vector(&name("post_attention_norm.weight"), width)?,
            mixture: mixture.ok_or_else(|| Error::MissingTensor { tensor: name("ffn_gate_inp.weight") })?,
        });
    }
    Ok(GptOss { ends: Ends::read(weights)?, layers })
}

impl<O: Ops> Graph<O> for GptOss {
    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn values_per_token(&self) -> usize {
        3 * self.ends.width
            + self.layers.iter().map(|layer| layer.attention.values_per_token()).max().unwrap_or(0)
    }

    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()> {
        let w = &self.layers[layer];
        let norm = |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, self.ends.width, Some(gain), self.ends.eps);
        hidden.update(ops, |x, sequences| {
            let a = w.attention.run(ops, &norm(x, &w.attention_norm), sequences, self.ends.eps)?;
            ops.add(x, &a);
            Ok(())
        })?;
        w.mixture.run(ops, hidden, |x| norm(x, &w.mixture_norm), |y| y)
    }
}

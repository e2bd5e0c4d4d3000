//! Gemma 2 and 3: norms before and after attention and MLP, windows in some layers.
//!
//! h ← √width · embedding;  h ← h + norm(attention(norm(h)));  h ← h + norm(MLP(norm(h))). Gemma 2 caps attention's scores and the
//! logits; Gemma 3 norms queries and keys, and turns them faster in layers with a window.

use kernels::rope::Pairs;

use super::Graph;
use super::attention::{SelfAttention, plain, windows};
use super::common;
use super::ends::Ends;
use crate::error::Result;
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::Mlp;
use crate::ops::{Activation, Attention, Ops};
use crate::weights::Weights;

pub(super) struct Gemma {
    ends: Ends,
    layers: Vec<Layer>,
    values_per_token: usize,
}

struct Layer {
    attention_norm: Vec<f32>,
    attention: SelfAttention,
    after_attention: Vec<f32>,
    mlp_norm: Vec<f32>,
    mlp: Mlp,
    after_mlp: Vec<f32>,
}

/// What llama.cpp takes for granted.
struct Constants {
    window: Option<usize>,
    period: usize,
    /// Layers of the largest model, whose scores are scaled as if its heads made up the width.
    largest: usize,
    caps: [Option<f64>; 2],
}

impl Constants {
    fn of(arch: &str) -> Constants {
        match arch {
            "gemma2" => {
                Constants { window: Some(4096), period: 2, largest: 46, caps: [Some(50.0), Some(30.0)] }
            }
            _ => Constants { window: None, period: 6, largest: 62, caps: [None, None] },
        }
    }
}

/// For each layer the window of its attention, where it has one.
pub(super) fn layer_windows(hyper: &Hyper, count: usize) -> Result<Vec<Option<usize>>> {
    let constants = Constants::of(&hyper.arch);
    let window = hyper.optional_count("attention.sliding_window")?.or(constants.window);
    match window.filter(|&window| window > 0) {
        Some(window) => windows(hyper, count, window, constants.period),
        None => Ok(vec![None; count]),
    }
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Gemma> {
    let hyper = &weights.hyper;
    let constants = Constants::of(&hyper.arch);
    let width = hyper.count("embedding_length")?;
    let count = hyper.count("block_count")?;
    let mut attention = plain(hyper, width)?;
    attention.scale = match hyper.optional_number("attention.scale")? {
        Some(scale) => scale as f32,
        None if count == constants.largest => ((width / attention.heads) as f32).powf(-0.5),
        None => attention.scale,
    };
    let cap = |key, default: Option<f64>| -> Result<Option<f32>> {
        let cap = hyper.optional_number(key)?.or(default);
        Ok(cap.filter(|&cap| cap > 0.0).map(|cap| cap as f32))
    };
    attention.soft_cap = cap("attn_logit_softcapping", constants.caps[0])?;
    let theta = hyper.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    let local = hyper.optional_number("rope.freq_base_swa")?;
    let local = local.unwrap_or(if hyper.arch == "gemma2" { theta } else { 10_000.0 });
    let key = attention.key;
    let rotary = common::rotary(weights, theta, key, key, 0, Pairs::Halves)?;
    let rotary_local = common::unscaled_rotary(local, key, key, Pairs::Halves);

    let mut layers = Vec::with_capacity(count);
    for (layer, window) in layer_windows(hyper, count)?.into_iter().enumerate() {
        let gain = |part: &str| weights.vector(&format!("blk.{layer}.{part}.weight"), width);
        let rotary = if window.is_some() { &rotary_local } else { &rotary };
        let attention = Attention { window, ..attention.clone() };
        layers.push(Layer {
            attention_norm: gain("attn_norm")?,
            attention: SelfAttention::read(weights, layer, width, rotary.clone(), attention)?,
            after_attention: gain("post_attention_norm")?,
            mlp_norm: gain("ffn_norm")?,
            mlp: common::mlp(weights, layer, width, Activation::GeluTanh)?,
            after_mlp: gain("post_ffw_norm")?,
        });
    }
    let widest = |layer: &Layer| layer.attention.values_per_token().max(2 * layer.mlp.gate.rows.len());
    Ok(Gemma {
        ends: Ends::read_gemma(weights, cap("final_logit_softcapping", constants.caps[1])?)?,
        values_per_token: 3 * width + layers.iter().map(widest).max().unwrap_or(0),
        layers,
    })
}

impl<O: Ops> Graph<O> for Gemma {
    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn values_per_token(&self) -> usize {
        self.values_per_token
    }

    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()> {
        let w = &self.layers[layer];
        let norm = |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, self.ends.width, Some(gain), self.ends.eps);
        hidden.update(ops, |x, sequences| {
            let a = w.attention.run(ops, &norm(x, &w.attention_norm), sequences, self.ends.eps)?;
            ops.add(x, &norm(&a, &w.after_attention));
            let y = w.mlp.run(ops, &norm(x, &w.mlp_norm))?;
            ops.add(x, &norm(&y, &w.after_mlp));
            Ok(())
        })
    }
}

//! Llama's graph and those that differ from it in options: Mistral, Mixtral, Qwen 2 and 3.
//!
//! h ← h + Wo · attention(norm(h));  h ← h + MLP(norm(h)), where the MLP may be a mixture of experts.

use kernels::rope::Pairs;

use super::Graph;
use super::common::{self, RouterDefaults};
use crate::error::Result;
use crate::hidden::Hidden;
use crate::mixture::{Mixture, Mlp, Scoring};
use crate::ops::{Activation, Attention, Ops, Rotary};
use crate::weights::{Linear, Weights};

pub(super) struct Llama {
    width: usize,
    eps: f64,
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    values_per_token: usize,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    /// Gains for each head of queries and keys (Qwen 3).
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    rotary: Rotary,
    attention: Attention,
    o: Linear,
    mlp_norm: Vec<f32>,
    mlp: FeedForward,
}

enum FeedForward {
    Dense(Mlp),
    Experts(Box<Mixture>),
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Llama> {
    let hyper = &weights.hyper;
    let width = hyper.count("embedding_length")?;
    let count = hyper.count("block_count")?;
    let heads = hyper.count("attention.head_count")?;
    let kv_heads = hyper.optional_count("attention.head_count_kv")?.unwrap_or(heads);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(hyper.error("attention.head_count_kv", format!("is {kv_heads} for {heads} heads")));
    }
    let key = hyper.optional_count("attention.key_length")?.unwrap_or(width / heads);
    let value = hyper.optional_count("attention.value_length")?.unwrap_or(key);
    let rotated = hyper.optional_count("rope.dimension_count")?.unwrap_or(key);
    let theta = hyper.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    // llama.cpp's converter permutes queries and keys for `llama` only.
    let order = if hyper.arch == "llama" { Pairs::Neighbours } else { Pairs::Halves };
    let rotary = common::rotary(weights, theta, rotated, key, 0, order)?;
    let attention = Attention {
        heads,
        kv_heads,
        key,
        value,
        scale: hyper.optional_number("attention.scale")?.unwrap_or(1.0 / (key as f64).sqrt()) as f32,
        window: hyper.optional_count("attention.sliding_window")?.filter(|&window| window > 0),
        soft_cap: None,
        sinks: None,
    };
    let router = RouterDefaults { scoring: Scoring::Softmax, normalize: true };

    let mut layers = Vec::with_capacity(count);
    let mut inner = 0;
    for layer in 0..count {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mlp = match common::mixture(weights, layer, width, Activation::Silu, &router)? {
            Some(mixture) => FeedForward::Experts(Box::new(mixture)),
            None => FeedForward::Dense(common::mlp(weights, layer, width, Activation::Silu)?),
        };
        if let FeedForward::Dense(mlp) = &mlp {
            inner = inner.max(mlp.gate.rows.len());
        }
        let q_norm = weights.optional_vector(&name("attn_q_norm.weight"), key)?;
        let k_norm = weights.optional_vector(&name("attn_k_norm.weight"), key)?;
        layers.push(Layer {
            attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
            q: weights.linear(&name("attn_q"), heads * key, width)?,
            k: weights.linear(&name("attn_k"), kv_heads * key, width)?,
            v: weights.linear(&name("attn_v"), kv_heads * value, width)?,
            qk_norm: q_norm.zip(k_norm),
            rotary: rotary.clone(),
            attention: attention.clone(),
            o: weights.linear(&name("attn_output"), width, heads * value)?,
            mlp_norm: weights.vector(&name("ffn_norm.weight"), width)?,
            mlp,
        });
    }
    let vocab = common::vocabulary(weights)?;
    Ok(Llama {
        width,
        eps: hyper.number("attention.layer_norm_rms_epsilon")?,
        embedding: weights.linear("token_embd", vocab, width)?,
        layers,
        norm: weights.vector("output_norm.weight", width)?,
        head: common::head(weights, vocab, width)?,
        values_per_token: 3 * width + (2 * inner).max(heads * (2 * key + value) + 2 * kv_heads * key),
    })
}

impl<O: Ops> Graph<O> for Llama {
    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn values_per_token(&self) -> usize {
        self.values_per_token
    }

    fn embed(&self, ops: &O, tokens: &[u32]) -> Result<O::Tensor> {
        ops.embed(&self.embedding, tokens)
    }

    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()> {
        let w = &self.layers[layer];
        let norm = |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, self.width, Some(gain), self.eps);
        hidden.update(ops, |x, sequences| {
            let n = norm(x, &w.attention_norm);
            let (mut q, mut k, v) = (ops.linear(&n, &w.q)?, ops.linear(&n, &w.k)?, ops.linear(&n, &w.v)?);
            if let Some((q_gain, k_gain)) = &w.qk_norm {
                q = ops.rms_norm(&q, w.attention.key, Some(q_gain), self.eps);
                k = ops.rms_norm(&k, w.attention.key, Some(k_gain), self.eps);
            }
            ops.rotate(&mut q, &w.rotary, sequences);
            ops.rotate(&mut k, &w.rotary, sequences);
            let a = ops.attend(&q, &k, &v, &w.attention, sequences);
            ops.add(x, &ops.linear(&a, &w.o)?);
            Ok(())
        })?;
        match &w.mlp {
            FeedForward::Dense(mlp) => hidden.update(ops, |x, _| {
                let y = mlp.run(ops, &norm(x, &w.mlp_norm))?;
                ops.add(x, &y);
                Ok(())
            }),
            FeedForward::Experts(mixture) => mixture.run(ops, hidden, |x| norm(x, &w.mlp_norm), |y| y),
        }
    }

    fn finish(&self, ops: &O, x: &O::Tensor) -> O::Tensor {
        ops.rms_norm(x, self.width, Some(&self.norm), self.eps)
    }

    fn head(&self) -> &Linear {
        &self.head
    }
}

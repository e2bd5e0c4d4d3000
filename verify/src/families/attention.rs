//! Grouped-query attention as most families have it.

use crate::error::Result;
use crate::hyper::Hyper;
use crate::ops::{Attention, Ops, Rotary, Sequences};
use crate::weights::{Linear, Weights};

/// Projections to queries, keys and values, and back from what attention makes of them.
pub(super) struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Gains for each head of queries and keys, where they are normed.
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    rotary: Rotary,
    attention: Attention,
}

impl SelfAttention {
    /// That of a layer; `width` is the hidden states'.
    pub fn read(
        weights: &Weights,
        layer: usize,
        width: usize,
        rotary: Rotary,
        attention: Attention,
    ) -> Result<SelfAttention> {
        let Attention { heads, kv_heads, key, value, .. } = attention;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let q_norm = weights.optional_vector(&name("attn_q_norm.weight"), key)?;
        let k_norm = weights.optional_vector(&name("attn_k_norm.weight"), key)?;
        Ok(SelfAttention {
            q: weights.linear(&name("attn_q"), heads * key, width)?,
            k: weights.linear(&name("attn_k"), kv_heads * key, width)?,
            v: weights.linear(&name("attn_v"), kv_heads * value, width)?,
            o: weights.linear(&name("attn_output"), width, heads * value)?,
            qk_norm: q_norm.zip(k_norm),
            rotary,
            attention,
        })
    }

    /// Attention of normed states.
    pub fn run<O: Ops>(&self, ops: &O, x: &O::Tensor, sequences: &Sequences, eps: f64) -> Result<O::Tensor> {
        let (mut q, mut k, v) = (ops.linear(x, &self.q)?, ops.linear(x, &self.k)?, ops.linear(x, &self.v)?);
        if let Some((q_gain, k_gain)) = &self.qk_norm {
            q = ops.rms_norm(&q, self.attention.key, Some(q_gain), eps);
            k = ops.rms_norm(&k, self.attention.key, Some(k_gain), eps);
        }
        ops.rotate(&mut q, &self.rotary, sequences);
        ops.rotate(&mut k, &self.rotary, sequences);
        ops.linear(&ops.attend(&q, &k, &v, &self.attention, sequences), &self.o)
    }

    /// Values that it holds for each token.
    pub fn values_per_token(&self) -> usize {
        let Attention { heads, kv_heads, key, value, .. } = self.attention;
        heads * (2 * key + value) + 2 * kv_heads * (key + value)
    }
}

/// Attention as the hyper-parameters state it, for all layers alike: no window, no cap, no sinks.
pub(super) fn plain(hyper: &Hyper, width: usize) -> Result<Attention> {
    let heads = hyper.count("attention.head_count")?;
    let kv_heads = hyper.optional_count("attention.head_count_kv")?.unwrap_or(heads);
    let key = hyper.optional_count("attention.key_length")?.unwrap_or(width / heads);
    let value = hyper.optional_count("attention.value_length")?.unwrap_or(key);
    let attention = Attention {
        heads,
        kv_heads,
        key,
        value,
        scale: 1.0 / (key as f32).sqrt(),
        window: None,
        soft_cap: None,
        sinks: None,
    };
    check_heads(hyper, &attention)?;
    Ok(attention)
}

/// Whether each key head serves as many query heads as the others.
pub(super) fn check_heads(hyper: &Hyper, attention: &Attention) -> Result<()> {
    let Attention { heads, kv_heads, .. } = *attention;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(hyper.error("attention.head_count_kv", format!("is {kv_heads} for {heads} heads")));
    }
    Ok(())
}

/// For each layer the window of its attention, where it has one: stated for each, or for all but every n-th (`period` if that
/// isn't stated; all if n is 0).
pub(super) fn windows(
    hyper: &Hyper,
    layers: usize,
    size: usize,
    period: usize,
) -> Result<Vec<Option<usize>>> {
    let key = "attention.sliding_window_pattern";
    let has_window = match hyper.flags(key, layers)? {
        Some(flags) => flags,
        None => {
            let period = hyper.optional_count(key)?.unwrap_or(period);
            (1..=layers).map(|n| period == 0 || !n.is_multiple_of(period)).collect()
        }
    };
    Ok(has_window.into_iter().map(|has| has.then_some(size)).collect())
}

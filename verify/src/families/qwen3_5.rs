//! Qwen 3.5: gated delta networks (<https://arxiv.org/abs/2412.06464>) in most layers, attention with a gated output in the others.
//!
//! A delta network's state S is a matrix for each value head that maps keys to values. Token by token, with decay α and rate β:
//!
//! S ← α · S;  S ← S + k ⊗ β · (v − kᵀS);  y = qᵀS
//!
//! where [q | k | v] = silu(convolution(Wqkv · x)), q and k of length 1, α = exp(−A · softplus(Wα · x + bias)), β = σ(Wβ · x), and the
//! layer's output is Wo · (norm(y) · silu(Wz · x)).

use kernels::rope::Pairs;

use super::Graph;
use super::attention;
use super::common::{self, FeedForward, RouterDefaults};
use super::ends::Ends;
use crate::error::Result;
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::Scoring;
use crate::ops::{Activation, Attention, DeltaRule, Ops, Rotary, Sequences};
use crate::weights::{Linear, Weights};

/// ε under the root of queries' and keys' lengths, in every implementation.
const LENGTH_EPS: f64 = 1e-6;

pub(super) struct Qwen35 {
    ends: Ends,
    layers: Vec<Layer>,
    values_per_token: usize,
}

struct Layer {
    norm: Vec<f32>,
    mixer: Mixer,
    mlp_norm: Vec<f32>,
    mlp: FeedForward,
}

/// What mixes the tokens of a sequence.
enum Mixer {
    Delta(Box<DeltaNetwork>),
    Attention(Box<GatedAttention>),
}

struct DeltaNetwork {
    qkv: Linear,
    /// [taps, columns of `qkv`], the last for the token itself.
    taps: Vec<f32>,
    alpha: Linear,
    beta: Linear,
    rule: DeltaRule,
    norm: Vec<f32>,
    gate: Linear,
    out: Linear,
}

struct GatedAttention {
    /// Each query head, followed by its gate.
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    rotary: Rotary,
    attention: Attention,
    out: Linear,
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Qwen35> {
    let hyper = &weights.hyper;
    let width = hyper.count("embedding_length")?;
    let router = RouterDefaults { scoring: Scoring::Softmax, normalize: true };
    let count = common::blocks(hyper)?;
    let mut layers = Vec::with_capacity(count);
    for (layer, has_state) in has_state(hyper, count)?.into_iter().enumerate() {
        let name = |part: &str| format!("blk.{layer}.{part}");
        layers.push(Layer {
            norm: weights.vector(&name("attn_norm.weight"), width)?,
            mixer: match has_state {
                true => Mixer::Delta(Box::new(DeltaNetwork::read(weights, layer, width)?)),
                false => Mixer::Attention(Box::new(GatedAttention::read(weights, layer, width)?)),
            },
            mlp_norm: weights.vector(&name("post_attention_norm.weight"), width)?,
            mlp: FeedForward::read(weights, layer, width, Activation::Silu, &router)?,
        });
    }
    let held = |layer: &Layer| layer.mixer.values_per_token().max(2 * layer.mlp.inner());
    Ok(Qwen35 {
        ends: Ends::read(weights)?,
        values_per_token: 3 * width + layers.iter().map(held).max().unwrap_or(0),
        layers,
    })
}

/// For each layer whether it is a delta network: stated, or all but every n-th.
pub(super) fn has_state(hyper: &Hyper, layers: usize) -> Result<Vec<bool>> {
    if let Some(flags) = hyper.flags("attention.recurrent_layers", layers)? {
        return Ok(flags);
    }
    let interval = hyper.optional_count("full_attention_interval")?.unwrap_or(4);
    Ok((1..=layers).map(|n| !n.is_multiple_of(interval)).collect())
}

/// Sizes of the delta networks, the same in all layers.
pub(super) struct DeltaSizes {
    pub key: usize,
    pub key_heads: usize,
    /// Of all value heads together.
    pub values: usize,
    pub value_heads: usize,
    /// Tokens that the short convolution sees.
    pub taps: usize,
}

impl DeltaSizes {
    pub fn read(hyper: &Hyper) -> Result<DeltaSizes> {
        let (key, key_heads) = (hyper.count("ssm.state_size")?, hyper.count("ssm.group_count")?);
        let (values, value_heads) = (hyper.count("ssm.inner_size")?, hyper.count("ssm.time_step_rank")?);
        if !values.is_multiple_of(value_heads) || !value_heads.is_multiple_of(key_heads) {
            let problem = format!("is {values} for {value_heads} value and {key_heads} key heads");
            return Err(hyper.error("ssm.inner_size", problem));
        }
        let taps = hyper.count("ssm.conv_kernel")?;
        Ok(DeltaSizes { key, key_heads, values, value_heads, taps })
    }
}

impl DeltaNetwork {
    fn read(weights: &Weights, layer: usize, width: usize) -> Result<DeltaNetwork> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let DeltaSizes { key, key_heads, values, value_heads, taps: count } =
            DeltaSizes::read(&weights.hyper)?;
        let columns = 2 * key_heads * key + values;
        let filters = weights.linear(&name("ssm_conv1d"), columns, count)?;
        let mut by_column = vec![0.0; columns * count];
        weights.rows(filters.tensor, filters.rows, &mut by_column)?;
        let tap = |i: usize| by_column.iter().skip(i).step_by(count).copied();
        Ok(DeltaNetwork {
            qkv: weights.linear(&name("attn_qkv"), columns, width)?,
            taps: (0..count).flat_map(tap).collect(),
            alpha: weights.linear(&name("ssm_alpha"), value_heads, width)?,
            beta: weights.linear(&name("ssm_beta"), value_heads, width)?,
            rule: DeltaRule {
                key_heads,
                value_heads,
                key,
                value: values / value_heads,
                rates: weights.vector(&name("ssm_a"), value_heads)?,
                biases: weights.vector(&name("ssm_dt.bias"), value_heads)?,
            },
            norm: weights.vector(&name("ssm_norm.weight"), values / value_heads)?,
            gate: weights.linear(&name("attn_gate"), values, width)?,
            out: weights.linear(&name("ssm_out"), width, values)?,
        })
    }

    fn run<O: Ops>(&self, ops: &O, x: &O::Tensor, sequences: &Sequences, eps: f64) -> Result<O::Tensor> {
        let DeltaRule { key_heads, value_heads, key, value, .. } = self.rule;
        let (keys, values) = (key_heads * key, value_heads * value);
        let qkv = ops.short_convolution(&ops.linear(x, &self.qkv)?, &self.taps, sequences);
        // A vector of length 1 is one whose root mean square is 1, over √n.
        let unit = 1.0 / (key as f32).sqrt();
        let of_length = |columns, length: f32| {
            let eps = LENGTH_EPS / key as f64;
            let mut x = ops.rms_norm(&ops.columns(&qkv, columns), key, None, eps);
            ops.scale(&mut x, length * unit);
            x
        };
        // Queries carry the scale of attention's scores.
        let (q, k) = (of_length(0..keys, unit), of_length(keys..2 * keys, 1.0));
        let v = ops.columns(&qkv, 2 * keys..2 * keys + values);
        let (a, b) = (ops.linear(x, &self.alpha)?, ops.linear(x, &self.beta)?);
        let y = ops.delta_rule(&q, &k, &v, &a, &b, &self.rule, sequences);
        let y = ops.rms_norm(&y, value, Some(&self.norm), eps);
        ops.linear(&ops.gated(ops.linear(x, &self.gate)?, &y, Activation::Silu), &self.out)
    }
}

impl GatedAttention {
    fn read(weights: &Weights, layer: usize, width: usize) -> Result<GatedAttention> {
        let hyper = &weights.hyper;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let attention = attention::plain(hyper, width)?;
        let Attention { heads, kv_heads, key, value, .. } = attention;
        let rotated = hyper.count("rope.dimension_count")?;
        Ok(GatedAttention {
            q: weights.linear(&name("attn_q"), 2 * heads * key, width)?,
            k: weights.linear(&name("attn_k"), kv_heads * key, width)?,
            v: weights.linear(&name("attn_v"), kv_heads * value, width)?,
            q_norm: weights.vector(&name("attn_q_norm.weight"), key)?,
            k_norm: weights.vector(&name("attn_k_norm.weight"), key)?,
            rotary: common::rotary(weights, hyper.number("rope.freq_base")?, rotated, key, 0, Pairs::Halves)?,
            out: weights.linear(&name("attn_output"), width, heads * value)?,
            attention,
        })
    }

    fn run<O: Ops>(&self, ops: &O, x: &O::Tensor, sequences: &Sequences, eps: f64) -> Result<O::Tensor> {
        let Attention { heads, key, .. } = self.attention;
        let gated = ops.linear(x, &self.q)?;
        let gate = ops.head_columns(&gated, heads, key..2 * key);
        let mut q = ops.rms_norm(&ops.head_columns(&gated, heads, 0..key), key, Some(&self.q_norm), eps);
        let mut k = ops.rms_norm(&ops.linear(x, &self.k)?, key, Some(&self.k_norm), eps);
        ops.rotate(&mut q, &self.rotary, sequences);
        ops.rotate(&mut k, &self.rotary, sequences);
        let mut a = ops.attend(&q, &k, &ops.linear(x, &self.v)?, &self.attention, sequences);
        ops.sigmoid_gate(&mut a, &gate);
        ops.linear(&a, &self.out)
    }
}

impl Mixer {
    fn values_per_token(&self) -> usize {
        match self {
            Mixer::Delta(delta) => 3 * delta.qkv.rows.len() + 3 * delta.gate.rows.len(),
            Mixer::Attention(attention) => {
                2 * attention.q.rows.len() + 3 * attention.k.rows.len() + 2 * attention.v.rows.len()
            }
        }
    }
}

impl<O: Ops> Graph<O> for Qwen35 {
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
            let n = norm(x, &w.norm);
            let y = match &w.mixer {
                Mixer::Delta(delta) => delta.run(ops, &n, sequences, self.ends.eps)?,
                Mixer::Attention(attention) => attention.run(ops, &n, sequences, self.ends.eps)?,
            };
            ops.add(x, &y);
            Ok(())
        })?;
        w.mlp.run(ops, hidden, |x| norm(x, &w.mlp_norm), |y| y)
    }
}

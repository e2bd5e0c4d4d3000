//! Gemma 4: norms before and after attention and MLP, windows in most layers.
//!
//! h ← √width · embedding;  h ← h + norm(attention(norm(h)));  h ← h + norm(MLP(norm(h)));  in small models then
//! h ← h + norm(W · (gelu(W′ · h) ∘ what the layer knows of the token);  h ← the layer's factor · h.
//!
//! Values are normed too, without a gain, and may be the keys. Layers with full attention have larger heads, of which only the
//! first frequencies turn. The last layers may attend with their own queries to keys and values of the last layer before them that
//! has the same kind of attention. Large models have experts beside the MLP, between norms of their own; the norm before the MLP's sum
//! with the stream is then that of both.

use std::ops::Range;

use kernels::rope::Pairs;

use super::Graph;
use super::attention::{check_heads, windows};
use super::common::{self, RouterDefaults};
use super::ends::Ends;
use crate::error::Result;
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::{Mixture, Mlp, Scoring};
use crate::ops::{Activation, Attention, Ops, Rotary, Sequences};
use crate::store::Store;
use crate::weights::{Linear, Weights};

pub(super) struct Gemma4 {
    ends: Ends,
    per_layer: Option<PerLayer>,
    layers: Vec<Layer>,
    values_per_token: usize,
}

/// What each layer knows of a token: a part of a row of a table, and a projection of the token's embedding.
struct PerLayer {
    width: usize,
    table: Linear,
    projection: Linear,
    norm: Vec<f32>,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Linear,
    q_norm: Vec<f32>,
    keys: Keys,
    rotary: Rotary,
    attention: Attention,
    o: Linear,
    after_attention: Vec<f32>,
    mlp_norm: Vec<f32>,
    mlp: Mlp,
    experts: Option<Experts>,
    after_mlp: Vec<f32>,
    token: Option<Token>,
    factor: f32,
}

/// Where a layer's keys and values come from.
enum Keys {
    /// Its own, values being keys before their norm where they have no projection.
    Own {
        k: Linear,
        v: Option<Linear>,
        norm: Vec<f32>,
        /// A later layer needs them.
        kept: bool,
    },
    /// Those of that layer.
    Of(usize),
}

/// Experts beside the MLP, with norms around both.
struct Experts {
    before: Vec<f32>,
    /// Gain of the router's norm.
    router: Vec<f32>,
    mixture: Mixture,
    after: Vec<f32>,
    after_mlp: Vec<f32>,
}

/// How a layer takes in what it knows of the token.
struct Token {
    gate: Linear,
    projection: Linear,
    after: Vec<f32>,
}

/// The attention of each layer and, if it has no keys and values of its own, the layer whose it takes: the last before the
/// sharing ones that has the same kind of attention.
pub(super) fn attentions(hyper: &Hyper, count: usize) -> Result<Vec<(Attention, Option<usize>)>> {
    let heads = hyper.count("attention.head_count")?;
    let kv_heads = hyper.counts("attention.head_count_kv", count)?;
    let windows = windows(hyper, count, hyper.count("attention.sliding_window")?, 6)?;
    let [key, local_key] = [hyper.count("attention.key_length")?, hyper.count("attention.key_length_swa")?];
    let first_shared = count.saturating_sub(hyper.optional_count("attention.shared_kv_layers")?.unwrap_or(0));
    let source = |layer: usize| {
        let same = |&other: &usize| windows[other].is_some() == windows[layer].is_some();
        let problem = || hyper.error("attention.shared_kv_layers", "leaves no layer to share with");
        (0..first_shared).rev().find(same).ok_or_else(problem)
    };
    let attention = |(layer, &window): (usize, &Option<usize>)| {
        let key = if window.is_some() { local_key } else { key };
        let attention = Attention {
            heads,
            kv_heads: kv_heads[layer],
            key,
            value: key,
            scale: 1.0,
            window,
            soft_cap: None,
            sinks: None,
        };
        check_heads(hyper, &attention)?;
        Ok((attention, if layer < first_shared { None } else { Some(source(layer)?) }))
    };
    windows.iter().enumerate().map(attention).collect()
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Gemma4> {
    let hyper = &weights.hyper;
    let width = hyper.count("embedding_length")?;
    let count = hyper.count("block_count")?;
    let attentions = attentions(hyper, count)?;
    let theta = hyper.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    let local = hyper.optional_number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let [key, local_key] = [hyper.count("attention.key_length")?, hyper.count("attention.key_length_swa")?];
    let rotary = common::rotary(weights, theta, key, key, 0, Pairs::Halves)?;
    let rotary_local = common::unscaled_rotary(local, local_key, local_key, Pairs::Halves);
    let per_layer = match hyper.optional_count("embedding_length_per_layer_input")?.filter(|&n| n > 0) {
        Some(one) => Some(read_per_layer(weights, one, count, width)?),
        None => None,
    };

    let router = RouterDefaults { scoring: Scoring::Softmax, normalize: true };
    let mut layers = Vec::with_capacity(count);
    for (layer, (attention, source)) in attentions.iter().cloned().enumerate() {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let gain = |part: &str| weights.vector(&name(&format!("{part}.weight")), width);
        let experts = match common::mixture(weights, layer, width, Activation::GeluTanh, &router)? {
            Some(mixture) => {
                let scale = weights.vector(&name("ffn_gate_inp.scale"), width)?;
                Some(Experts {
                    before: gain("pre_ffw_norm_2")?,
                    router: scale.into_iter().map(|scale| scale / (width as f32).sqrt()).collect(),
                    mixture,
                    after: gain("post_ffw_norm_2")?,
                    after_mlp: gain("post_ffw_norm_1")?,
                })
            }
            None => None,
        };
        let Attention { heads, kv_heads, key, window, .. } = attention;
        let keys = match source {
            Some(source) => Keys::Of(source),
            None => {
                let rows = kv_heads * key;
                let v = weights.find(&name("attn_v.weight"));
                Keys::Own {
                    k: weights.linear(&name("attn_k"), rows, width)?,
                    v: v.map(|_| weights.linear(&name("attn_v"), rows, width)).transpose()?,
                    norm: weights.vector(&name("attn_k_norm.weight"), key)?,
                    kept: attentions.iter().any(|(_, source)| *source == Some(layer)),
                }
            }
        };
        let token = match &per_layer {
            Some(PerLayer { width: one, .. }) => Some(Token {
                gate: weights.linear(&name("inp_gate"), *one, width)?,
                projection: weights.linear(&name("proj"), width, *one)?,
                after: gain("post_norm")?,
            }),
            None => None,
        };
        let factor = weights.optional_vector(&name("layer_output_scale.weight"), 1)?;
        layers.push(Layer {
            attention_norm: gain("attn_norm")?,
            q: weights.linear(&name("attn_q"), heads * key, width)?,
            q_norm: weights.vector(&name("attn_q_norm.weight"), key)?,
            keys,
            rotary: if window.is_some() { rotary_local.clone() } else { rotary.clone() },
            o: weights.linear(&name("attn_output"), width, heads * key)?,
            attention,
            after_attention: gain("post_attention_norm")?,
            mlp_norm: gain("ffn_norm")?,
            mlp: common::mlp(weights, layer, width, Activation::GeluTanh)?,
            experts,
            after_mlp: gain("post_ffw_norm")?,
            token,
            factor: factor.map_or(1.0, |factor| factor[0]),
        });
    }
    let widest = |layer: &Layer| {
        let Attention { heads, kv_heads, key, .. } = layer.attention;
        (3 * heads * key + 4 * kv_heads * key).max(2 * layer.mlp.gate.rows.len())
    };
    let table = per_layer.as_ref().map_or(0, |per_layer| per_layer.table.columns);
    let soft_cap = hyper.optional_number("final_logit_softcapping")?.unwrap_or(30.0);
    Ok(Gemma4 {
        ends: Ends::read_gemma(weights, (soft_cap > 0.0).then_some(soft_cap as f32))?,
        per_layer,
        values_per_token: 4 * width + table + layers.iter().map(widest).max().unwrap_or(0),
        layers,
    })
}

fn read_per_layer(weights: &Weights, one: usize, layers: usize, width: usize) -> Result<PerLayer> {
    Ok(PerLayer {
        width: one,
        table: weights.linear("per_layer_token_embd", common::vocabulary(weights)?, layers * one)?,
        projection: weights.linear("per_layer_model_proj", layers * one, width)?,
        norm: weights.vector("per_layer_proj_norm.weight", one)?,
    })
}

impl Gemma4 {
    /// Queries' attention, to keys and values that are made here or were kept in `store`, where `rows` of it are these tokens'.
    fn attend<O: Ops>(
        &self,
        ops: &O,
        w: &Layer,
        x: &O::Tensor,
        sequences: &Sequences,
        store: Option<&mut Store>,
        rows: Range<usize>,
    ) -> Result<O::Tensor> {
        let Attention { kv_heads, key, .. } = w.attention;
        let mut q = ops.rms_norm(&ops.linear(x, &w.q)?, key, Some(&w.q_norm), self.ends.eps);
        ops.rotate(&mut q, &w.rotary, sequences);
        let (k, v) = match (&w.keys, store) {
            (Keys::Own { k, v, norm, .. }, store) => {
                let keys = ops.linear(x, k)?;
                let values = v.as_ref().map(|v| ops.linear(x, v)).transpose()?;
                let values = ops.rms_norm(values.as_ref().unwrap_or(&keys), key, None, self.ends.eps);
                let mut keys = ops.rms_norm(&keys, key, Some(norm), self.ends.eps);
                ops.rotate(&mut keys, &w.rotary, sequences);
                if let Some(store) = store {
                    store.write(rows.start, &ops.download(ops.join_heads(&keys, &values, 1, false))?)?;
                }
                (keys, values)
            }
            (Keys::Of(_), Some(store)) => {
                let mut both = vec![0.0; rows.len() * store.width];
                store.read(rows, &mut both)?;
                let both = ops.upload(both, store.width);
                let half = kv_heads * key;
                (ops.columns(&both, 0..half), ops.columns(&both, half..2 * half))
            }
            (Keys::Of(source), None) => unreachable!("layer {source} runs before the layers that need it"),
        };
        ops.linear(&ops.attend(&q, &k, &v, &w.attention, sequences), &w.o)
    }

    /// What a layer knows of some tokens: norm(projection · √width · embedding / √width) and the layer's part of their rows in
    /// the table, together of unit variance.
    fn known<O: Ops>(&self, ops: &O, p: &PerLayer, layer: usize, tokens: &[u32]) -> Result<O::Tensor> {
        let part = layer * p.width..(layer + 1) * p.width;
        let projected =
            ops.linear(&ops.embed(&self.ends.embedding, tokens)?, &p.projection.part(part.clone()))?;
        let mut known = ops.rms_norm(&projected, p.width, Some(&p.norm), self.ends.eps);
        let mut row = ops.columns(&ops.embed(&p.table, tokens)?, part);
        ops.scale(&mut row, (p.width as f32).sqrt());
        ops.add(&mut known, &row);
        ops.scale(&mut known, 0.5f32.sqrt());
        Ok(known)
    }
}

impl<O: Ops> Graph<O> for Gemma4 {
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
        let mut store = match w.keys {
            Keys::Own { kept: true, .. } => {
                let width = 2 * w.attention.kv_heads * w.attention.key;
                Some((layer, hidden.space.store(hidden.store.rows, width)?))
            }
            Keys::Own { kept: false, .. } => None,
            Keys::Of(source) => hidden.kept.remove_entry(&source),
        };
        let tokens = hidden.tokens.clone();
        let mut next = 0;
        hidden.update(ops, |x, sequences| {
            let rows = next..next + sequences.tokens();
            next = rows.end;
            let store = store.as_mut().map(|(_, store)| store);
            let n = norm(x, &w.attention_norm);
            let a = self.attend(ops, w, &n, sequences, store, rows.clone())?;
            ops.add(x, &norm(&a, &w.after_attention));
            Ok(())
        })?;
        hidden.kept.extend(store);

        let experts = match &w.experts {
            Some(e) => {
                let router = |x: &O::Tensor| ops.rms_norm(x, self.ends.width, Some(&e.router), self.ends.eps);
                let sum = e.mixture.sum(ops, hidden, |x| (norm(x, &e.before), Some(router(x))))?;
                Some((e, sum))
            }
            None => None,
        };
        let mut next = 0;
        hidden.update(ops, |x, sequences| {
            let rows = next..next + sequences.tokens();
            next = rows.end;
            let mut y = w.mlp.run(ops, &norm(x, &w.mlp_norm))?;
            if let Some((e, sum)) = &experts {
                y = norm(&y, &e.after_mlp);
                ops.add(&mut y, &norm(&ops.take(sum, rows.clone())?, &e.after));
            }
            ops.add(x, &norm(&y, &w.after_mlp));
            if let (Some(token), Some(per_layer)) = (&w.token, &self.per_layer) {
                let known = self.known(ops, per_layer, layer, &tokens[rows])?;
                let gated = ops.gated(ops.linear(x, &token.gate)?, &known, Activation::GeluTanh);
                let y = ops.linear(&gated, &token.projection)?;
                ops.add(x, &norm(&y, &token.after));
            }
            ops.scale(x, w.factor);
            Ok(())
        })
    }
}

//! Multi-head latent attention (<https://arxiv.org/abs/2405.04434>): DeepSeek V2 and V3, Mistral 4, GLM 5.
//!
//! Keys and values of all heads come out of one latent c, and the rotated dimensions of keys are the same for all heads:
//!
//! q = [q_nope | rope(q_pe)] per head,  c = norm(Wc · x),  k = [Wk · c | rope(k_pe)],  v = Wv · c
//!
//! This is the naive form, which computes k and v of each head: over long sequences that is less work than the absorbed one
//! (q · Wk against c itself), for which GGUF's tensors are cut. Both are the same mathematics; a test here holds them together.

use kernels::rope::Pairs;

use super::Graph;
use super::common::{self, FeedForward, RouterDefaults};
use super::ends::Ends;
use crate::error::{Error, Result};
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::Scoring;
use crate::ops::{Activation, Attention, Ops, Rotary, Sequences};
use crate::weights::{Linear, Stack, Weights};

pub(super) struct Mla {
    ends: Ends,
    /// ε of the latents' norms.
    latent_eps: f64,
    latent: usize,
    layers: Vec<Layer>,
    /// Of queries: the last dimensions of each head.
    query_rotary: Rotary,
    /// Of keys: one head of rotated dimensions only.
    key_rotary: Rotary,
    attention: Attention,
    temperature: Option<Temperature>,
    /// Tokens that an indexer selects (DeepSeek Sparse Attention): up to so many, attention is the plain one.
    selected: Option<usize>,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Query,
    /// To the latent and the rotated dimensions of keys.
    kv_a: Linear,
    kv_a_norm: Vec<f32>,
    /// [heads, latent, nope].
    k_b: Stack,
    /// [heads, value, latent].
    v_b: Stack,
    o: Linear,
    mlp_norm: Vec<f32>,
    mlp: FeedForward,
}

enum Query {
    Direct(Linear),
    Latent { a: Linear, norm: Vec<f32>, b: Linear },
}

/// Queries grow with their position p by 1 + β · ln(1 + ⌊p / length⌋) (Llama 4, Mistral 4).
struct Temperature {
    beta: f64,
    length: usize,
}

impl Temperature {
    fn of(&self, sequences: &Sequences) -> Vec<f32> {
        let factor = |position: usize| (1.0 + self.beta * ((1 + position / self.length) as f64).ln()) as f32;
        sequences.lengths.iter().flat_map(|&length| (0..length).map(factor)).collect()
    }
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Mla> {
    let hyper = &weights.hyper;
    let width = hyper.count("embedding_length")?;
    let heads = hyper.count("attention.head_count")?;
    let latent = hyper.count("attention.kv_lora_rank")?;
    let (key, value) = (hyper.count("attention.key_length_mla")?, hyper.count("attention.value_length_mla")?);
    let rotated = hyper.count("rope.dimension_count")?;
    let Some(nope) = key.checked_sub(rotated) else {
        return Err(hyper.error("attention.key_length_mla", format!("is {key}, less than {rotated} rotated")));
    };
    let theta = hyper.number("rope.freq_base")?;
    let (multiplier, scale) = yarn_scales(hyper)?;
    let rotary = |head, offset| -> Result<Rotary> {
        let rotary = common::rotary(weights, theta, rotated, head, offset, Pairs::Neighbours)?;
        Ok(Rotary { multiplier: multiplier.unwrap_or(rotary.multiplier), ..rotary })
    };
    let attention = Attention {
        heads,
        kv_heads: heads,
        key,
        value,
        scale: (scale / (key as f64).sqrt()) as f32,
        window: None,
        soft_cap: None,
        sinks: None,
    };
    let temperature = match hyper.optional_number("attention.temperature_scale")?.filter(|&beta| beta != 0.0)
    {
        Some(beta) => Some(Temperature { beta, length: hyper.count("attention.temperature_length")? }),
        None => None,
    };
    let scoring = if hyper.arch == "glm-dsa" { Scoring::Sigmoid } else { Scoring::Softmax };
    let router = RouterDefaults { scoring, normalize: false };

    let mut layers = Vec::new();
    for layer in 0..common::blocks(hyper)? {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let q = match hyper.optional_count("attention.q_lora_rank")? {
            Some(rank) if rank > 0 => Query::Latent {
                a: weights.linear(&name("attn_q_a"), rank, width)?,
                norm: weights.vector(&name("attn_q_a_norm.weight"), rank)?,
                b: weights.linear(&name("attn_q_b"), heads * key, rank)?,
            },
            _ => Query::Direct(weights.linear(&name("attn_q"), heads * key, width)?),
        };
        layers.push(Layer {
            attention_norm: weights.vector(&name("attn_norm.weight"), width)?,
            q,
            kv_a: weights.linear(&name("attn_kv_a_mqa"), latent + rotated, width)?,
            kv_a_norm: weights.vector(&name("attn_kv_a_norm.weight"), latent)?,
            k_b: weights.stack(&name("attn_k_b"), heads, latent, nope)?,
            v_b: weights.stack(&name("attn_v_b"), heads, value, latent)?,
            o: weights.linear(&name("attn_output"), width, heads * value)?,
            mlp_norm: weights.vector(&name("ffn_norm.weight"), width)?,
            mlp: FeedForward::read(weights, layer, width, Activation::Silu, &router)?,
        });
    }
    let ends = Ends::read(weights)?;
    Ok(Mla {
        latent_eps: hyper.optional_number("attention.latent_layer_norm_rms_epsilon")?.unwrap_or(ends.eps),
        ends,
        latent,
        layers,
        query_rotary: rotary(key, nope)?,
        key_rotary: rotary(rotated, 0)?,
        attention,
        temperature,
        selected: hyper.optional_count("attention.indexer.top_k")?,
    })
}

/// DeepSeek's YaRN: what would multiply cosine and sine, of queries and of keys, multiplies all of the scores instead. Returns the
/// multiplier of cosine and sine, if it differs from YaRN's own, and the factor of the softmax's scale.
fn yarn_scales(hyper: &Hyper) -> Result<(Option<f64>, f64)> {
    let stretched = hyper.text("rope.scaling.type") == Some("yarn");
    match hyper.optional_number("rope.scaling.yarn_log_multiplier")?.filter(|&by| stretched && by != 0.0) {
        Some(by) => Ok((Some(1.0), (1.0 + by * hyper.number("rope.scaling.factor")?.ln()).powi(2))),
        None => Ok((None, 1.0)),
    }
}

/// What attention's scores and sums are made of.
struct Projected<T> {
    q: T,
    /// The normed latent.
    c: T,
    /// The rotated dimensions of keys.
    k_pe: T,
}

impl Mla {
    fn project<O: Ops>(
        &self,
        ops: &O,
        w: &Layer,
        n: &O::Tensor,
        sequences: &Sequences,
    ) -> Result<Projected<O::Tensor>> {
        let latent_norm =
            |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, gain.len(), Some(gain), self.latent_eps);
        let mut q = match &w.q {
            Query::Direct(q) => ops.linear(n, q)?,
            Query::Latent { a, norm, b } => ops.linear(&latent_norm(&ops.linear(n, a)?, norm), b)?,
        };
        ops.rotate(&mut q, &self.query_rotary, sequences);
        if let Some(temperature) = &self.temperature {
            ops.scale_rows(&mut q, &temperature.of(sequences));
        }
        let kv = ops.linear(n, &w.kv_a)?;
        let c = latent_norm(&ops.columns(&kv, 0..self.latent), &w.kv_a_norm);
        let mut k_pe = ops.columns(&kv, self.latent..self.latent + self.key_rotary.head);
        ops.rotate(&mut k_pe, &self.key_rotary, sequences);
        Ok(Projected { q, c, k_pe })
    }

    fn attend<O: Ops>(
        &self,
        ops: &O,
        w: &Layer,
        p: &Projected<O::Tensor>,
        sequences: &Sequences,
    ) -> Result<O::Tensor> {
        let k = ops.join_heads(&ops.per_head(&p.c, &w.k_b, true)?, &p.k_pe, self.attention.heads, true);
        let v = ops.per_head(&p.c, &w.v_b, false)?;
        Ok(ops.attend(&p.q, &k, &v, &self.attention, sequences))
    }
}

impl<O: Ops> Graph<O> for Mla {
    fn ends(&self) -> &Ends {
        &self.ends
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn values_per_token(&self) -> usize {
        let Attention { heads, key, value, .. } = self.attention;
        let inner = self.layers.iter().map(|layer| layer.mlp.inner()).max().unwrap_or(0);
        3 * self.ends.width + (2 * inner).max(2 * self.latent + heads * (3 * key + 2 * value))
    }

    fn layer(&self, ops: &O, layer: usize, hidden: &mut Hidden) -> Result<()> {
        let length = hidden.sequences.lengths.iter().copied().max().unwrap_or(0);
        if let Some(selected) = self.selected.filter(|&selected| length > selected) {
            return Err(Error::SparseAttention { length, selected });
        }
        let w = &self.layers[layer];
        let norm = |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, self.ends.width, Some(gain), self.ends.eps);
        hidden.update(ops, |x, sequences| {
            let projected = self.project(ops, w, &norm(x, &w.attention_norm), sequences)?;
            let a = self.attend(ops, w, &projected, sequences)?;
            ops.add(x, &ops.linear(&a, &w.o)?);
            Ok(())
        })?;
        w.mlp.run(ops, hidden, |x| norm(x, &w.mlp_norm), |y| y)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cpu::Cpu;
    use crate::options::Precision;

    /// The absorbed form, as llama.cpp runs it: queries go into the latent, which all heads share as key and value.
    fn attend_absorbed<O: Ops>(
        graph: &Mla,
        ops: &O,
        w: &Layer,
        p: &Projected<O::Tensor>,
        sequences: &Sequences,
    ) -> Result<O::Tensor> {
        let Attention { heads, key, scale, .. } = graph.attention;
        let (latent, rotated) = (graph.latent, graph.key_rotary.head);
        let q_nope = ops.head_columns(&p.q, heads, 0..key - rotated);
        let q_pe = ops.head_columns(&p.q, heads, key - rotated..key);
        let q = ops.join_heads(&ops.per_head(&q_nope, &w.k_b, false)?, &q_pe, heads, false);
        let k = ops.join_heads(&p.c, &p.k_pe, 1, false);
        let (window, soft_cap, sinks) = (None, None, None);
        let attention = Attention {
            heads,
            kv_heads: 1,
            key: latent + rotated,
            value: latent,
            scale,
            window,
            soft_cap,
            sinks,
        };
        ops.per_head(&ops.attend(&q, &k, &p.c, &attention, sequences), &w.v_b, false)
    }

    #[test]
    fn the_naive_and_the_absorbed_form_agree() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-deepseek");
        let weights = Weights::open(&folder.into()).expect("fixture");
        let graph = read(&weights).expect("graph");
        let ops = Cpu::new(&weights, Precision::F32);
        let sequences = Sequences { lengths: vec![40, 7] };
        let tokens: Vec<u32> = (0..47).map(|i| (i * i * 7 + 3) % 2048).collect();
        let x = graph.ends.embed(&ops, &tokens).expect("embedding");
        let n = ops.rms_norm(&x, graph.ends.width, None, 1e-6);
        for w in &graph.layers {
            let p = graph.project(&ops, w, &n, &sequences).expect("projections");
            let naive = ops.download(graph.attend(&ops, w, &p, &sequences).expect("naive")).expect("values");
            let absorbed = attend_absorbed(&graph, &ops, w, &p, &sequences).expect("absorbed");
            let absorbed = ops.download(absorbed).expect("values");
            let largest = naive.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            assert!(largest > 0.0);
            let off = naive.iter().zip(&absorbed).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            assert!(off <= 1e-5 * largest, "off by {off} of {largest}");
        }
    }

    #[test]
    fn queries_grow_with_the_logarithm_of_their_position() {
        let temperature = Temperature { beta: 0.1, length: 2 };
        let factors = temperature.of(&Sequences { lengths: vec![5, 1] });
        let second = 1.0 + 0.1 * 2.0f32.ln();
        assert_eq!(factors, [1.0, 1.0, second, second, 1.0 + 0.1 * 3.0f32.ln(), 1.0]);
    }
}

//! Llama's graph and those that differ from it in options:
//!
//! - Mistral, Mixtral, Qwen 2 and 3: biases, experts, queries and keys normed per head;
//! - Phi 3: queries, keys and values in one matrix, gate and up in another, other rotary frequencies in long contexts;
//! - SmolLM3: every fourth layer does not rotate;
//! - OLMo 2: norms behind attention and MLP instead of before, queries and keys normed over all heads together;
//! - GLM 4 MoE and MiniMax M2: part of each head rotates, experts are chosen by sigmoid scores and a bias.
//!
//! h ← h + norm(Wo · attention(norm(h)));  h ← h + norm(MLP(norm(h))), where each norm may be missing and the MLP may be a mixture
//! of experts.

use kernels::rope::Pairs;

use super::Graph;
use super::attention::plain;
use super::common::{self, FeedForward, RouterDefaults};
use super::ends::Ends;
use super::long_rope::LongRope;
use crate::error::Result;
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::Scoring;
use crate::ops::{Activation, Attention, Ops};
use crate::weights::{Linear, Weights};

pub(super) struct Llama {
    ends: Ends,
    attention: Attention,
    rotary: LongRope,
    layers: Vec<Layer>,
    values_per_token: usize,
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    /// Gains of queries and keys: for each head, or for all together.
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    rotates: bool,
    o: Linear,
    mlp: FeedForward,
    /// Around attention.
    attention_norms: Norms,
    /// Around the MLP.
    mlp_norms: Norms,
}

/// Gains of the norms before and after a part of a layer.
struct Norms {
    before: Option<Vec<f32>>,
    after: Option<Vec<f32>>,
}

/// What an architecture's graph has built in.
struct Options {
    /// The converter permutes queries and keys for some.
    order: Pairs,
    /// Queries and keys are normed over all heads together.
    whole_qk_norm: bool,
    /// One layer in so many does not rotate.
    no_rope_interval: Option<usize>,
    /// Names of the norms before and after attention, before and after the MLP.
    norms: [Option<&'static str>; 4],
    router: RouterDefaults,
}

impl Options {
    fn of(arch: &str) -> Options {
        const ATTENTION: Option<&str> = Some("attn_norm");
        let norms = match arch {
            "olmo2" => [None, Some("post_attention_norm"), None, Some("post_ffw_norm")],
            // Its name is where it comes from: after attention, that is, before the MLP.
            "glm4moe" => [ATTENTION, None, Some("post_attention_norm"), None],
            _ => [ATTENTION, None, Some("ffn_norm"), None],
        };
        let router = match arch {
            "glm4moe" => RouterDefaults { scoring: Scoring::Sigmoid, normalize: false },
            "minimax-m2" => RouterDefaults { scoring: Scoring::Sigmoid, normalize: true },
            _ => RouterDefaults { scoring: Scoring::Softmax, normalize: true },
        };
        Options {
            order: if ["llama", "smollm3"].contains(&arch) { Pairs::Neighbours } else { Pairs::Halves },
            whole_qk_norm: ["olmo2", "minimax-m2"].contains(&arch),
            no_rope_interval: (arch == "smollm3").then_some(4),
            norms,
            router,
        }
    }
}

/// Reads the graph.
pub(super) fn read(weights: &Weights) -> Result<Llama> {
    let hyper = &weights.hyper;
    let options = Options::of(&hyper.arch);
    let width = hyper.count("embedding_length")?;
    let attention = attention(hyper, width)?;
    let rotated = hyper.optional_count("rope.dimension_count")?.unwrap_or(attention.key);
    let theta = hyper.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    let rotary = common::rotary(weights, theta, rotated, attention.key, 0, options.order)?;

    let count = common::blocks(hyper)?;
    let layers = (0..count).map(|layer| Layer::read(weights, layer, width, &attention, &options));
    let layers: Vec<Layer> = layers.collect::<Result<_>>()?;
    let inner = layers.iter().map(|layer| layer.mlp.inner()).max().unwrap_or(0);
    let Attention { heads, kv_heads, key, value, .. } = attention;
    Ok(Llama {
        ends: Ends::read(weights)?,
        attention,
        rotary: LongRope::read(weights, rotary)?,
        layers,
        values_per_token: 3 * width + (2 * inner).max(heads * (2 * key + value) + 2 * kv_heads * key),
    })
}

/// That of all layers.
pub(super) fn attention(hyper: &Hyper, width: usize) -> Result<Attention> {
    let pattern = "attention.sliding_window_pattern";
    if hyper.has(pattern) {
        return Err(hyper.error(pattern, "makes layers differ (OLMo 3), which can't be evaluated yet"));
    }
    let attention = plain(hyper, width)?;
    Ok(Attention {
        scale: hyper.optional_number("attention.scale")?.unwrap_or(1.0 / (attention.key as f64).sqrt())
            as f32,
        window: hyper.optional_count("attention.sliding_window")?.filter(|&window| window > 0),
        ..attention
    })
}

impl Layer {
    fn read(
        weights: &Weights,
        layer: usize,
        width: usize,
        attention: &Attention,
        options: &Options,
    ) -> Result<Layer> {
        let &Attention { heads, kv_heads, key, value, .. } = attention;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (queries, keys, values) = (heads * key, kv_heads * key, kv_heads * value);
        let [q, k, v] = if weights.find(&name("attn_qkv.weight")).is_some() {
            let all = weights.linear(&name("attn_qkv"), queries + keys + values, width)?;
            let (k, v) = (queries, queries + keys);
            [all.part(0..k), all.part(k..v), all.part(v..v + values)]
        } else {
            [
                weights.linear(&name("attn_q"), queries, width)?,
                weights.linear(&name("attn_k"), keys, width)?,
                weights.linear(&name("attn_v"), values, width)?,
            ]
        };
        let (q_norm, k_norm) = if options.whole_qk_norm { (queries, keys) } else { (key, key) };
        let q_norm = weights.optional_vector(&name("attn_q_norm.weight"), q_norm)?;
        let k_norm = weights.optional_vector(&name("attn_k_norm.weight"), k_norm)?;
        let norms = options
            .norms
            .map(|norm| norm.map(|norm| weights.vector(&name(&format!("{norm}.weight")), width)).transpose());
        let [before_attention, after_attention, before_mlp, after_mlp] = norms;
        Ok(Layer {
            q,
            k,
            v,
            qk_norm: q_norm.zip(k_norm),
            rotates: options.no_rope_interval.is_none_or(|interval| !(layer + 1).is_multiple_of(interval)),
            o: weights.linear(&name("attn_output"), width, heads * value)?,
            mlp: FeedForward::read(weights, layer, width, Activation::Silu, &options.router)?,
            attention_norms: Norms { before: before_attention?, after: after_attention? },
            mlp_norms: Norms { before: before_mlp?, after: after_mlp? },
        })
    }
}

impl<O: Ops> Graph<O> for Llama {
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
        let norm = |x: &O::Tensor, gain: &[f32]| ops.rms_norm(x, gain.len(), Some(gain), self.ends.eps);
        let before = |x: &O::Tensor, norms: &Norms| match &norms.before {
            Some(gain) => norm(x, gain),
            None => ops.columns(x, 0..self.ends.width),
        };
        let after = |y: O::Tensor, norms: &Norms| match &norms.after {
            Some(gain) => norm(&y, gain),
            None => y,
        };
        let rotary = self.rotary.of(&hidden.sequences);
        hidden.update(ops, |x, sequences| {
            let n = before(x, &w.attention_norms);
            let (mut q, mut k, v) = (ops.linear(&n, &w.q)?, ops.linear(&n, &w.k)?, ops.linear(&n, &w.v)?);
            if let Some((q_gain, k_gain)) = &w.qk_norm {
                (q, k) = (norm(&q, q_gain), norm(&k, k_gain));
            }
            if w.rotates {
                ops.rotate(&mut q, rotary, sequences);
                ops.rotate(&mut k, rotary, sequences);
            }
            let a = ops.attend(&q, &k, &v, &self.attention, sequences);
            ops.add(x, &after(ops.linear(&a, &w.o)?, &w.attention_norms));
            Ok(())
        })?;
        w.mlp.run(ops, hidden, |x| before(x, &w.mlp_norms), |y| after(y, &w.mlp_norms))
    }
}

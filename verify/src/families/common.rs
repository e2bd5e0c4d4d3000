//! What the graphs share: rotary frequencies, MLPs and mixtures read from the weights.

use kernels::rope::Pairs;

use crate::error::Result;
use crate::hidden::Hidden;
use crate::hyper::Hyper;
use crate::mixture::{Choice, Mixture, Mlp, Scoring};
use crate::ops::{Activation, Ops, Rotary};
use crate::weights::{Linear, Weights};

/// A head of its own, or else the embedding.
pub(super) fn head(weights: &Weights, vocab: usize, width: usize) -> Result<Linear> {
    let name = if weights.find("output.weight").is_some() { "output" } else { "token_embd" };
    weights.linear(name, vocab, width)
}

/// Layers of the model itself: files may hold more, for predicting further tokens (MTP).
pub(super) fn blocks(hyper: &Hyper) -> Result<usize> {
    let (all, further) =
        (hyper.count("block_count")?, hyper.optional_count("nextn_predict_layers")?.unwrap_or(0));
    let problem = || hyper.error("nextn_predict_layers", format!("is {further} of {all} layers"));
    all.checked_sub(further).filter(|&count| count > 0).ok_or_else(problem)
}

/// Rows of the embedding.
pub(super) fn vocabulary(weights: &Weights) -> Result<usize> {
    let embedding = weights.find("token_embd.weight");
    let embedding =
        embedding.ok_or_else(|| crate::Error::MissingTensor { tensor: "token_embd.weight".to_owned() })?;
    Ok(embedding.rows() as usize)
}

/// Rotation of `width` dimensions from base `theta`, as it was before anybody stretched it.
pub(super) fn unscaled_rotary(theta: f64, width: usize, head: usize, order: Pairs) -> Rotary {
    let frequency = |i: usize| theta.powf(-2.0 * i as f64 / width as f64);
    let frequencies = (0..width / 2).map(frequency).collect();
    Rotary { frequencies, multiplier: 1.0, order, head, offset: 0 }
}

/// Frequencies for `width` rotated dimensions from base `theta`, stretched as the metadata and `rope_freqs.weight` say.
pub(super) fn rotary(
    weights: &Weights,
    theta: f64,
    width: usize,
    head: usize,
    offset: usize,
    order: Pairs,
) -> Result<Rotary> {
    let hyper = &weights.hyper;
    if offset.saturating_add(width) > head {
        let problem = format!("is {width}, more than a head of {head} has left");
        return Err(hyper.error("rope.dimension_count", problem));
    }
    let mut frequencies = unscaled_rotary(theta, width, head, order).frequencies;
    if let Some(divisors) = weights.optional_vector("rope_freqs.weight", width / 2)? {
        frequencies.iter_mut().zip(divisors).for_each(|(frequency, by)| *frequency /= f64::from(by));
    }
    let mut multiplier = 1.0;
    match hyper.text("rope.scaling.type") {
        Some("linear") => {
            let factor = hyper.number("rope.scaling.factor")?;
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
        }
        Some("yarn") => multiplier = yarn(hyper, theta, &mut frequencies)?,
        _ => {}
    }
    Ok(Rotary { frequencies, multiplier, order, head, offset })
}

/// YaRN (<https://arxiv.org/abs/2309.00071>): slow dimensions are interpolated, fast ones are not, with a ramp between. Returns the
/// multiplier of cosine and sine.
fn yarn(hyper: &Hyper, theta: f64, frequencies: &mut [f64]) -> Result<f64> {
    let factor = hyper.number("rope.scaling.factor")?;
    let original = hyper.count("rope.scaling.original_context_length")? as f64;
    let fast = hyper.optional_number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
    let slow = hyper.optional_number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
    let width = 2.0 * frequencies.len() as f64;
    // The dimension that turns so many times within the original context.
    let dimension =
        |turns: f64| width * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(fast), dimension(slow));
    if hyper.flag("rope.scaling.yarn_truncate").unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(width - 1.0));
    for (i, frequency) in frequencies.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *frequency = *frequency * (1.0 - ramp) + *frequency / factor * ramp;
    }
    let given = hyper.optional_number("rope.scaling.yarn_attn_factor")?;
    Ok(given.unwrap_or(1.0 + 0.1 * factor.ln()))
}

/// The dense MLP of a layer.
pub(super) fn mlp(weights: &Weights, layer: usize, width: usize, activation: Activation) -> Result<Mlp> {
    let inner = weights.hyper.counts("feed_forward_length", layer + 1)?[layer];
    if weights.find(&format!("blk.{layer}.ffn_gate.weight")).is_none() {
        // Phi 3: the gate's rows come first.
        let both = weights.linear(&format!("blk.{layer}.ffn_up"), 2 * inner, width)?;
        let (gate, up) = (both.part(0..inner), both.part(inner..2 * inner));
        let down = weights.linear(&format!("blk.{layer}.ffn_down"), width, inner)?;
        return Ok(Mlp { gate, up, down, activation });
    }
    mlp_named(weights, &format!("blk.{layer}.ffn_"), "", width, inner, activation)
}

/// A gated MLP whose tensors are called `<prefix>gate<suffix>` and so on.
fn mlp_named(
    weights: &Weights,
    prefix: &str,
    suffix: &str,
    width: usize,
    inner: usize,
    activation: Activation,
) -> Result<Mlp> {
    Ok(Mlp {
        gate: weights.linear(&format!("{prefix}gate{suffix}"), inner, width)?,
        up: weights.linear(&format!("{prefix}up{suffix}"), inner, width)?,
        down: weights.linear(&format!("{prefix}down{suffix}"), width, inner)?,
        activation,
    })
}

/// What follows attention.
pub(super) enum FeedForward {
    Dense(Mlp),
    Experts(Box<Mixture>),
}

impl FeedForward {
    /// A layer's mixture, or its MLP if it has none.
    pub fn read(
        weights: &Weights,
        layer: usize,
        width: usize,
        activation: Activation,
        defaults: &RouterDefaults,
    ) -> Result<FeedForward> {
        Ok(match mixture(weights, layer, width, activation, defaults)? {
            Some(mixture) => FeedForward::Experts(Box::new(mixture)),
            None => FeedForward::Dense(mlp(weights, layer, width, activation)?),
        })
    }

    /// The inner width that every token needs at once.
    pub fn inner(&self) -> usize {
        match self {
            FeedForward::Dense(mlp) => mlp.gate.rows.len(),
            FeedForward::Experts(mixture) => mixture.shared.as_ref().map_or(0, |mlp| mlp.gate.rows.len()),
        }
    }

    /// x ← x + after(mlp(before(x))) for all hidden states.
    pub fn run<O: Ops>(
        &self,
        ops: &O,
        hidden: &mut Hidden,
        before: impl Fn(&O::Tensor) -> O::Tensor,
        after: impl Fn(O::Tensor) -> O::Tensor,
    ) -> Result<()> {
        match self {
            FeedForward::Dense(mlp) => hidden.update(ops, |x, _| {
                let y = mlp.run(ops, &before(x))?;
                ops.add(x, &after(y));
                Ok(())
            }),
            FeedForward::Experts(mixture) => mixture.run(ops, hidden, before, after),
        }
    }
}

/// How a family's router chooses where the metadata doesn't say.
pub(super) struct RouterDefaults {
    pub scoring: Scoring,
    pub normalize: bool,
}

/// The experts of a layer; `None` if it has none.
pub(super) fn mixture(
    weights: &Weights,
    layer: usize,
    width: usize,
    activation: Activation,
    defaults: &RouterDefaults,
) -> Result<Option<Mixture>> {
    let hyper = &weights.hyper;
    let name = |part: &str| format!("blk.{layer}.{part}");
    if weights.find(&name("ffn_gate_inp.weight")).is_none() {
        return Ok(None);
    }
    let experts = hyper.count("expert_count")?;
    let inner = match hyper.optional_count("expert_feed_forward_length")? {
        Some(inner) => inner,
        None => hyper.count("feed_forward_length")?,
    };
    let scoring = match hyper.optional_count("expert_gating_func")? {
        None | Some(0) => defaults.scoring,
        Some(1) => Scoring::Softmax,
        Some(2) => Scoring::Sigmoid,
        Some(3) => Scoring::SoftmaxOfChosen,
        Some(other) => {
            let problem =
                format!("is {other}; known are 1 (softmax), 2 (sigmoid), 3 (softmax of the chosen)");
            return Err(hyper.error("expert_gating_func", problem));
        }
    };
    let groups =
        hyper.optional_count("expert_group_count")?.zip(hyper.optional_count("expert_group_used_count")?);
    let groups = groups.filter(|&(groups, used)| groups > 1 && used > 0);
    if groups.is_some_and(|(groups, _)| !experts.is_multiple_of(groups)) {
        return Err(hyper.error("expert_group_count", format!("does not divide {experts} experts")));
    }
    let per_token = hyper.count("expert_used_count")?;
    if per_token > experts {
        return Err(hyper.error("expert_used_count", format!("is {per_token} of {experts} experts")));
    }
    let choice = Choice {
        scoring,
        bias: weights.optional_vector(&name("exp_probs_b.bias"), experts)?,
        groups,
        per_token,
        normalize: hyper.flag("expert_weights_norm").unwrap_or(defaults.normalize),
        scale: hyper.optional_number("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0) as f32,
        expert_scales: weights.optional_vector(&name("ffn_down_exps.scale"), experts)?,
    };
    let shared = match weights.find(&name("ffn_gate_shexp.weight")) {
        Some(gate) => {
            let inner = gate.rows() as usize;
            Some(mlp_named(weights, &name("ffn_"), "_shexp", width, inner, activation)?)
        }
        None => None,
    };
    let shared_gate = match weights.find(&name("ffn_gate_inp_shexp.weight")) {
        Some(_) => Some(weights.linear(&name("ffn_gate_inp_shexp"), 1, width)?),
        None => None,
    };
    let (gate, up) = match weights.find(&name("ffn_gate_up_exps.weight")) {
        Some(_) => {
            let both = weights.stack(&name("ffn_gate_up_exps"), experts, 2 * inner, width)?;
            (both.part(0..inner), both.part(inner..2 * inner))
        }
        None => (
            weights.stack(&name("ffn_gate_exps"), experts, inner, width)?,
            weights.stack(&name("ffn_up_exps"), experts, inner, width)?,
        ),
    };
    Ok(Some(Mixture {
        router: weights.linear(&name("ffn_gate_inp"), experts, width)?,
        choice,
        gate,
        up,
        down: weights.stack(&name("ffn_down_exps"), experts, width, inner)?,
        activation,
        shared,
        shared_gate,
    }))
}

//! Mixtures of experts: the router's choice, and the experts one at a time over all the tokens that chose them, so that never
//! more than one expert's weights are decoded.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::hidden::Hidden;
use crate::ops::{Activation, Ops};
use crate::weights::{Linear, Stack};

/// How a router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
    /// Softmax over the chosen ones.
    SoftmaxOfChosen,
}

/// Which experts a token goes to, and with what weight.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Scores.
    pub scoring: Scoring,
    /// Added to the scores for choosing, not for weighing (DeepSeek-V3's `e_score_correction_bias`).
    pub bias: Option<Vec<f32>>,
    /// Groups of experts, and how many of them a token may use.
    pub groups: Option<(usize, usize)>,
    /// Experts of a token.
    pub per_token: usize,
    /// Whether the weights are made to sum to 1.
    pub normalize: bool,
    /// Factor of the weights.
    pub scale: f32,
    /// And one for each expert's (Gemma 4).
    pub expert_scales: Option<Vec<f32>>,
}

/// What experts of groups that may not be used score: as in DeepSeek's own code and llama.cpp. Transformers takes 0, which lets such
/// an expert in where all the others score less.
const MASKED: f32 = f32::NEG_INFINITY;

impl Choice {
    /// The experts of a token, best first (of equals the one with the lower number), and their weights.
    pub fn of(&self, logits: &[f32]) -> Vec<(usize, f32)> {
        let scores: Vec<f32> = match self.scoring {
            Scoring::Sigmoid => logits.iter().map(|&x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scoring::Softmax => softmax(logits),
            Scoring::SoftmaxOfChosen => logits.to_vec(),
        };
        let mut order = scores.clone();
        if let Some(bias) = &self.bias {
            order.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
        if let Some((groups, used)) = self.groups.filter(|&(groups, used)| used < groups) {
            let size = order.len() / groups;
            // A group is as good as its two best experts.
            let value = |group: &[f32]| {
                let best = largest(group, 2);
                best.iter().map(|&i| group[i]).sum::<f32>()
            };
            let values: Vec<f32> = order.chunks_exact(size).map(value).collect();
            let kept = largest(&values, used);
            for (g, group) in order.chunks_exact_mut(size).enumerate() {
                if !kept.contains(&g) {
                    group.fill(MASKED);
                }
            }
        }
        let chosen = largest(&order, self.per_token);
        let mut weights: Vec<f32> = chosen.iter().map(|&i| scores[i]).collect();
        if self.scoring == Scoring::SoftmaxOfChosen {
            weights = softmax(&weights);
        }
        if self.normalize {
            let sum = weights.iter().sum::<f32>() + 1e-20;
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let own = |expert: usize| self.expert_scales.as_ref().map_or(1.0, |scales| scales[expert]);
        chosen.into_iter().zip(weights).map(|(expert, w)| (expert, w * self.scale * own(expert))).collect()
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|&x| (x - max).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Where the `count` largest values are, largest first, of equals the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// A gated MLP.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// To the inner width, through the activation.
    pub gate: Linear,
    /// To the inner width.
    pub up: Linear,
    /// Back.
    pub down: Linear,
    /// How the two become one.
    pub activation: Activation,
}

impl Mlp {
    /// The MLP of every row.
    ///
    /// # Errors
    /// If the weights can't be read.
    pub fn run<O: Ops>(&self, ops: &O, x: &O::Tensor) -> Result<O::Tensor> {
        let inner = ops.gated(ops.linear(x, &self.gate)?, &ops.linear(x, &self.up)?, self.activation);
        ops.linear(&inner, &self.down)
    }
}

/// Routed experts, and what goes beside them.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// To one logit for each expert.
    pub router: Linear,
    /// From logits to experts.
    pub choice: Choice,
    /// Gate projections.
    pub gate: Stack,
    /// Up projections.
    pub up: Stack,
    /// Down projections.
    pub down: Stack,
    /// How gate and up become one.
    pub activation: Activation,
    /// An expert for every token.
    pub shared: Option<Mlp>,
    /// Its gate: one logit for each token, through a sigmoid.
    pub shared_gate: Option<Linear>,
}

/// Tokens that are given to an expert at once.
const TOKENS: usize = 4096;

impl Mixture {
    fn expert(&self, index: usize) -> Mlp {
        let (gate, up, down) = (self.gate.one(index), self.up.one(index), self.down.one(index));
        Mlp { gate, up, down, activation: self.activation }
    }

    /// x ← x + after(experts(before(x))) for all hidden states. The experts' sum is taken in the order of their numbers, the
    /// shared one first.
    ///
    /// # Errors
    /// If weights or states can't be read or written.
    pub fn run<O: Ops>(
        &self,
        ops: &O,
        hidden: &mut Hidden,
        before: impl Fn(&O::Tensor) -> O::Tensor,
        after: impl Fn(O::Tensor) -> O::Tensor,
    ) -> Result<()> {
        let sum = self.sum(ops, hidden, |x| (before(x), None))?;
        let mut next = 0;
        hidden.update(ops, |x, sequences| {
            let rows: Range<usize> = next..next + sequences.tokens();
            next = rows.end;
            ops.add(x, &after(ops.take(&sum, rows)?));
            Ok(())
        })
    }

    /// The experts' sum for all hidden states. `inputs` makes of these what the experts get, and what the router gets if that is
    /// something else.
    ///
    /// # Errors
    /// If weights or states can't be read or written.
    pub fn sum<O: Ops>(
        &self,
        ops: &O,
        hidden: &Hidden,
        inputs: impl Fn(&O::Tensor) -> (O::Tensor, Option<O::Tensor>),
    ) -> Result<O::Bank> {
        let (rows, width) = (hidden.store.rows, hidden.store.width);
        let mut normed = ops.bank(&hidden.space, rows, width)?;
        let mut sum = ops.bank(&hidden.space, rows, width)?;
        let mut tokens: Vec<Vec<(usize, f32)>> = vec![Vec::new(); self.gate.count];
        for block in hidden.blocks() {
            let (x, routed) = inputs(&hidden.rows(ops, block.clone())?);
            let logits = ops.download(ops.linear(routed.as_ref().unwrap_or(&x), &self.router)?)?;
            let choices = logits.par_chunks_exact(self.gate.count).map(|logits| self.choice.of(logits));
            for (row, choices) in block.clone().zip(choices.collect::<Vec<_>>()) {
                choices.into_iter().for_each(|(expert, weight)| tokens[expert].push((row, weight)));
            }
            if let Some(shared) = &self.shared {
                let mut y = shared.run(ops, &x)?;
                if let Some(gate) = &self.shared_gate {
                    ops.sigmoid_gate(&mut y, &ops.linear(&x, gate)?);
                }
                ops.put(&mut sum, block.start, y)?;
            }
            ops.put(&mut normed, block.start, x)?;
        }

        for (index, tokens) in tokens.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            let expert = self.expert(index);
            for tokens in tokens.chunks(TOKENS) {
                let (rows, weights): (Vec<usize>, Vec<f32>) = tokens.iter().copied().unzip();
                let y = expert.run(ops, &ops.gather(&normed, &rows)?)?;
                ops.scatter_add(&mut sum, &rows, &weights, &y)?;
            }
        }

        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(scoring: Scoring) -> Choice {
        Choice {
            scoring,
            bias: None,
            groups: None,
            per_token: 2,
            normalize: true,
            scale: 1.0,
            expert_scales: None,
        }
    }

    #[test]
    fn softmax_before_or_after_choosing_is_the_same_once_normalized() {
        let logits = [0.5, 2.0, -1.0, 2.0];
        let (before, after) =
            (choice(Scoring::Softmax).of(&logits), choice(Scoring::SoftmaxOfChosen).of(&logits));
        assert_eq!(before.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        for (a, b) in before.iter().zip(&after) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - 0.5).abs() < 1e-6 && (b.1 - 0.5).abs() < 1e-6);
        }
    }

    #[test]
    fn experts_may_have_factors_of_their_own() {
        let choice = Choice { expert_scales: Some(vec![1.0, 4.0, 1.0, 2.0]), ..choice(Scoring::Softmax) };
        let chosen = choice.of(&[0.0, 9.0, 0.0, 9.0]);
        assert!((chosen[0].1 - 2.0).abs() < 1e-5 && (chosen[1].1 - 1.0).abs() < 1e-5, "{chosen:?}");
    }

    #[test]
    fn the_bias_chooses_but_does_not_weigh() {
        let choice = Choice {
            bias: Some(vec![0.0, 0.0, 10.0]),
            normalize: false,
            scale: 2.0,
            ..choice(Scoring::Sigmoid)
        };
        assert_eq!(choice.of(&[0.0, -50.0, 0.0]), [(2, 1.0), (0, 1.0)]);
    }

    #[test]
    fn experts_of_groups_out_of_use_are_never_chosen() {
        // Biased scores are negative: a mask of zero would prefer the groups that are out.
        let bias = Some(vec![-2.0; 8]);
        let choice = Choice { bias, groups: Some((4, 1)), ..choice(Scoring::Sigmoid) };
        let chosen = choice.of(&[0.1, 0.0, 0.0, 0.9, 0.8, 0.7, 0.0, 0.0]);
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [4, 5]);
    }
}

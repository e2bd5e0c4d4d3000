//! LongRoPE (<https://arxiv.org/abs/2402.13753>): past the context of pretraining, heads turn by other frequencies.

use crate::error::Result;
use crate::ops::{Rotary, Sequences};
use crate::weights::Weights;

/// Rotary embeddings by the length of the context.
pub(super) struct LongRope {
    short: Rotary,
    /// For longer sequences than so many tokens.
    long: Option<(usize, Rotary)>,
}

impl LongRope {
    /// Divides the frequencies of `rotary` by `rope_factors_short.weight` and `rope_factors_long.weight`, if the model has them.
    ///
    /// # Errors
    /// If only one of the two is there, or the context of pretraining is not stated.
    pub fn read(weights: &Weights, mut rotary: Rotary) -> Result<LongRope> {
        let hyper = &weights.hyper;
        rotary.multiplier *= hyper.optional_number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let [short, long] = ["rope_factors_short.weight", "rope_factors_long.weight"];
        if weights.find(short).is_none() && weights.find(long).is_none() {
            return Ok(LongRope { short: rotary, long: None });
        }
        let original = hyper.count("rope.scaling.original_context_length")?;
        let divided = |name: &str| -> Result<Rotary> {
            let mut rotary = rotary.clone();
            let divisors = weights.vector(name, rotary.frequencies.len())?;
            rotary.frequencies.iter_mut().zip(divisors).for_each(|(f, by)| *f /= f64::from(by));
            Ok(rotary)
        };
        Ok(LongRope { short: divided(short)?, long: Some((original, divided(long)?)) })
    }

    /// The embedding for sequences of which the longest decides for all (as in transformers).
    pub fn of(&self, sequences: &Sequences) -> &Rotary {
        let longest = sequences.lengths.iter().copied().max().unwrap_or(0);
        match &self.long {
            Some((original, long)) if longest > *original => long,
            _ => &self.short,
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::rope::Pairs;

    use super::*;

    #[test]
    fn the_longest_sequence_decides() {
        let rotary = |frequency| Rotary {
            frequencies: vec![frequency],
            multiplier: 1.0,
            order: Pairs::Halves,
            head: 2,
            offset: 0,
        };
        let rope = LongRope { short: rotary(1.0), long: Some((8, rotary(0.5))) };
        let frequency = |lengths: &[usize]| rope.of(&Sequences { lengths: lengths.to_vec() }).frequencies[0];
        assert_eq!([frequency(&[3, 8]), frequency(&[3, 9]), frequency(&[9, 1])], [1.0, 0.5, 0.5]);
        let plain = LongRope { short: rotary(1.0), long: None };
        assert_eq!(plain.of(&Sequences { lengths: vec![9] }).frequencies, [1.0]);
    }
}

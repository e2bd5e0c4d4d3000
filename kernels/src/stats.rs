//! What is known of a run of weights without encoding it, and what encoding cost.

use crate::simd::{Isa, Kernel, LANES, Simd};

/// What to know before encoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Weights that are NaN or infinite.
    pub nonfinite: u64,
    /// The largest magnitude among the finite weights.
    pub max_abs: f32,
}

impl Summary {
    /// The summary of two runs together.
    pub fn merge(self, other: Summary) -> Summary {
        Summary { nonfinite: self.nonfinite + other.nonfinite, max_abs: self.max_abs.max(other.max_abs) }
    }
}

/// Looks at every weight once.
pub fn summarize(isa: Isa, weights: &[f32]) -> Summary {
    isa.run(Summarize(weights))
}

struct Summarize<'a>(&'a [f32]);

impl Kernel for Summarize<'_> {
    type Output = Summary;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Summary {
        let (full, rest) = self.0.as_chunks::<LANES>();
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        let mut nonfinite = 0;
        let mut largest = s.splat(0.0);
        // Counts of a lane fit an i32 within a run.
        for run in full.chunks(1 << 20).chain([&[padded][..]]) {
            let mut count = s.splat_i(0);
            for weights in run {
                let magnitude = s.abs(s.load(weights));
                let finite = s.le(magnitude, s.splat(f32::MAX));
                largest = s.max(s.select(finite, magnitude, s.splat(0.0)), largest);
                count = s.select_i(finite, count, s.add_i(count, s.splat_i(1)));
            }
            let mut counts = [0; LANES];
            s.store_i(count, &mut counts);
            nonfinite += counts.iter().map(|&n| n as u64).sum::<u64>();
        }
        let mut lanes = [0.0; LANES];
        s.store(largest, &mut lanes);
        Summary { nonfinite, max_abs: lanes.into_iter().fold(0.0, f32::max) }
    }
}

/// What encoding cost: root mean square error is `sqrt(squared_error / weights)`, relative to the weights' own size
/// `sqrt(squared_error / squared_norm)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Damage {
    /// Weights compared.
    pub weights: u64,
    /// The sum of `(original - decoded)²`.
    pub squared_error: f64,
    /// The sum of `original²`.
    pub squared_norm: f64,
}

impl Damage {
    /// The damage of two runs together.
    pub fn merge(self, other: Damage) -> Damage {
        Damage {
            weights: self.weights + other.weights,
            squared_error: self.squared_error + other.squared_error,
            squared_norm: self.squared_norm + other.squared_norm,
        }
    }
}

/// Compares decoded weights with the originals. Sums of 512 weights are taken in `f32`, in the house's fixed order, and
/// those are added up in `f64`: the same bits on every instruction set.
pub fn damage(isa: Isa, original: &[f32], decoded: &[f32]) -> Damage {
    assert_eq!(original.len(), decoded.len());
    isa.run(Compare(original, decoded))
}

struct Compare<'a>(&'a [f32], &'a [f32]);

impl Kernel for Compare<'_> {
    type Output = Damage;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Damage {
        const RUN: usize = 512;
        let mut damage = Damage { weights: self.0.len() as u64, ..Damage::default() };
        for (original, decoded) in self.0.chunks(RUN).zip(self.1.chunks(RUN)) {
            let mut error = s.splat(0.0);
            let mut norm = s.splat(0.0);
            let (a, a_rest) = original.as_chunks::<LANES>();
            let (b, b_rest) = decoded.as_chunks::<LANES>();
            for (a, b) in a.iter().zip(b) {
                let a = s.load(a);
                let difference = s.sub(a, s.load(b));
                error = s.mul_add(difference, difference, error);
                norm = s.mul_add(a, a, norm);
            }
            let mut error = s.reduce_add(error);
            let mut norm = s.reduce_add(norm);
            for (a, b) in a_rest.iter().zip(b_rest) {
                error = (a - b).mul_add(a - b, error);
                norm = a.mul_add(*a, norm);
            }
            // Squares of very large and very small weights leave the range of f32.
            if norm.is_normal() && (error == 0.0 || error.is_normal()) {
                damage.squared_error += f64::from(error);
                damage.squared_norm += f64::from(norm);
            } else {
                for (&a, &b) in original.iter().zip(decoded) {
                    let (a, b) = (f64::from(a), f64::from(b));
                    damage.squared_error += (a - b) * (a - b);
                    damage.squared_norm += a * a;
                }
            }
        }
        damage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_not_finite_and_finds_the_largest_of_the_rest() {
        let mut weights: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.7).sin()).collect();
        weights[500] = -9.5;
        weights[17] = f32::NAN;
        weights[18] = f32::INFINITY;
        weights[1002] = f32::NEG_INFINITY;
        for isa in Isa::available() {
            assert_eq!(summarize(isa, &weights), Summary { nonfinite: 3, max_abs: 9.5 });
            assert_eq!(summarize(isa, &[]), Summary { nonfinite: 0, max_abs: 0.0 });
            let (left, right) = weights.split_at(501);
            assert_eq!(summarize(isa, left).merge(summarize(isa, right)), summarize(isa, &weights));
            assert_eq!(summarize(isa, &[f32::MAX; 5]).max_abs, f32::MAX);
        }
    }

    fn exact(a: &[f32], b: &[f32]) -> (f64, f64) {
        let pairs = a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        pairs.fold((0.0, 0.0), |(e, n), (a, b)| (e + (a - b) * (a - b), n + a * a))
    }

    #[test]
    fn sums_are_near_the_exact_ones_and_the_same_everywhere() {
        let a: Vec<f32> = (0..5009).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = a.iter().map(|x| (x * 50.0).round() / 50.0).collect();
        let (error, norm) = exact(&a, &b);
        let scalar = damage(Isa::available()[0], &a, &b);
        assert!((scalar.squared_error / error - 1.0).abs() < 1e-6);
        assert!((scalar.squared_norm / norm - 1.0).abs() < 1e-6);
        for isa in Isa::available() {
            assert_eq!(damage(isa, &a, &b), scalar);
        }
    }

    #[test]
    fn extreme_weights_neither_overflow_nor_vanish() {
        for scale in [1e30f32, 1e-30] {
            let a: Vec<f32> = (1..600).map(|i| i as f32 * scale).collect();
            let b: Vec<f32> = a.iter().map(|x| x * 1.01).collect();
            let (error, norm) = exact(&a, &b);
            let got = damage(Isa::detect(), &a, &b);
            assert!((got.squared_error / error - 1.0).abs() < 1e-6);
            assert!((got.squared_norm / norm - 1.0).abs() < 1e-6);
        }
    }
}

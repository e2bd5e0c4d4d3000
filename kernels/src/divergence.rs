//! Negative log-likelihood and KL divergence of a token from logits that arrive in tiles of the vocabulary.
//!
//! With l the logits of reference (r) and model (m), Z their sums of exponentials and p the reference's probabilities,
//! `KL(r ‖ m) = Σ p (lr - lm) - ln Zr + ln Zm`: sums over the vocabulary that need no second look. Exponentials are summed
//! as pairs of floats without loss of what a float cannot hold, tiles in `f64`, so that the divergence of nearly equal models
//! is accurate to 1e-7 although it is a small difference of large sums.
//!
//! Graphics processors sum up a tile by themselves, and [`State::merge`] takes their sums in. With those comes a further one,
//! out of which small divergences are accurate relative to themselves.

use crate::exponential::exp_pair;
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::softmax::maximum;

/// What is known of one token after some tiles of the vocabulary.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// The model's logits.
    pub model: Logits,
    /// What comes of the reference's.
    pub reference: Option<Reference>,
}

/// One model's logits so far.
#[derive(Clone, Copy, Debug)]
pub struct Logits {
    /// The largest.
    pub max: f32,
    /// The lowest index that has the maximum.
    pub argmax: usize,
    /// `Σ exp(l - max)`.
    pub sum: f64,
    /// The logit of the token that the text has; NaN until it is seen.
    pub target: f32,
}

/// The reference's logits so far, and how the model's differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference {
    /// The reference's logits.
    pub logits: Logits,
    /// `Σ exp(lr - max lr) (lr - lm)`.
    pub difference: f64,
    /// `Σ exp(lr - max lr) (exp(d) - 1 - d)` with `d = (lm - max lm) - (lr - max lr)`; NaN if it isn't known.
    pub excess: f64,
}

/// How one token was predicted, in nats. Not finite if a logit is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Negative log-likelihood of the text's token by the model.
    pub nll: f64,
    /// The same token's probability.
    pub probability: f64,
    /// How the reference predicts it.
    pub against: Option<Against>,
}

/// How the reference predicts a token, and how far the model is from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Against {
    /// Negative log-likelihood of the text's token by the reference.
    pub nll: f64,
    /// The same token's probability.
    pub probability: f64,
    /// Divergence KL(reference ‖ model) of the two distributions.
    pub kld: f64,
    /// Whether both find the same token most likely; of equals, the one with the lowest index counts.
    pub same_top: bool,
}

/// Takes in the logits of tokens `first .. first + model.len()` of the vocabulary, in rising order of `first`. A reference
/// comes with every tile or with none, and is as long as the model's. `target` is the token that the text has.
pub fn update(
    isa: Isa,
    reference: Option<&[f32]>,
    model: &[f32],
    first: usize,
    target: usize,
    state: &mut State,
) {
    assert!(reference.is_none_or(|reference| reference.len() == model.len()));
    isa.run(Update { reference, model, first, target, state });
}

impl State {
    /// Takes in what is known of a later tile of the vocabulary, that one alone.
    pub fn merge(&mut self, tile: &State) {
        if self.model.max == f32::NEG_INFINITY {
            *self = *tile;
            return;
        }
        let before = self.model;
        self.model.merge(&tile.model);
        let Some((ours, theirs)) = self.reference.as_mut().zip(tile.reference) else { return };
        let [scale, tile_scale] = ours.logits.scales(&theirs.logits);
        let mut merged = ours.logits;
        merged.merge(&theirs.logits);
        let shift = f64::from(self.model.max) - f64::from(merged.max);
        *ours = Reference {
            logits: merged,
            difference: scale * ours.difference + tile_scale * theirs.difference,
            excess: scale * ours.excess_from(&before, shift)
                + tile_scale * theirs.excess_from(&tile.model, shift),
        };
    }

    /// What all the tiles say.
    pub fn finish(&self) -> Prediction {
        let nll = self.model.nll();
        let against = self.reference.map(|reference| Against {
            nll: reference.logits.nll(),
            probability: (-reference.logits.nll()).exp(),
            kld: reference.divergence(&self.model),
            same_top: reference.logits.argmax == self.model.argmax,
        });
        Prediction { nll, probability: (-nll).exp(), against }
    }
}

impl Reference {
    /// By how much the model's largest logit is above the reference's.
    fn shift(&self, model: &Logits) -> f64 {
        f64::from(model.max) - f64::from(self.logits.max)
    }

    /// `Σ exp(lr - max lr) d`.
    fn shifted(&self, model: &Logits) -> f64 {
        -self.difference - self.shift(model) * self.logits.sum
    }

    /// The excess if maxima were `shift` apart.
    fn excess_from(&self, model: &Logits, shift: f64) -> f64 {
        // exp(d + s) - 1 - (d + s) = (exp(d) - 1 - d) + (exp(s) - 1) (exp(d) - 1) + (exp(s) - 1 - s).
        let s = self.shift(model) - shift;
        self.excess + s.exp_m1() * (self.shifted(model) + self.excess) + self.logits.sum * (s.exp_m1() - s)
    }

    fn divergence(&self, model: &Logits) -> f64 {
        /// Beyond, an excess in single precision is not good enough.
        const SMALL: f64 = 0.1;
        let sum = self.logits.sum;
        let (shifted, excess) = (self.shifted(model) / sum, self.excess / sum);
        if shifted.abs() < SMALL && excess < SMALL && model.sum.is_finite() {
            // But for the maxima, Zm / Zr is 1 + shifted + excess: nothing large cancels.
            return (shifted + excess).ln_1p() - shifted;
        }
        self.difference / sum - (self.logits.log_sum() - model.log_sum())
    }
}

impl Default for Logits {
    fn default() -> Logits {
        Logits { max: f32::NEG_INFINITY, argmax: 0, sum: 0.0, target: f32::NAN }
    }
}

impl Logits {
    fn log_sum(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    fn nll(&self) -> f64 {
        self.log_sum() - f64::from(self.target)
    }

    /// What sums of exponentials are multiplied by, these and another's, when the two are put together.
    fn scales(&self, other: &Logits) -> [f64; 2] {
        let max = self.max.max(other.max);
        [self.max, other.max].map(|own| (f64::from(own) - f64::from(max)).exp())
    }

    /// Takes in those of later tokens.
    fn merge(&mut self, later: &Logits) {
        let [scale, later_scale] = self.scales(later);
        self.sum = scale * self.sum + later_scale * later.sum;
        if later.max > self.max {
            (self.max, self.argmax) = (later.max, later.argmax);
        }
        if !later.target.is_nan() {
            self.target = later.target;
        }
    }

    /// Moves to the maximum of a further tile too, and gives the factor by which sums of exponentials shrink.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, s: S, tile: &Tile, first: usize, target: usize) -> f64 {
        if let Some(&logit) = target.checked_sub(first).and_then(|at| tile.values.get(at)) {
            self.target = logit;
        }
        let max = maximum(s, tile.vectors).max(maximum(s, &tile.last));
        if max <= self.max {
            return 1.0;
        }
        let factor = (f64::from(self.max) - f64::from(max)).exp();
        self.argmax = first + tile.values.iter().position(|&x| x == max).unwrap_or(0);
        self.max = max;
        self.sum *= factor;
        factor
    }
}

/// Logits in whole vectors.
struct Tile<'a> {
    values: &'a [f32],
    vectors: &'a [[f32; LANES]],
    /// The rest, and then logits so low that their exponential is zero.
    last: [[f32; LANES]; 1],
}

impl<'a> Tile<'a> {
    #[inline(always)]
    fn new(values: &'a [f32]) -> Tile<'a> {
        let (vectors, rest) = values.as_chunks();
        let mut last = [[f32::MIN; LANES]];
        last[0][..rest.len()].copy_from_slice(rest);
        Tile { values, vectors, last }
    }

    #[inline(always)]
    fn all(&self) -> impl Iterator<Item = &[f32; LANES]> {
        self.vectors.iter().chain(&self.last)
    }
}

struct Update<'a> {
    reference: Option<&'a [f32]>,
    model: &'a [f32],
    first: usize,
    target: usize,
    state: &'a mut State,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let model = Tile::new(self.model);
        let logits = &mut self.state.model;
        logits.advance(s, &model, self.first, self.target);
        let max = s.splat(logits.max);
        let mut sum = Sum::new(s);
        for lanes in model.all() {
            let (high, low) = exp_difference(s, s.load(lanes), max);
            sum.add(s, high, low);
        }
        logits.sum += sum.total(s);

        let Some(reference) = self.reference else { return };
        let tile = Tile::new(reference);
        let Reference { logits, difference, excess } = self.state.reference.get_or_insert_default();
        *excess = f64::NAN;
        *difference *= logits.advance(s, &tile, self.first, self.target);
        let max = s.splat(logits.max);
        let (mut sum, mut differences) = (Sum::new(s), Sum::new(s));
        for (reference, model) in tile.all().zip(model.all()) {
            let reference = s.load(reference);
            let (high, low) = exp_difference(s, reference, max);
            sum.add(s, high, low);
            let (d, rest) = difference_pair(s, reference, s.load(model));
            let product = s.mul(high, d);
            let lost = s.mul_add(high, d, s.neg(product));
            differences.add(s, product, s.mul_add(low, d, s.mul_add(high, rest, lost)));
        }
        logits.sum += sum.total(s);
        *difference += differences.total(s);
    }
}

/// `a - b` and what it loses to rounding (Knuth's TwoSum).
#[inline(always)]
fn difference_pair<S: Simd>(s: S, a: S::F32, b: S::F32) -> (S::F32, S::F32) {
    let d = s.sub(a, b);
    let part = s.sub(d, a);
    (d, s.sub(s.sub(a, s.sub(d, part)), s.add(b, part)))
}

/// `exp(x - max)` as a sum of two floats.
#[inline(always)]
fn exp_difference<S: Simd>(s: S, x: S::F32, max: S::F32) -> (S::F32, S::F32) {
    let (d, rest) = difference_pair(s, x, max);
    let (high, low) = exp_pair(s, d);
    (high, s.mul_add(high, rest, low))
}

/// Sums lane by lane, with what additions lose to rounding.
struct Sum<S: Simd> {
    high: S::F32,
    low: S::F32,
}

impl<S: Simd> Sum<S> {
    #[inline(always)]
    fn new(s: S) -> Sum<S> {
        Sum { high: s.splat(0.0), low: s.splat(0.0) }
    }

    /// Adds `high + low`, of which `low` is small.
    #[inline(always)]
    fn add(&mut self, s: S, high: S::F32, low: S::F32) {
        let (sum, lost) = difference_pair(s, self.high, s.neg(high));
        self.high = sum;
        self.low = s.add(self.low, s.add(lost, low));
    }

    /// The sum of all lanes.
    #[inline(always)]
    fn total(self, s: S) -> f64 {
        let (mut high, mut low) = ([0.0; LANES], [0.0; LANES]);
        s.store(self.high, &mut high);
        s.store(self.low, &mut low);
        high.into_iter().zip(low).map(|(high, low)| f64::from(high) + f64::from(low)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        // Nearly normal, of variance one.
        (0..n).map(|_| (0..12).map(|_| next()).sum()).collect()
    }

    fn predict(isa: Isa, reference: Option<&[f32]>, model: &[f32], tile: usize, target: usize) -> Prediction {
        let mut state = State::default();
        for first in (0..model.len()).step_by(tile) {
            let range = first..model.len().min(first + tile);
            let reference = reference.map(|reference| &reference[range.clone()]);
            update(isa, reference, &model[range], first, target, &mut state);
        }
        state.finish()
    }

    /// Log-probabilities.
    fn exact(logits: &[f32]) -> Vec<f64> {
        let max = logits.iter().fold(f64::NEG_INFINITY, |max, &l| max.max(f64::from(l)));
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
    }

    fn check(reference: &[f32], model: &[f32], tile: usize, tolerance: f64) {
        let (r, m) = (exact(reference), exact(model));
        let kld: f64 = r.iter().zip(&m).map(|(r, m)| r.exp() * (r - m)).sum();
        let target = model.len() / 2;
        let first = predict(Isa::available()[0], Some(reference), model, tile, target);
        for isa in Isa::available() {
            assert_eq!(predict(isa, Some(reference), model, tile, target), first, "{}", isa.name());
        }
        let against = first.against.expect("there is a reference");
        assert!((first.nll + m[target]).abs() < tolerance, "{} for {}", first.nll, -m[target]);
        assert!((against.nll + r[target]).abs() < tolerance);
        assert!((first.probability - m[target].exp()).abs() < tolerance);
        assert!((against.probability - r[target].exp()).abs() < tolerance);
        assert!((against.kld - kld).abs() < tolerance, "kld {} for {kld}", against.kld);
        let without = predict(Isa::detect(), None, model, tile, target);
        assert_eq!(without, Prediction { against: None, ..first });
    }

    #[test]
    fn tiles_of_any_size_give_the_exact_figures() {
        for (n, tile) in [(1003, 1003), (1003, 256), (1003, 100), (17, 1), (5, 16), (50_000, 4096)] {
            for size in [0.1, 4.0] {
                let reference: Vec<f32> = noise(n, 1).iter().map(|x| x * size + 3.0).collect();
                let model: Vec<f32> =
                    reference.iter().zip(noise(n, 2)).map(|(r, x)| r * 0.9 + x - 11.0).collect();
                check(&reference, &model, tile, 1e-7);
            }
        }
    }

    #[test]
    fn small_divergences_are_accurate() {
        for (seed, size) in (1..=20).zip([0.5, 2.0, 5.0].into_iter().cycle()) {
            let reference: Vec<f32> = noise(8000, seed).iter().map(|x| x * size - 2.0).collect();
            for step in [1e-2, 1e-3, 1e-5] {
                let model: Vec<f32> =
                    reference.iter().zip(noise(8000, seed + 50)).map(|(r, x)| r + step * x).collect();
                check(&reference, &model, 1024, 2e-8);
            }
        }
    }

    /// What is known of one tile alone, with sums in double precision.
    fn alone(reference: &[f32], model: &[f32], first: usize, target: usize) -> State {
        let mut state = State::default();
        update(Isa::detect(), Some(reference), model, first, target, &mut state);
        let State { model: logits, reference: Some(of_reference) } = &mut state else { unreachable!() };
        let weight = |l: f32, of: &Logits| (f64::from(l) - f64::from(of.max)).exp();
        logits.sum = model.iter().map(|&l| weight(l, logits)).sum();
        let shift = of_reference.shift(logits);
        (of_reference.logits.sum, of_reference.difference, of_reference.excess) = (0.0, 0.0, 0.0);
        for (&r, &m) in reference.iter().zip(model) {
            let (weight, d) = (weight(r, &of_reference.logits), f64::from(m) - f64::from(r) - shift);
            of_reference.logits.sum += weight;
            of_reference.difference += weight * (f64::from(r) - f64::from(m));
            of_reference.excess += weight * (d.exp_m1() - d);
        }
        state
    }

    #[test]
    fn tiles_that_are_merged_say_what_all_say() {
        for size in [0.5, 5.0, 100.0] {
            let reference: Vec<f32> = noise(1003, 1).iter().map(|x| x * size + 3.0).collect();
            for (step, tile) in [(1e-4, 100), (1e-2, 1003), (0.2, 256), (10.0, 1), (300.0, 50)] {
                let model: Vec<f32> =
                    reference.iter().zip(noise(1003, 2)).map(|(r, x)| r + step * x - 11.0).collect();
                let (r, m) = (exact(&reference), exact(&model));
                let kld: f64 = r.iter().zip(&m).map(|(r, m)| r.exp() * ((m - r).exp_m1() - (m - r))).sum();
                let mut state = State::default();
                for (i, (reference, model)) in reference.chunks(tile).zip(model.chunks(tile)).enumerate() {
                    state.merge(&alone(reference, model, i * tile, 500));
                }
                let got = state.finish();
                let against = got.against.expect("there is a reference");
                assert!((got.nll + m[500]).abs() < 1e-10 && (against.nll + r[500]).abs() < 1e-10);
                assert!((against.kld - kld).abs() < 1e-9 * kld.max(1e-4), "kld {} for {kld}", against.kld);
            }
        }
    }

    #[test]
    fn equal_models_do_not_diverge() {
        let logits: Vec<f32> = noise(3000, 9).iter().map(|x| x * 6.0).collect();
        for isa in Isa::available() {
            let against = predict(isa, Some(&logits), &logits, 512, 7).against.expect("there is a reference");
            assert_eq!(against.kld, 0.0);
            assert!(against.same_top);
        }
    }

    #[test]
    fn of_equal_logits_the_first_is_the_top() {
        let mut model = vec![0.0; 100];
        let mut reference = model.clone();
        (model[40], model[41], model[90]) = (5.0, 5.0, 5.0);
        for (at, same) in [(40, true), (41, false), (90, false), (3, false)] {
            reference.fill(0.0);
            (reference[at], reference[95]) = (6.0, 6.0);
            for tile in [100, 16, 7] {
                let got = predict(Isa::detect(), Some(&reference), &model, tile, 0).against;
                assert_eq!(got.expect("there is a reference").same_top, same, "{at}");
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite_and_a_nan_shows() {
        let mut reference = vec![-1e30; 40];
        reference[20] = 1e4;
        let got = predict(Isa::detect(), Some(&reference), &reference, 16, 20);
        assert_eq!((got.nll, got.probability), (0.0, 1.0));
        assert_eq!(got.against.expect("there is a reference").kld, 0.0);
        reference[7] = f32::NAN;
        assert!(predict(Isa::detect(), None, &reference, 16, 20).nll.is_nan());
    }
}

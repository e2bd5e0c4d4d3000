//! The search for scale and minimum of groups whose weights are `minimum + scale * code`, the codes being 0, 1, 2…
//!
//! Given the codes, the best scale and minimum are a linear regression. A few placements of the weights' range on the
//! codes are tried, the best one's regression is taken, and what is stored (two half floats) is compared with what the
//! peers would store: never worse, nearly always better.

use crate::scales::{divisor, storable};
use crate::simd::Simd;
use crate::stored::Half;
use crate::symmetric::Groups;

/// The codes, and where on them the range of the weights is tried.
pub trait Steps {
    /// The highest code.
    const HIGH: f32;
    /// By how many codes to pull in the lower and the upper end of the range. Peers take the range itself.
    const TRIED: &[[(f32, f32); 3]];
    /// The same with importance, where a few weights may decide.
    const TRIED_WEIGHTED: &[[(f32, f32); 3]];
}

/// The code nearest to each `(x - minimum) * inverse`.
#[inline(always)]
pub fn nearest<S: Simd, T: Steps>(s: S, x: S::F32, minimum: S::F32, inverse: S::F32) -> S::F32 {
    let place = s.round(s.mul(s.sub(x, minimum), inverse));
    // In this order a NaN ends at the highest code everywhere.
    s.min(s.max(place, s.splat(0.0)), s.splat(T::HIGH))
}

/// The half-float scale and minimum of least squared error among those tried, for each lane.
#[inline(always)]
pub fn search<S: Simd, T: Steps, const WEIGHTED: bool>(s: S, x: &Groups, w: &Groups) -> (S::F32, S::F32) {
    let zero = s.splat(0.0);
    let mut low = s.load(&x[0]);
    let mut high = low;
    let mut total = zero;
    let mut sum = zero;
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        low = s.min(x, low);
        high = s.max(x, high);
        if WEIGHTED {
            total = s.add(s.load(w), total);
            sum = s.mul_add(s.load(w), x, sum);
        } else {
            sum = s.add(x, sum);
        }
    }
    if !WEIGHTED {
        total = s.splat(x.len() as f32);
    }
    let group = Group::<S, WEIGHTED> { x, w, low, total, above: s.neg_mul_add(low, total, sum) };
    let step = s.div(s.sub(high, low), s.splat(T::HIGH));
    let unit = divisor(s, step);

    let mut best = Line { slope: zero, spread: s.splat(1.0), q: zero };
    for tries in if WEIGHTED { T::TRIED_WEIGHTED } else { T::TRIED } {
        let mut placements = [(unit, unit); 3];
        for ((inverse, shift), (lower, upper)) in placements.iter_mut().zip(tries) {
            *inverse = s.mul(unit, s.splat(T::HIGH / (T::HIGH - lower - upper)));
            *shift = s.splat(-lower * T::HIGH / (T::HIGH - lower - upper));
        }
        for line in group.regress::<T, 3>(s, placements) {
            let gain = s.mul(s.mul(line.slope, line.slope), best.spread);
            let better = s.lt(s.mul(s.mul(best.slope, best.slope), line.spread), gain);
            best.slope = s.select(better, line.slope, best.slope);
            best.spread = s.select(better, line.spread, best.spread);
            best.q = s.select(better, line.q, best.q);
        }
    }

    // From here on with scales and minima as they are stored.
    let mut chosen = (storable::<S, Half>(s, step), storable::<S, Half>(s, low));
    let mut refit = group.stored(s, best);
    let [mut least, error] = group.judge::<T, 2>(s, [chosen, refit]);
    let better = s.lt(error, least);
    least = s.select(better, error, least);
    chosen.0 = s.select(better, refit.0, chosen.0);
    chosen.1 = s.select(better, refit.1, chosen.1);
    for _ in 0..if WEIGHTED { 2 } else { 0 } {
        let inverse = divisor(s, refit.0);
        let shift = s.mul(s.sub(low, refit.1), inverse);
        let [line] = group.regress::<T, 1>(s, [(inverse, shift)]);
        refit = group.stored(s, line);
        let [error] = group.judge::<T, 1>(s, [refit]);
        let better = s.lt(error, least);
        least = s.select(better, error, least);
        chosen.0 = s.select(better, refit.0, chosen.0);
        chosen.1 = s.select(better, refit.1, chosen.1);
    }
    chosen
}

/// Whether no end of the range goes half a code beyond the codes, so that what rounds to them need not be clamped.
const fn within(tried: &[[(f32, f32); 3]]) -> bool {
    let mut i = 0;
    while i < 3 * tried.len() {
        let (lower, upper) = tried[i / 3][i % 3];
        if lower >= 0.5 || upper >= 0.5 {
            return false;
        }
        i += 1;
    }
    true
}

/// Sixteen groups, and what their regressions have in common. Sums are taken from `low`, the least of the group, or a mean
/// far from zero would drown the rest.
struct Group<'a, S: Simd, const WEIGHTED: bool> {
    x: &'a Groups,
    w: &'a Groups,
    low: S::F32,
    /// Σw
    total: S::F32,
    /// Σw(x - low)
    above: S::F32,
}

/// A regression of weights on codes: the scale is `slope / spread`, and `slope² / spread` of the variance (times Σw) is
/// explained.
#[derive(Clone, Copy)]
struct Line<S: Simd> {
    /// Σw Σwqx - Σwq Σwx
    slope: S::F32,
    /// Σw Σwq² - (Σwq)²
    spread: S::F32,
    /// Σwq
    q: S::F32,
}

impl<S: Simd, const WEIGHTED: bool> Group<'_, S, WEIGHTED> {
    /// The regressions on the codes nearest to `(x - low) * inverse + shift`, for each (inverse, shift).
    #[inline(always)]
    fn regress<T: Steps, const N: usize>(&self, s: S, mut placements: [(S::F32, S::F32); N]) -> [Line<S>; N] {
        let zero = s.splat(0.0);
        let clamped = WEIGHTED || !within(T::TRIED);
        for (inverse, shift) in &mut placements {
            *shift = s.neg_mul_add(self.low, *inverse, *shift);
        }
        let mut sums = [(zero, zero, zero); N];
        for (x, w) in self.x.iter().zip(self.w) {
            let x = s.load(x);
            for ((q1, qq, xq), (inverse, shift)) in sums.iter_mut().zip(placements) {
                let mut q = s.round(s.mul_add(x, inverse, shift));
                if clamped {
                    q = s.min(s.max(q, zero), s.splat(T::HIGH));
                }
                let wq = if WEIGHTED { s.mul(s.load(w), q) } else { q };
                *q1 = s.add(wq, *q1);
                *qq = s.mul_add(wq, q, *qq);
                *xq = s.mul_add(wq, x, *xq);
            }
        }
        let mut lines = [Line { slope: zero, spread: zero, q: zero }; N];
        for (line, (q, qq, xq)) in lines.iter_mut().zip(sums) {
            let xq = s.neg_mul_add(self.low, q, xq);
            line.slope = s.neg_mul_add(q, self.above, s.mul(self.total, xq));
            line.spread = s.neg_mul_add(q, q, s.mul(self.total, qq));
            line.q = q;
        }
        lines
    }

    /// Scale and minimum of a regression, as they would be stored.
    #[inline(always)]
    fn stored(&self, s: S, line: Line<S>) -> (S::F32, S::F32) {
        let scale = storable::<S, Half>(s, s.div(line.slope, line.spread));
        // The minimum that suits the scale as it is stored.
        let rest = s.div(s.neg_mul_add(scale, line.q, self.above), self.total);
        (scale, storable::<S, Half>(s, s.add(rest, self.low)))
    }

    /// The squared error that each (scale, minimum) leaves.
    #[inline(always)]
    fn judge<T: Steps, const N: usize>(&self, s: S, stored: [(S::F32, S::F32); N]) -> [S::F32; N] {
        let mut inverses = [self.low; N];
        for (inverse, (scale, _)) in inverses.iter_mut().zip(stored) {
            *inverse = divisor(s, scale);
        }
        let mut errors = [s.splat(0.0); N];
        for (x, w) in self.x.iter().zip(self.w) {
            let x = s.load(x);
            for ((error, (scale, minimum)), inverse) in errors.iter_mut().zip(stored).zip(inverses) {
                let q = nearest::<S, T>(s, x, minimum, inverse);
                let rest = s.neg_mul_add(q, scale, s.sub(x, minimum));
                let wrest = if WEIGHTED { s.mul(s.load(w), rest) } else { rest };
                *error = s.mul_add(wrest, rest, *error);
            }
        }
        errors
    }
}

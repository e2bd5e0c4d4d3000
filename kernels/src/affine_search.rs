//! The search for scale and bias of MLX's affine groups, one group per lane.
//!
//! First without regard to how they are stored: codes from a few ranges a little wider or narrower than the group's, of which those
//! are kept that a straight line explains best, then codes from that line. Scale and bias that fit given codes best are a
//! linear regression, whose error needs three sums and no second look at the weights.
//!
//! Then among what can be stored: the values around the fit, with the scale positive and negative. The sign decides which end of the
//! range the bias is at, and so how finely it is stored. With the fit's codes the error of each is a closed form too, so only
//! those that promise the least, and MLX's own choice, are measured.
//!
//! MLX uses a group in two ways: dequantized weights are rounded to the stored type (its matrix products), its matrix-vector
//! products round nowhere in between. The error to minimise is the sum of both.

use crate::simd::{LANES, Simd};
use crate::stored::Stored;

/// What is tried.
pub(crate) struct Plan {
    /// Largest code.
    most: f32,
    /// How many codes the group's least and greatest weight lie outside of the codes' range.
    ranges: &'static [[(f32, f32); 3]],
    /// Turns of codes and least squares after the first; one more with importance, where a few weights may decide.
    refits: usize,
    /// Whether codes are of 8 bits. BF16 rounds as coarsely as those are spaced, so that the second nearest may be better.
    eight: bool,
}

impl Plan {
    /// The plan for codes of `bits`. The ranges are those that together left the least error on normal and heavy-tailed weights and
    /// those of a language model, found one by one on a grid.
    pub(crate) fn of(bits: usize) -> Plan {
        let ranges: &[_] = match bits {
            2 => &[[(0.4, 0.4), (0.4, 0.8), (1.4, 0.6)], [(1.0, 0.8), (1.0, 1.2), (0.6, 1.6)]],
            3 => &[[(0.8, 0.8), (0.0, 0.6), (0.6, 0.0)], [(0.2, 0.2), (1.2, 0.6), (0.6, 1.2)]],
            4 => &[[(0.2, 0.4), (-1.0, 0.0), (0.2, -0.2)], [(0.0, 0.6), (0.8, 0.0), (0.6, 0.4)]],
            5 | 6 => &[[(0.0, 0.0), (-0.8, 0.0), (-1.0, -1.0)], [(-0.2, 0.4), (0.4, -0.2), (-0.2, -1.0)]],
            _ => &[[(-0.2, -0.6), (-1.2, -0.4), (-1.0, -1.0)]],
        };
        let eight = bits == 8;
        Plan { most: ((1 << bits) - 1) as f32, ranges, refits: usize::from(!eight), eight }
    }
}

/// Stored lines to either side of the fit's scale that are looked at, for each sign.
const STEPS: i32 = 1;

/// How many of them are measured.
const MEASURED: usize = 3;

/// A scale and a bias.
struct Line<S: Simd> {
    scale: S::F32,
    bias: S::F32,
}

impl<S: Simd> Clone for Line<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd> Copy for Line<S> {}

impl<S: Simd> Line<S> {
    /// Lane by lane.
    #[inline(always)]
    fn select(s: S, mask: S::Mask, a: Self, b: Self) -> Self {
        Line { scale: s.select(mask, a.scale, b.scale), bias: s.select(mask, a.bias, b.bias) }
    }

    /// What the nearest code to a weight is computed with: (1 / scale, −bias / scale); zeros for a scale of zero.
    #[inline(always)]
    fn inverse(self, s: S) -> (S::F32, S::F32) {
        let zero = s.splat(0.0);
        let inverse = s.select(s.eq(self.scale, zero), zero, s.div(s.splat(1.0), self.scale));
        (inverse, s.neg(s.mul(self.bias, inverse)))
    }
}

/// Sixteen groups, as their regressions see them.
struct Group<'a, S: Simd, const WEIGHTED: bool> {
    /// Where in its group's range a weight is, in codes from the middle: −most / 2 to most / 2. So nothing is lost to cancellation if
    /// the weights are far from zero, nor to underflow if they are tiny.
    places: &'a [[f32; LANES]],
    importance: &'a [[f32; LANES]],
    most: S::F32,
    /// Σ h, the importance.
    total: S::F32,
    /// 1 / Σ h
    per_total: S::F32,
    /// Mean of the places.
    mean: S::F32,
}

/// A regression of places on codes.
struct Fit<S: Simd> {
    /// Covariance of codes and places, times Σ h.
    covariance: S::F32,
    /// Variance of the codes, times Σ h.
    variance: S::F32,
    /// Mean of the codes.
    mean: S::F32,
}

impl<'a, S: Simd, const WEIGHTED: bool> Group<'a, S, WEIGHTED> {
    /// Groups of `range` around `middle`; fills `places`.
    #[inline(always)]
    fn new(
        s: S,
        most: S::F32,
        (middle, range): (S::F32, S::F32),
        weights: &[[f32; LANES]],
        importance: &'a [[f32; LANES]],
        places: &'a mut [[f32; LANES]],
    ) -> Self {
        let zero = s.splat(0.0);
        let per_unit = s.select(s.lt(zero, range), s.div(most, range), zero);
        let (mut total, mut sum) = (zero, zero);
        for ((w, importance), place) in weights.iter().zip(importance).zip(&mut *places) {
            let x = s.mul(s.sub(s.load(w), middle), per_unit);
            s.store(x, place);
            if WEIGHTED {
                let h = s.load(importance);
                total = s.add(total, h);
                sum = s.mul_add(x, h, sum);
            } else {
                sum = s.add(sum, x);
            }
        }
        if !WEIGHTED {
            total = s.splat(weights.len() as f32);
        }
        let per_total = s.div(s.splat(1.0), total);
        Group { places, importance, most, total, per_total, mean: s.mul(sum, per_total) }
    }

    /// Takes the codes nearest to `x * line.0 + line.1` for each line, and their regressions. The best replaces `best` if it is
    /// better. Lines that leave no place half a code outside of the codes need not be `CLAMPED`.
    #[inline(always)]
    fn fit<const N: usize, const CLAMPED: bool>(
        &self,
        s: S,
        lines: [(S::F32, S::F32); N],
        best: &mut Fit<S>,
    ) {
        let zero = s.splat(0.0);
        let mut sums = [(zero, zero, zero); N];
        for (x, importance) in self.places.iter().zip(self.importance) {
            let x = s.load(x);
            for ((q1, qq, qx), line) in sums.iter_mut().zip(lines) {
                let mut q = s.round(s.mul_add(x, line.0, line.1));
                if CLAMPED {
                    q = s.min(s.max(q, zero), self.most);
                }
                let hq = if WEIGHTED { s.mul(q, s.load(importance)) } else { q };
                *q1 = s.add(*q1, hq);
                *qq = s.mul_add(hq, q, *qq);
                *qx = s.mul_add(hq, x, *qx);
            }
        }
        for (q1, qq, qx) in sums {
            let mean = s.mul(q1, self.per_total);
            let variance = s.neg_mul_add(mean, q1, qq);
            let covariance = s.neg_mul_add(self.mean, q1, qx);
            // The line explains covariance² / variance of the places' own variance.
            let gain = s.mul(s.mul(covariance, covariance), best.variance);
            let more = s.lt(s.mul(s.mul(best.covariance, best.covariance), variance), gain);
            let better = s.and(more, s.lt(zero, variance));
            best.covariance = s.select(better, covariance, best.covariance);
            best.variance = s.select(better, variance, best.variance);
            best.mean = s.select(better, mean, best.mean);
        }
    }

    /// The best regression of the plan's codes.
    #[inline(always)]
    fn best_fit(&self, s: S, plan: &Plan) -> Fit<S> {
        let zero = s.splat(0.0);
        let mut best = Fit { covariance: zero, variance: s.splat(1.0), mean: zero };
        for ranges in plan.ranges {
            let mut lines = [(zero, zero); 3];
            for (line, (below, above)) in lines.iter_mut().zip(ranges) {
                let scale = (plan.most + below + above) / plan.most;
                *line = (s.splat(scale), s.splat(0.5 * plan.most * scale - below));
            }
            if ranges.iter().all(|&(below, above)| f32::max(below, above) < 0.49) {
                self.fit::<3, false>(s, lines, &mut best);
            } else {
                self.fit::<3, true>(s, lines, &mut best);
            }
        }
        for _ in 0..plan.refits + usize::from(WEIGHTED) {
            let some = s.lt(zero, best.covariance);
            let scale = s.select(some, s.div(best.variance, best.covariance), zero);
            self.fit::<1, true>(s, [(scale, s.neg_mul_add(scale, self.mean, best.mean))], &mut best);
        }
        best
    }
}

/// The stored lines, after `rule`, that with the fit's codes are nearest to it.
#[inline(always)]
fn nearest_stored<S: Simd, T: Stored, const WEIGHTED: bool>(
    s: S,
    group: &Group<S, WEIGHTED>,
    (middle, range): (S::F32, S::F32),
    fit: &Fit<S>,
    rule: Line<S>,
) -> [Line<S>; MEASURED + 1] {
    let unit = s.div(range, group.most);
    let slope = s.mul(s.div(fit.covariance, fit.variance), unit);
    let at_mean = s.mul_add(group.mean, unit, middle);
    let mut lines = [rule; MEASURED + 1];
    let mut errors = [s.splat(f32::INFINITY); MEASURED];
    // All values can be stored in f32.
    let steps = if T::DROPPED == 0 { 0 } else { STEPS };
    for (scale, mean) in [(slope, fit.mean), (s.neg(slope), s.sub(group.most, fit.mean))] {
        let nearest = T::round(s, scale);
        for step in -steps..=steps {
            let stored = T::beyond(s, nearest, step);
            // A line of this scale is best if it meets the mean weight at the mean code.
            let exact = s.neg_mul_add(stored, mean, at_mean);
            let mut line = Line { scale: stored, bias: T::round(s, exact) };
            let (tilt, shift) = (s.sub(stored, scale), s.sub(line.bias, exact));
            let mut error =
                s.mul_add(s.mul(tilt, tilt), fit.variance, s.mul(s.mul(shift, shift), group.total));
            for (least, kept) in errors.iter_mut().zip(&mut lines[1..]) {
                let better = s.lt(error, *least);
                (*least, error) = (s.select(better, error, *least), s.select(better, *least, error));
                (*kept, line) = (Line::select(s, better, line, *kept), Line::select(s, better, *kept, line));
            }
        }
    }
    lines
}

/// Squared error of a weight's code on a stored line: of the weight as MLX dequantizes it, and of the line's own.
#[inline(always)]
fn squared_error<S: Simd, T: Stored>(s: S, w: S::F32, code: S::F32, line: Line<S>) -> S::F32 {
    let product = s.mul(code, line.scale);
    let exact = s.sub(s.sub(w, line.bias), product);
    let error = s.mul(exact, exact);
    if T::DROPPED == 0 {
        return error;
    }
    let rounded = s.sub(w, T::round_normal(s, s.add(T::round_normal(s, product), line.bias)));
    s.mul_add(rounded, rounded, error)
}

/// The stored line of the least error with its nearest codes; the first where none is better.
#[inline(always)]
fn least_error<S: Simd, T: Stored, const WEIGHTED: bool, const N: usize>(
    s: S,
    most: S::F32,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
    lines: [Line<S>; N],
) -> Line<S> {
    let zero = s.splat(0.0);
    let mut inverses = [(zero, zero); N];
    for (inverse, line) in inverses.iter_mut().zip(lines) {
        *inverse = line.inverse(s);
    }
    let mut errors = [zero; N];
    for (w, importance) in weights.iter().zip(importance) {
        let w = s.load(w);
        for ((sum, line), inverse) in errors.iter_mut().zip(lines).zip(inverses) {
            let place = s.mul_add(w, inverse.0, inverse.1);
            let code = s.min(s.max(s.round(place), zero), most);
            let error = squared_error::<S, T>(s, w, code, line);
            *sum = if WEIGHTED { s.mul_add(error, s.load(importance), *sum) } else { s.add(*sum, error) };
        }
    }
    let (mut best, mut least) = (lines[0], errors[0]);
    for (line, error) in lines.into_iter().zip(errors).skip(1) {
        let better = s.lt(error, least);
        best = Line::select(s, better, line, best);
        least = s.select(better, error, least);
    }
    best
}

/// The nearest code of a weight; of 8 bits, the second nearest if that is better.
#[inline(always)]
fn code<S: Simd, T: Stored, const EIGHT: bool>(
    s: S,
    most: S::F32,
    w: S::F32,
    line: Line<S>,
    inverse: (S::F32, S::F32),
) -> S::F32 {
    let zero = s.splat(0.0);
    let place = s.min(s.max(s.mul_add(w, inverse.0, inverse.1), zero), most);
    let first = s.round(place);
    if !EIGHT || T::DROPPED == 0 {
        return first;
    }
    let one = s.splat(1.0);
    let second = s.select(s.lt(first, place), s.add(first, one), s.sub(first, one));
    let second = s.min(s.max(second, zero), most);
    let better = s.lt(squared_error::<S, T>(s, w, second, line), squared_error::<S, T>(s, w, first, line));
    s.select(better, second, first)
}

/// The codes of four weights of each group become a word, the first in its lowest bits.
#[inline(always)]
fn codes<S: Simd, T: Stored, const EIGHT: bool>(
    s: S,
    most: S::F32,
    weights: &[[f32; LANES]],
    line: Line<S>,
    words: &mut [[i32; LANES]],
) {
    let inverse = line.inverse(s);
    let base = s.add(most, s.splat(1.0));
    for (w, word) in weights.as_chunks::<4>().0.iter().zip(words) {
        let mut q = [most; 4];
        for (q, w) in q.iter_mut().zip(w) {
            *q = code::<S, T, EIGHT>(s, most, s.load(w), line, inverse);
        }
        // Exact: f32 holds four codes of 6 bits, or two of 8.
        let upper = s.mul_add(q[3], base, q[2]);
        let joined = if EIGHT {
            let lower = s.mul_add(q[1], base, q[0]);
            s.or_i(s.to_i32(lower), s.shl_i::<16>(s.to_i32(upper)))
        } else {
            s.to_i32(s.mul_add(s.mul_add(upper, base, q[1]), base, q[0]))
        };
        s.store_i(joined, word);
    }
}

/// Encodes sixteen groups: their codes to `words`, four to a word; their scales and biases, as stored, are the result. `places` is
/// room for as many vectors as there are weights.
#[inline(always)]
pub(crate) fn search<S: Simd, T: Stored, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
    places: &mut [[f32; LANES]],
    words: &mut [[i32; LANES]],
) -> (S::F32, S::F32) {
    let most = s.splat(plan.most);
    let (mut low, mut high) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
    for w in weights {
        low = s.min(low, s.load(w));
        high = s.max(high, s.load(w));
    }
    // MLX's own rule comes first: it stays where nothing is better.
    let rule = rule(s, most, low, high);
    let rule = Line { scale: T::round(s, rule.scale), bias: T::round(s, rule.bias) };

    let range = s.sub(high, low);
    let extent = (s.mul_add(range, s.splat(0.5), low), range);
    let group = Group::<S, WEIGHTED>::new(s, most, extent, weights, importance, places);
    let fit = group.best_fit(s, plan);
    let lines = nearest_stored::<S, T, WEIGHTED>(s, &group, extent, &fit, rule);
    let line = least_error::<S, T, WEIGHTED, { MEASURED + 1 }>(s, most, weights, importance, lines);
    if plan.eight {
        codes::<S, T, true>(s, most, weights, line, words);
    } else {
        codes::<S, T, false>(s, most, weights, line, words);
    }
    (line.scale, line.bias)
}

/// `mx.quantize`'s rule, which looks at the range only: the end of larger magnitude is met, and so is zero.
#[inline(always)]
fn rule<S: Simd>(s: S, most: S::F32, low: S::F32, high: S::F32) -> Line<S> {
    let zero = s.splat(0.0);
    let size = s.max(s.div(s.sub(high, low), most), s.splat(1e-7));
    let from_low = s.lt(s.abs(high), s.abs(low));
    let scale = s.select(from_low, size, s.neg(size));
    let edge = s.select(from_low, low, high);
    let at_zero = s.round(s.div(edge, scale));
    let none = s.eq(at_zero, zero);
    Line { scale: s.select(none, scale, s.div(edge, at_zero)), bias: s.select(none, zero, edge) }
}

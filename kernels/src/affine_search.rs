//! The search for scale and bias of MLX's affine groups, one group per lane.
//!
//! First without regard to how they are stored: codes from a few ranges a little wider or narrower than the group's, each
//! with the scale and bias that fit its codes best by least squares; the best is refined by turns of codes and least squares.
//! Then among what can be stored: the values around the fit, with the scale positive and negative. The sign decides which end of the
//! range the bias is at, and so how finely it is stored.
//!
//! MLX uses a group in two ways: dequantized weights are rounded to the stored type (its matrix products), its matrix-vector
//! products round nowhere in between. The error to minimise is the sum of both.

use crate::mlx_affine::{Stored, dequantized};
use crate::simd::{LANES, Simd};

/// What is tried.
pub(crate) struct Plan {
    /// Largest code.
    most: f32,
    /// How many codes the group's least and greatest weight lie outside of the codes' range.
    ranges: &'static [(f32, f32)],
    /// Stored values tried to either side of the fit's scale, and of the bias that fits to each.
    steps: (i32, i32),
}

/// Turns of codes and least squares after the first.
const REFITS: usize = 2;

impl Plan {
    /// The plan for codes of `bits`: the ranges that together left the least error on normal and heavy-tailed weights and
    /// those of a language model, greedily chosen from a grid.
    pub(crate) fn of(bits: usize) -> Plan {
        let ranges: &[_] = match bits {
            2 => &[
                (0.7, 0.7),
                (0.5, 1.1),
                (1.0, 0.4),
                (1.1, 0.8),
                (0.7, 1.0),
                (0.2, 1.2),
                (1.2, 0.2),
                (0.2, 0.3),
            ],
            3 => &[
                (0.6, 0.6),
                (0.2, 0.8),
                (0.8, 0.2),
                (0.2, 0.2),
                (1.2, 0.8),
                (0.8, 1.2),
                (-0.2, 0.4),
                (0.4, -0.2),
            ],
            4 => &[
                (0.2, 0.2),
                (-0.2, 0.6),
                (0.6, 0.0),
                (-1.0, 0.0),
                (0.2, 0.6),
                (0.6, 0.4),
                (-0.2, -0.2),
                (1.0, 0.2),
                (-1.0, -1.0),
            ],
            _ => &[
                (0.0, 0.0),
                (-0.8, 0.2),
                (-1.0, -1.0),
                (-0.2, 0.4),
                (0.4, -0.2),
                (-0.2, -1.2),
                (0.4, 0.2),
                (-0.8, -0.2),
            ],
        };
        let steps = if bits < 8 { (1, 0) } else { (1, 1) };
        Plan { most: ((1 << bits) - 1) as f32, ranges, steps }
    }
}

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

#[inline(always)]
fn code<S: Simd>(s: S, w: S::F32, inverse: (S::F32, S::F32), most: S::F32) -> S::F32 {
    s.min(s.max(s.round(s.mul_add(w, inverse.0, inverse.1)), s.splat(0.0)), most)
}

/// A line fitted by least squares to the codes that another gave.
struct Fit<S: Simd> {
    line: Line<S>,
    /// Squared error with those codes.
    error: S::F32,
    /// Mean of those codes.
    mean: S::F32,
}

/// Takes the nearest codes on `line`, then the line nearest to those codes.
#[inline(always)]
fn refit<S: Simd, const WEIGHTED: bool>(
    s: S,
    most: S::F32,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
    line: Line<S>,
) -> Fit<S> {
    let zero = s.splat(0.0);
    let inverse = line.inverse(s);
    let (mut h, mut hq, mut hqq) = (zero, zero, zero);
    let (mut hr, mut hrq, mut hrr) = (zero, zero, zero);
    for (w, importance) in weights.iter().zip(importance) {
        let w = s.load(w);
        let q = code(s, w, inverse, most);
        // Sums of what is left, not of the weights, so that little is lost to cancellation.
        let r = s.neg_mul_add(q, line.scale, s.sub(w, line.bias));
        let (q1, r1) = if WEIGHTED {
            let one = s.load(importance);
            h = s.add(h, one);
            (s.mul(q, one), s.mul(r, one))
        } else {
            (q, r)
        };
        hq = s.add(hq, q1);
        hqq = s.mul_add(q1, q, hqq);
        hr = s.add(hr, r1);
        hrq = s.mul_add(r1, q, hrq);
        hrr = s.mul_add(r1, r, hrr);
    }
    if !WEIGHTED {
        h = s.splat(weights.len() as f32);
    }
    let per_h = s.select(s.eq(h, zero), zero, s.div(s.splat(1.0), h));
    let mean = s.mul(hq, per_h);
    // Variance and covariance, times Σ h.
    let variance = s.neg_mul_add(mean, hq, hqq);
    let covariance = s.neg_mul_add(mean, hr, hrq);
    let slope = s.select(s.lt(zero, variance), s.div(covariance, variance), zero);
    let shift = s.neg_mul_add(slope, mean, s.mul(hr, per_h));
    let gain = s.mul_add(slope, covariance, s.mul(s.mul(hr, hr), per_h));
    Fit {
        line: Line { scale: s.add(line.scale, slope), bias: s.add(line.bias, shift) },
        error: s.sub(hrr, gain),
        mean,
    }
}

/// Squared error of the nearest codes on a stored line: of the weights as MLX dequantizes them, and of the line's own.
#[inline(always)]
fn stored_error<S: Simd, T: Stored, const WEIGHTED: bool>(
    s: S,
    most: S::F32,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
    line: Line<S>,
) -> S::F32 {
    let inverse = line.inverse(s);
    let mut sum = s.splat(0.0);
    for (w, importance) in weights.iter().zip(importance) {
        let w = s.load(w);
        let q = code(s, w, inverse, most);
        let exact = s.neg_mul_add(q, line.scale, s.sub(w, line.bias));
        let mut error = s.mul(exact, exact);
        if T::DROPPED > 0 {
            let rounded = s.sub(w, dequantized::<S, T>(s, q, line.scale, line.bias));
            error = s.mul_add(rounded, rounded, error);
        }
        sum = if WEIGHTED { s.mul_add(error, s.load(importance), sum) } else { s.add(sum, error) };
    }
    sum
}

/// The best stored line so far.
struct Best<S: Simd> {
    line: Line<S>,
    error: S::F32,
}

impl<S: Simd> Best<S> {
    #[inline(always)]
    fn consider(&mut self, s: S, line: Line<S>, error: S::F32) {
        let better = s.lt(error, self.error);
        self.line = Line::select(s, better, line, self.line);
        self.error = s.select(better, error, self.error);
    }
}

/// Encodes sixteen groups: their codes to `codes`, element by element; their scales and biases, as stored, are the result.
#[inline(always)]
pub(crate) fn search<S: Simd, T: Stored, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
    codes: &mut [[u8; LANES]],
) -> (S::F32, S::F32) {
    let most = s.splat(plan.most);
    let none = s.splat(f32::INFINITY);
    let (mut low, mut high) = (none, s.splat(f32::NEG_INFINITY));
    for w in weights {
        low = s.min(low, s.load(w));
        high = s.max(high, s.load(w));
    }

    // MLX's own rule comes first: it stays where nothing is better.
    let rule = rule(s, most, low, high);
    let stored = Line { scale: T::round(s, rule.scale), bias: T::round(s, rule.bias) };
    let mut best =
        Best { line: stored, error: stored_error::<S, T, WEIGHTED>(s, most, weights, importance, stored) };

    let range = s.sub(high, low);
    let mut fit = Fit { line: rule, error: none, mean: s.splat(0.0) };
    for &(below, above) in plan.ranges {
        let scale = s.mul(range, s.splat(1.0 / (plan.most + below + above)));
        let line = Line { scale, bias: s.mul_add(scale, s.splat(below), low) };
        keep(s, &mut fit, refit::<S, WEIGHTED>(s, most, weights, importance, line));
    }
    for _ in 0..REFITS {
        let next = refit::<S, WEIGHTED>(s, most, weights, importance, fit.line);
        keep(s, &mut fit, next);
    }

    // All values can be stored in f32.
    let (scales, biases) = if T::DROPPED == 0 { (0, 0) } else { plan.steps };
    let end = s.mul_add(fit.line.scale, most, fit.line.bias);
    for (scale, bias, mean) in
        [(fit.line.scale, fit.line.bias, fit.mean), (s.neg(fit.line.scale), end, s.sub(most, fit.mean))]
    {
        let nearest = T::round(s, scale);
        for step in -scales..=scales {
            let stored = T::beyond(s, nearest, step);
            // The same line through the mean of the codes.
            let bias = T::round(s, s.mul_add(s.sub(scale, stored), mean, bias));
            for step in -biases..=biases {
                let line = Line { scale: stored, bias: T::beyond(s, bias, step) };
                best.consider(s, line, stored_error::<S, T, WEIGHTED>(s, most, weights, importance, line));
            }
        }
    }

    let inverse = best.line.inverse(s);
    for (w, codes) in weights.iter().zip(codes) {
        s.store_u8(s.to_i32(code(s, s.load(w), inverse, most)), codes);
    }
    (best.line.scale, best.line.bias)
}

#[inline(always)]
fn keep<S: Simd>(s: S, best: &mut Fit<S>, next: Fit<S>) {
    let better = s.lt(next.error, best.error);
    best.line = Line::select(s, better, next.line, best.line);
    best.error = s.select(better, next.error, best.error);
    best.mean = s.select(better, next.mean, best.mean);
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

//! Search of super-blocks `x ≈ d · sc · q − dmin · m`: `f16` steps `d` and `dmin`, unsigned integer sub-scale `sc` and
//! sub-minimum `m` per group, a code `q` per weight (Q2_K, Q4_K, Q5_K).
//!
//! First each group is fitted on its own: codes from a few ranges a little narrower or wider than the group's, and the
//! best scale and minimum for each by least squares. The largest set the steps; then the lattice of what can be stored is
//! searched around each group's fit by true error, the steps are refitted to the codes found (least squares in both), and
//! the neighbours on the lattice are tried again.

use crate::simd::{LANES, Simd};
use crate::superblock::{Tile, reciprocal, segment_max, segment_sum, stored, stored_bits};

/// What a type searches.
pub(crate) struct Plan {
    /// Largest code.
    pub codes: f32,
    /// Largest sub-scale and sub-minimum.
    pub limit: f32,
    /// Ranges tried per group: how many codes lie beyond its least and its greatest weight.
    pub ranges: &'static [(f32, f32)],
    /// Sub-scales given in turn to the group with the largest scale.
    pub tops: &'static [f32],
    /// Steps on the lattice from a group's fit.
    pub around: &'static [(f32, f32)],
    /// Steps on the lattice from its best point, after each refit of `d` and `dmin`.
    pub again: &'static [(f32, f32)],
    /// Times that the steps are refitted.
    pub refits: usize,
}

/// An encoded tile.
pub(crate) struct Affine<S: Simd, const N: usize> {
    /// `f16` bits of the step of each lane's super-block.
    pub d: [u16; LANES],
    /// `f16` bits of the step of the minima.
    pub dmin: [u16; LANES],
    /// Sub-scale of each lane.
    pub scale: S::F32,
    /// Sub-minimum of each lane.
    pub min: S::F32,
    /// Codes, element by element.
    pub codes: [S::F32; N],
}

/// Code of each `x` under `scale · q − min`, given `1 / scale` and `min / scale`.
#[inline(always)]
fn code<S: Simd>(s: S, x: S::F32, inverse: S::F32, offset: S::F32, most: S::F32) -> S::F32 {
    s.min(s.max(s.round(s.mul_add(x, inverse, offset)), s.splat(0.0)), most)
}

/// Sums over a group with given codes.
struct Sums<S: Simd> {
    /// Σ w q
    q: S::F32,
    /// Σ w q²
    qq: S::F32,
    /// Σ w q x
    qx: S::F32,
}

#[inline(always)]
fn sums<S: Simd, const N: usize, const WEIGHTED: bool>(
    s: S,
    tile: &Tile<S, N>,
    inverse: S::F32,
    offset: S::F32,
    most: S::F32,
) -> Sums<S> {
    let zero = s.splat(0.0);
    let mut sums = Sums { q: zero, qq: zero, qx: zero };
    for i in 0..N {
        let q = code(s, tile.x[i], inverse, offset, most);
        let wq = if WEIGHTED { s.mul(q, tile.w[i]) } else { q };
        sums.q = s.add(wq, sums.q);
        sums.qq = s.mul_add(wq, q, sums.qq);
        sums.qx = s.mul_add(wq, tile.x[i], sums.qx);
    }
    sums
}

/// Σ w (x − scale · q + min)² of each group with the codes nearest.
#[inline(always)]
fn error<S: Simd, const N: usize, const WEIGHTED: bool>(
    s: S,
    tile: &Tile<S, N>,
    scale: S::F32,
    min: S::F32,
    most: S::F32,
) -> S::F32 {
    let inverse = reciprocal(s, scale);
    let offset = s.mul(min, inverse);
    let mut sum = s.splat(0.0);
    for i in 0..N {
        let q = code(s, tile.x[i], inverse, offset, most);
        let e = s.neg_mul_add(q, scale, s.add(tile.x[i], min));
        let weighted = if WEIGHTED { s.mul(e, tile.w[i]) } else { e };
        sum = s.mul_add(weighted, e, sum);
    }
    sum
}

/// A point on the lattice of each lane, and its error.
#[derive(Clone, Copy)]
struct Point<S: Simd> {
    scale: S::F32,
    min: S::F32,
    error: S::F32,
}

impl<S: Simd> Point<S> {
    #[inline(always)]
    fn consider<const N: usize, const WEIGHTED: bool>(
        &mut self,
        s: S,
        plan: &Plan,
        tile: &Tile<S, N>,
        steps: (S::F32, S::F32),
        scale: S::F32,
        min: S::F32,
    ) {
        let zero = s.splat(0.0);
        let limit = s.splat(plan.limit);
        let scale = s.min(s.max(s.round(scale), zero), limit);
        let min = s.min(s.max(s.round(min), zero), limit);
        let most = s.splat(plan.codes);
        let error = error::<S, N, WEIGHTED>(s, tile, s.mul(steps.0, scale), s.mul(steps.1, min), most);
        let better = s.lt(error, self.error);
        self.scale = s.select(better, scale, self.scale);
        self.min = s.select(better, min, self.min);
        self.error = s.select(better, error, self.error);
    }
}

/// Encodes a tile; `SPAN` lanes form a super-block.
#[inline(always)]
pub(crate) fn search<S: Simd, const N: usize, const SPAN: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
) -> Affine<S, N> {
    let zero = s.splat(0.0);
    let none = s.splat(f32::MAX);
    let most = s.splat(plan.codes);
    let (mut low, mut high) = (zero, s.splat(f32::MIN));
    let (mut w, mut wx) = (zero, zero);
    for i in 0..N {
        low = s.min(tile.x[i], low);
        high = s.max(tile.x[i], high);
        if WEIGHTED {
            w = s.add(tile.w[i], w);
            wx = s.mul_add(tile.w[i], tile.x[i], wx);
        } else {
            wx = s.add(tile.x[i], wx);
        }
    }
    if !WEIGHTED {
        w = s.splat(N as f32);
    }

    // Each group on its own.
    let range = s.sub(high, low);
    let per_range = reciprocal(s, range);
    let (mut scale, mut min, mut gain) = (zero, zero, zero);
    for &(below, above) in plan.ranges {
        let inverse = s.mul(s.splat(plan.codes + below + above), per_range);
        let offset = s.neg_mul_add(low, inverse, s.splat(-below));
        let sums = sums::<S, N, WEIGHTED>(s, tile, inverse, offset, most);
        let (a, b) = fit(s, &sums, w, wx);
        let this = s.sub(s.mul(a, sums.qx), s.mul(b, wx));
        let better = s.lt(gain, this);
        scale = s.select(better, a, scale);
        min = s.select(better, b, min);
        gain = s.select(better, this, gain);
    }

    let top_scale = segment_max::<S, SPAN>(s, scale);
    let top_min = segment_max::<S, SPAN>(s, min);
    let mut steps = (zero, zero);
    let mut least = none;
    let mut best = Point { scale: zero, min: zero, error: none };
    for &top in plan.tops {
        let per_top = s.splat(1.0 / top);
        let d = stored(s, s.mul(top_scale, per_top), tile.unit);
        let dmin = stored(s, s.mul(top_min, per_top), tile.unit);
        let at = s.round(s.mul(scale, reciprocal(s, d)));
        let at_min = s.round(s.mul(min, reciprocal(s, dmin)));
        let mut point = Point { scale: zero, min: zero, error: none };
        for &(a, b) in plan.around {
            let (a, b) = (s.add(at, s.splat(a)), s.add(at_min, s.splat(b)));
            point.consider::<N, WEIGHTED>(s, plan, tile, (d, dmin), a, b);
        }
        keep::<S, SPAN>(s, &mut steps, &mut best, &mut least, (d, dmin), point);
    }
    for _ in 0..plan.refits {
        let (d, dmin) = refit::<S, N, SPAN, WEIGHTED>(s, plan, tile, steps, best, w, wx);
        let d = stored(s, d, tile.unit);
        let dmin = stored(s, dmin, tile.unit);
        let mut point = Point { scale: zero, min: zero, error: none };
        for &(a, b) in plan.again {
            let (a, b) = (s.add(best.scale, s.splat(a)), s.add(best.min, s.splat(b)));
            point.consider::<N, WEIGHTED>(s, plan, tile, (d, dmin), a, b);
        }
        keep::<S, SPAN>(s, &mut steps, &mut best, &mut least, (d, dmin), point);
    }

    let inverse = reciprocal(s, s.mul(steps.0, best.scale));
    let offset = s.mul(s.mul(steps.1, best.min), inverse);
    let mut out =
        Affine { d: [0; LANES], dmin: [0; LANES], scale: best.scale, min: best.min, codes: [zero; N] };
    stored_bits(s, steps.0, tile.unit, &mut out.d);
    stored_bits(s, steps.1, tile.unit, &mut out.dmin);
    for i in 0..N {
        out.codes[i] = code(s, tile.x[i], inverse, offset, most);
    }
    out
}

/// Keeps steps and points where they give a super-block less error than any before.
#[inline(always)]
fn keep<S: Simd, const SPAN: usize>(
    s: S,
    steps: &mut (S::F32, S::F32),
    best: &mut Point<S>,
    least: &mut S::F32,
    new_steps: (S::F32, S::F32),
    new: Point<S>,
) {
    let total = segment_sum::<S, SPAN>(s, new.error);
    let better = s.lt(total, *least);
    *least = s.select(better, total, *least);
    steps.0 = s.select(better, new_steps.0, steps.0);
    steps.1 = s.select(better, new_steps.1, steps.1);
    best.scale = s.select(better, new.scale, best.scale);
    best.min = s.select(better, new.min, best.min);
}

/// The scale and the minimum (not negative) that fit best to a group's codes.
#[inline(always)]
fn fit<S: Simd>(s: S, sums: &Sums<S>, w: S::F32, wx: S::F32) -> (S::F32, S::F32) {
    let zero = s.splat(0.0);
    let product = s.mul(w, sums.qq);
    let determinant = s.sub(product, s.mul(sums.q, sums.q));
    let inverse = reciprocal(s, determinant);
    let scale = s.mul(s.sub(s.mul(w, sums.qx), s.mul(sums.q, wx)), inverse);
    let min = s.mul(s.sub(s.mul(sums.q, sums.qx), s.mul(sums.qq, wx)), inverse);
    // Where all codes are the same, all there is left of the determinant is rounding errors.
    let same = s.le(determinant, s.mul(product, s.splat(1e-5)));
    let alone = s.or(s.lt(min, zero), same);
    let scale = s.select(alone, s.mul(sums.qx, reciprocal(s, sums.qq)), scale);
    (s.max(scale, zero), s.select(alone, zero, min))
}

/// The steps that fit best to the codes that a super-block has now.
#[inline(always)]
fn refit<S: Simd, const N: usize, const SPAN: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
    steps: (S::F32, S::F32),
    best: Point<S>,
    w: S::F32,
    wx: S::F32,
) -> (S::F32, S::F32) {
    let inverse = reciprocal(s, s.mul(steps.0, best.scale));
    let offset = s.mul(s.mul(steps.1, best.min), inverse);
    let group = sums::<S, N, WEIGHTED>(s, tile, inverse, offset, s.splat(plan.codes));
    let sums = Sums::<S> {
        q: segment_sum::<S, SPAN>(s, s.mul(group.q, s.mul(best.scale, best.min))),
        qq: segment_sum::<S, SPAN>(s, s.mul(group.qq, s.mul(best.scale, best.scale))),
        qx: segment_sum::<S, SPAN>(s, s.mul(group.qx, best.scale)),
    };
    let w = segment_sum::<S, SPAN>(s, s.mul(w, s.mul(best.min, best.min)));
    let wx = segment_sum::<S, SPAN>(s, s.mul(wx, best.min));
    fit(s, &sums, w, wx)
}

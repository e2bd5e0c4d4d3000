//! Search of super-blocks `x ≈ d · sc · q − dmin · m`: `f16` steps `d` and `dmin`, unsigned integer sub-scale `sc` and
//! sub-minimum `m` per group, a code `q` per weight (Q2_K, Q4_K, Q5_K).
//!
//! First each group is fitted on its own: codes from a few ranges a little narrower or wider than the group's, and the
//! best scale and minimum for each by least squares. The largest set the steps; then the lattice of what can be stored is
//! searched around each group's fit by true error, the steps are refitted to the codes found (least squares in both), and
//! the neighbours on the lattice are tried again.

use crate::grid::nearest_integer;
use crate::simd::{LANES, Simd};
use crate::superblock::{Tile, reciprocal, segment_max, segment_sum, stored, stored_bits};

/// What a type searches.
pub(crate) struct Plan {
    /// Largest code.
    pub codes: i32,
    /// Largest sub-scale and sub-minimum.
    pub limit: f32,
    /// Ranges tried per group: how many steps its least weight lies below code 0 and its greatest above the last code.
    pub ranges: &'static [(f32, f32)],
}

/// Steps on the lattice from a group's own fit.
const AROUND: [(f32, f32); 5] = [(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)];

/// Steps on the lattice from its best point, after `d` and `dmin` were refitted.
const AGAIN: [(f32, f32); 9] = [
    (0.0, 0.0),
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (1.0, 1.0),
    (-1.0, -1.0),
    (1.0, -1.0),
    (-1.0, 1.0),
];

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

/// Sums over a group with given codes.
struct Sums<S: Simd> {
    /// Σ w q
    q: S::F32,
    /// Σ w q²
    qq: S::F32,
    /// Σ w q x
    qx: S::F32,
}

/// The sums for the codes nearest to `(x + min) · inverse`, within `0..=most`.
#[inline(always)]
fn sums<S: Simd, const N: usize, const WEIGHTED: bool>(
    s: S,
    tile: &Tile<S, N>,
    inverse: S::F32,
    min: S::F32,
    most: i32,
) -> Sums<S> {
    let zero = s.splat(0.0);
    let mut sums = Sums { q: zero, qq: zero, qx: zero };
    for i in 0..N {
        let q = nearest_integer(s, s.add(tile.x[i], min), inverse, 0, most);
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
    most: i32,
) -> S::F32 {
    let inverse = reciprocal(s, scale);
    let mut sum = [s.splat(0.0); 4];
    for i in 0..N {
        let x = s.add(tile.x[i], min);
        let e = s.neg_mul_add(nearest_integer(s, x, inverse, 0, most), scale, x);
        let weighted = if WEIGHTED { s.mul(e, tile.w[i]) } else { e };
        sum[i % 4] = s.mul_add(weighted, e, sum[i % 4]);
    }
    s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3]))
}

/// The best fit so far of each group on its own.
struct Own<S: Simd> {
    scale: S::F32,
    min: S::F32,
    /// By how much it lowers the error that zeros would have.
    gain: S::F32,
}

impl<S: Simd> Own<S> {
    /// Tries the scale and minimum that fit best to the codes with these sums.
    #[inline(always)]
    fn consider(&mut self, s: S, sums: &Sums<S>, w: S::F32, wx: S::F32) {
        let (scale, min) = fit(s, sums, w, wx);
        let gain = s.sub(s.mul(scale, sums.qx), s.mul(min, wx));
        let better = s.lt(self.gain, gain);
        self.scale = s.select(better, scale, self.scale);
        self.min = s.select(better, min, self.min);
        self.gain = s.select(better, gain, self.gain);
    }
}

/// A point on the lattice of each lane, and its error.
struct Point<S: Simd> {
    scale: S::F32,
    min: S::F32,
    error: S::F32,
}

impl<S: Simd> Point<S> {
    /// Tries a sub-scale and a sub-minimum, clamped to the lattice.
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
        let scale = s.min(s.max(scale, zero), limit);
        let min = s.min(s.max(min, zero), limit);
        let error = error::<S, N, WEIGHTED>(s, tile, s.mul(steps.0, scale), s.mul(steps.1, min), plan.codes);
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
    let (mut low, mut high) = (zero, s.splat(f32::MIN));
    // Σ w and Σ w x of each group.
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

    let range = s.sub(high, low);
    let per_range = reciprocal(s, range);
    let mut own = Own { scale: zero, min: zero, gain: zero };
    for &(below, above) in plan.ranges {
        let beyond = plan.codes as f32 + below + above;
        let inverse = s.mul(s.splat(beyond), per_range);
        let least = s.mul_add(range, s.splat(below / beyond), low);
        let sums = sums::<S, N, WEIGHTED>(s, tile, inverse, s.neg(least), plan.codes);
        own.consider(s, &sums, w, wx);
    }

    let per_limit = s.splat(1.0 / plan.limit);
    let d = stored(s, s.mul(segment_max::<S, SPAN>(s, own.scale), per_limit), tile.unit);
    let dmin = stored(s, s.mul(segment_max::<S, SPAN>(s, own.min), per_limit), tile.unit);
    let at = (s.mul(own.scale, reciprocal(s, d)), s.mul(own.min, reciprocal(s, dmin)));
    let best = near::<S, N, WEIGHTED>(s, plan, tile, (d, dmin), at, &AROUND);

    let (d2, dmin2) = refit::<S, N, SPAN, WEIGHTED>(s, plan, tile, (d, dmin), &best, w, wx);
    let (d2, dmin2) = (stored(s, d2, tile.unit), stored(s, dmin2, tile.unit));
    let again = near::<S, N, WEIGHTED>(s, plan, tile, (d2, dmin2), (best.scale, best.min), &AGAIN);
    let better = s.lt(segment_sum::<S, SPAN>(s, again.error), segment_sum::<S, SPAN>(s, best.error));
    let steps = (s.select(better, d2, d), s.select(better, dmin2, dmin));
    let (scale, min) = (s.select(better, again.scale, best.scale), s.select(better, again.min, best.min));

    let inverse = reciprocal(s, s.mul(steps.0, scale));
    let offset = s.mul(steps.1, min);
    let mut out = Affine { d: [0; LANES], dmin: [0; LANES], scale, min, codes: [zero; N] };
    stored_bits(s, steps.0, tile.unit, &mut out.d);
    stored_bits(s, steps.1, tile.unit, &mut out.dmin);
    for i in 0..N {
        out.codes[i] = nearest_integer(s, s.add(tile.x[i], offset), inverse, 0, plan.codes);
    }
    out
}

/// The best of the lattice's points around `at`.
#[inline(always)]
fn near<S: Simd, const N: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
    steps: (S::F32, S::F32),
    at: (S::F32, S::F32),
    offsets: &[(f32, f32)],
) -> Point<S> {
    let zero = s.splat(0.0);
    let (scale, min) = (s.round(at.0), s.round(at.1));
    let mut point = Point { scale: zero, min: zero, error: s.splat(f32::MAX) };
    for &(a, b) in offsets {
        let (a, b) = (s.add(scale, s.splat(a)), s.add(min, s.splat(b)));
        point.consider::<N, WEIGHTED>(s, plan, tile, steps, a, b);
    }
    point
}

/// The scale and the minimum (not negative) that fit best to a group's codes, given Σ w and Σ w x.
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
    best: &Point<S>,
    w: S::F32,
    wx: S::F32,
) -> (S::F32, S::F32) {
    let inverse = reciprocal(s, s.mul(steps.0, best.scale));
    let group = sums::<S, N, WEIGHTED>(s, tile, inverse, s.mul(steps.1, best.min), plan.codes);
    let sums = Sums::<S> {
        q: segment_sum::<S, SPAN>(s, s.mul(group.q, s.mul(best.scale, best.min))),
        qq: segment_sum::<S, SPAN>(s, s.mul(group.qq, s.mul(best.scale, best.scale))),
        qx: segment_sum::<S, SPAN>(s, s.mul(group.qx, best.scale)),
    };
    let w = segment_sum::<S, SPAN>(s, s.mul(w, s.mul(best.min, best.min)));
    let wx = segment_sum::<S, SPAN>(s, s.mul(wx, best.min));
    fit(s, &sums, w, wx)
}

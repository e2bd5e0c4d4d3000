//! Search of super-blocks `x ≈ d · sc · v`: an `f16` step `d`, a signed integer sub-scale `sc` per group, a grid value `v`
//! per weight (Q3_K, Q6_K, IQ4_XS).
//!
//! The error of a group as a function of its scale is rough (every step moves some weight to another value), and the only
//! scales there are lie on the lattice `d · sc`. So the lattice itself is searched, by the true error of what would be
//! stored: the sub-scales of each group near the one that maps its extreme weight to the end of the grid. Then `d` is
//! refitted by least squares to the codes found, and the sub-scales' neighbours are tried again.

use crate::grid::Grid;
use crate::simd::{LANES, Simd};
use crate::superblock::{Tile, reciprocal, segment_extreme, segment_sum, stored, stored_bits};

/// What a type searches.
pub(crate) struct Plan {
    /// Sub-scales run from `-limit` to `limit - 1`.
    pub limit: i32,
    /// Sub-scale of the scale that maps the super-block's most extreme weight to the grid's end. Below `limit`, so that
    /// larger ones can be tried too.
    pub top: f32,
    /// Scales tried per group, in units of the one that maps its extreme weight to the grid's end. The other sign tries the
    /// other end.
    pub factors: &'static [f32],
}

/// An encoded tile.
pub(crate) struct Signed<S: Simd, const N: usize> {
    /// `f16` bits of the step of each lane's super-block.
    pub d: [u16; LANES],
    /// Sub-scale of each lane.
    pub sub_scale: S::F32,
    /// Codes, element by element.
    pub codes: [S::F32; N],
}

/// Σ w (x − scale · v)² of each group, `v` being the grid value nearest to `x / scale`.
#[inline(always)]
fn error<S: Simd, G: Grid, const N: usize, const WEIGHTED: bool>(
    s: S,
    tile: &Tile<S, N>,
    scale: S::F32,
) -> S::F32 {
    let inverse = reciprocal(s, scale);
    let mut sum = [s.splat(0.0); 4];
    for i in 0..N {
        let v = G::nearest(s, tile.x[i], inverse);
        let e = s.neg_mul_add(v, scale, tile.x[i]);
        let weighted = if WEIGHTED { s.mul(e, tile.w[i]) } else { e };
        sum[i % 4] = s.mul_add(weighted, e, sum[i % 4]);
    }
    s.add(s.add(sum[0], sum[1]), s.add(sum[2], sum[3]))
}

/// The best sub-scale seen so far for a step.
struct Best<S: Simd> {
    sub_scale: S::F32,
    error: S::F32,
}

impl<S: Simd> Best<S> {
    /// Tries a sub-scale (rounded and clamped to `limit`) for step `d`.
    #[inline(always)]
    fn consider<G: Grid, const N: usize, const WEIGHTED: bool>(
        &mut self,
        s: S,
        tile: &Tile<S, N>,
        d: S::F32,
        sub_scale: S::F32,
        limit: i32,
    ) {
        let least = s.splat(-limit as f32);
        let most = s.splat((limit - 1) as f32);
        let sub_scale = s.min(s.max(s.round(sub_scale), least), most);
        let error = error::<S, G, N, WEIGHTED>(s, tile, s.mul(d, sub_scale));
        let better = s.lt(error, self.error);
        self.sub_scale = s.select(better, sub_scale, self.sub_scale);
        self.error = s.select(better, error, self.error);
    }
}

/// Encodes a tile; `SPAN` lanes form a super-block.
#[inline(always)]
pub(crate) fn search<S: Simd, G: Grid, const N: usize, const SPAN: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
) -> Signed<S, N> {
    let zero = s.splat(0.0);
    let one = s.splat(1.0);
    let none = s.splat(f32::MAX);
    let (mut low, mut high) = (zero, zero);
    for &x in &tile.x {
        low = s.min(x, low);
        high = s.max(x, high);
    }
    let extreme = s.select(s.lt(s.neg(low), high), high, low);
    let full = s.mul(extreme, s.splat(1.0 / G::LEAST));
    let top = segment_extreme::<S, SPAN>(s, full);

    let d = stored(s, s.mul(top, s.splat(-1.0 / plan.top)), tile.unit);
    let centre = s.mul(full, reciprocal(s, d));
    let mut best = Best { sub_scale: zero, error: none };
    for &factor in plan.factors {
        let wanted = s.mul(centre, s.splat(factor));
        best.consider::<G, N, WEIGHTED>(s, tile, d, wanted, plan.limit);
    }
    let found = best.sub_scale;
    best.consider::<G, N, WEIGHTED>(s, tile, d, s.add(found, one), plan.limit);
    best.consider::<G, N, WEIGHTED>(s, tile, d, s.sub(found, one), plan.limit);

    let refitted = stored(s, refit::<S, G, N, SPAN, WEIGHTED>(s, tile, d, best.sub_scale), tile.unit);
    let mut again = Best { sub_scale: zero, error: none };
    again.consider::<G, N, WEIGHTED>(s, tile, refitted, best.sub_scale, plan.limit);
    again.consider::<G, N, WEIGHTED>(s, tile, refitted, s.add(best.sub_scale, one), plan.limit);
    again.consider::<G, N, WEIGHTED>(s, tile, refitted, s.sub(best.sub_scale, one), plan.limit);
    let better = s.lt(segment_sum::<S, SPAN>(s, again.error), segment_sum::<S, SPAN>(s, best.error));
    let d = s.select(better, refitted, d);
    let sub_scale = s.select(better, again.sub_scale, best.sub_scale);

    let inverse = reciprocal(s, s.mul(d, sub_scale));
    let mut out = Signed { d: [0; LANES], sub_scale, codes: [zero; N] };
    stored_bits(s, d, tile.unit, &mut out.d);
    for i in 0..N {
        out.codes[i] = G::code(s, tile.x[i], inverse);
    }
    out
}

/// The step that fits best to the codes that `d` and the sub-scales give: Σ w x sc v / Σ w (sc v)² over the super-block.
#[inline(always)]
fn refit<S: Simd, G: Grid, const N: usize, const SPAN: usize, const WEIGHTED: bool>(
    s: S,
    tile: &Tile<S, N>,
    d: S::F32,
    sub_scale: S::F32,
) -> S::F32 {
    let inverse = reciprocal(s, s.mul(d, sub_scale));
    let (mut xv, mut vv) = (s.splat(0.0), s.splat(0.0));
    for i in 0..N {
        let v = G::nearest(s, tile.x[i], inverse);
        let wv = if WEIGHTED { s.mul(v, tile.w[i]) } else { v };
        xv = s.mul_add(wv, tile.x[i], xv);
        vv = s.mul_add(wv, v, vv);
    }
    let xv = segment_sum::<S, SPAN>(s, s.mul(xv, sub_scale));
    let vv = segment_sum::<S, SPAN>(s, s.mul(vv, s.mul(sub_scale, sub_scale)));
    s.mul(xv, reciprocal(s, vv))
}

//! Search of super-blocks `x ≈ d · sc · v`: an `f16` step `d`, a signed integer sub-scale `sc` per group, a grid value `v`
//! per weight (Q3_K, Q6_K, IQ4_XS).
//!
//! The values that a scale gives have a best scale of their own, Σ w x v / Σ w v², which explains (Σ w x v)² / Σ w v² of the
//! group's norm. So a group needs no step to compare a few placements of its extreme weight on the grid: the one that
//! explains the most gives its scale. The step then maps the super-block's largest scale to the largest sub-scale, is
//! refitted by least squares to the sub-scales and the groups' sums, and with them decides the codes. (Trying the
//! neighbours of each sub-scale, with the codes of its own, lowers the RMS error by 0.1 % only.)

use crate::grid::Grid;
use crate::simd::{LANES, Simd};
use crate::superblock::{Tile, reciprocal, segment_extreme, segment_sum, stored, stored_bits};

/// What a type searches.
pub(crate) struct Plan {
    /// Sub-scales run from `-limit` to `limit - 1`, the largest of a super-block is `limit - 1` in magnitude.
    pub limit: i32,
    /// Values, not necessarily of the grid, to try for a group's extreme weight. A negative one turns the scale's sign
    /// against that weight's.
    pub tried: &'static [[f32; TOGETHER]],
    /// More of them with importance, where a few weights may decide.
    pub tried_weighted: &'static [[f32; TOGETHER]],
}

/// Placements tried at a time: each waits for its last sum, together they keep the machine busy.
const TOGETHER: usize = 3;

/// An encoded tile.
pub(crate) struct Signed<S: Simd, const N: usize> {
    /// `f16` bits of the step of each lane's super-block.
    pub d: [u16; LANES],
    /// Sub-scale of each lane.
    pub sub_scale: S::F32,
    /// Codes, element by element.
    pub codes: [S::F32; N],
}

/// Encodes a tile; `SPAN` lanes form a super-block.
#[inline(always)]
pub(crate) fn search<S: Simd, G: Grid, const N: usize, const SPAN: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
) -> Signed<S, N> {
    let zero = s.splat(0.0);
    let (xv, vv) = best::<S, G, N, WEIGHTED>(s, plan, tile);
    let own = s.div(xv, vv);
    let limit = plan.limit as f32;
    let top = segment_extreme::<S, SPAN>(s, own);
    let d = stored(s, s.mul(top, s.splat(-1.0 / (limit - 1.0))), tile.unit);
    // A step as coarse as half floats get may be far from what was wanted.
    let nearest = s.round(s.mul(own, reciprocal(s, d)));
    let sub_scale = s.min(s.max(nearest, s.splat(-limit)), s.splat(limit - 1.0));

    // The step that fits best: Σ w x sc v / Σ w (sc v)² over the super-block.
    let xv = segment_sum::<S, SPAN>(s, s.mul(xv, sub_scale));
    let vv = segment_sum::<S, SPAN>(s, s.mul(vv, s.mul(sub_scale, sub_scale)));
    let mut out = Signed { d: [0; LANES], sub_scale, codes: [zero; N] };
    stored_bits(s, s.mul(xv, reciprocal(s, vv)), tile.unit, &mut out.d);
    let d = s.mul(s.load_f16(&out.d), tile.unit);
    let inverse = reciprocal(s, s.mul(d, sub_scale));
    for (code, &x) in out.codes.iter_mut().zip(&tile.x) {
        *code = G::code(s, x, inverse);
    }
    out
}

/// Σ w x v and Σ w v² of each group's values `v` under the best of the placements tried.
#[inline(always)]
fn best<S: Simd, G: Grid, const N: usize, const WEIGHTED: bool>(
    s: S,
    plan: &Plan,
    tile: &Tile<S, N>,
) -> (S::F32, S::F32) {
    let zero = s.splat(0.0);
    let (mut low, mut high) = (zero, zero);
    for &x in &tile.x {
        low = s.min(x, low);
        high = s.max(x, high);
    }
    let unit = reciprocal(s, s.select(s.lt(s.neg(low), high), high, low));
    let mut best = (zero, s.splat(1.0));
    let more = if WEIGHTED { plan.tried_weighted } else { &[] };
    for places in plan.tried.iter().chain(more) {
        let inverses = places.map(|place| s.mul(unit, s.splat(place)));
        let mut sums = [(zero, zero); TOGETHER];
        for i in 0..N {
            for ((xv, vv), inverse) in sums.iter_mut().zip(inverses) {
                let v = G::nearest(s, tile.x[i], inverse);
                let wv = if WEIGHTED { s.mul(v, tile.w[i]) } else { v };
                *xv = s.mul_add(wv, tile.x[i], *xv);
                *vv = s.mul_add(wv, v, *vv);
            }
        }
        for (xv, vv) in sums {
            let better = s.lt(s.mul(s.mul(best.0, best.0), vv), s.mul(s.mul(xv, xv), best.1));
            best.0 = s.select(better, xv, best.0);
            best.1 = s.select(better, vv, best.1);
        }
    }
    best
}

//! The search for the scale of groups whose weights are `scale * code`, the codes being a run of integers around zero.
//!
//! Rounding to a grid of unknown step has no closed solution, but given the codes the best scale is a division. So a few
//! placements of the largest weight on the grid are tried, the scale of the best codes is refitted, and what is stored
//! (a half float) is compared with what the peers would store: never worse, nearly always better. (Where the least and the
//! greatest weight tie, peers go by the order of the weights; here the greatest decides.)

use crate::scales::{divisor, storable};
use crate::simd::{LANES, Simd};

/// Weights per group.
pub const GROUP: usize = 32;

/// One weight of each of sixteen groups in each row.
pub type Groups = [[f32; LANES]; GROUP];

/// The integers a scale multiplies, and where on them the weight of largest magnitude is tried.
pub trait Grid {
    /// The lowest code: -8, the long end of -8..=7.
    const LOW: f32;
    /// The highest code.
    const HIGH: f32;
    /// The code that peers give the weight of largest magnitude. A negative one turns the scale's sign against that
    /// weight's.
    const PEERS: f32;
    /// Codes, not necessarily whole, to try for it. Three at a time keep a machine busy that takes four cycles to add.
    const TRIED: &[[f32; 3]];
    /// The same with importance, where a few weights may decide.
    const TRIED_WEIGHTED: &[[f32; 3]];
}

/// The code nearest to each `x * inverse`.
#[inline(always)]
pub fn nearest<S: Simd, G: Grid>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
    // In this order a NaN ends at the highest code everywhere.
    s.min(s.max(s.round(s.mul(x, inverse)), s.splat(G::LOW)), s.splat(G::HIGH))
}

/// The half-float scale of least squared error among those tried, for each lane.
#[inline(always)]
pub fn search<S: Simd, G: Grid, const WEIGHTED: bool>(s: S, x: &Groups, w: &Groups) -> S::F32 {
    let mut low = s.splat(0.0);
    let mut high = low;
    for x in x {
        low = s.min(s.load(x), low);
        high = s.max(s.load(x), high);
    }
    let peak = if G::LOW == -G::HIGH {
        // The scale's sign makes no difference, and a positive one surprises nobody.
        s.max(s.neg(low), high)
    } else {
        s.select(s.lt(high, s.neg(low)), low, high)
    };
    let unit = divisor(s, peak);

    // For codes q the best scale is Σwxq / Σwq², and it explains (Σwxq)² / Σwq² of the weights' norm.
    let mut best = (s.splat(0.0), s.splat(1.0));
    for tries in if WEIGHTED { G::TRIED_WEIGHTED } else { G::TRIED } {
        let mut inverses = [unit; 3];
        for (inverse, &code) in inverses.iter_mut().zip(tries) {
            *inverse = s.mul(unit, s.splat(code));
        }
        for sums in correlate::<S, G, WEIGHTED, 3>(s, x, w, inverses) {
            let gain = s.mul(s.mul(sums.0, sums.0), best.1);
            let better = s.lt(s.mul(s.mul(best.0, best.0), sums.1), gain);
            best.0 = s.select(better, sums.0, best.0);
            best.1 = s.select(better, sums.1, best.1);
        }
    }

    // From here on with scales as they are stored.
    let peers = storable(s, s.div(peak, s.splat(G::PEERS)));
    let refit = storable(s, s.div(best.0, best.1));
    let [first, second] = judge::<S, G, WEIGHTED, 2>(s, x, w, [peers, refit]);
    let better = s.lt(second.0, first.0);
    let mut least = s.select(better, second.0, first.0);
    let mut scale = s.select(better, refit, peers);
    let mut refit = second.1;
    for _ in 0..if WEIGHTED { 2 } else { 0 } {
        let [(error, next)] = judge::<S, G, WEIGHTED, 1>(s, x, w, [refit]);
        let better = s.lt(error, least);
        least = s.select(better, error, least);
        scale = s.select(better, refit, scale);
        refit = next;
    }
    scale
}

/// The largest magnitude of a code tried. No weight goes further, so what rounds to the grid need not be clamped.
const fn reach(tried: &[[f32; 3]]) -> f32 {
    let mut most = 0.0;
    let mut i = 0;
    while i < 3 * tried.len() {
        most = f32::max(most, tried[i / 3][i % 3].abs());
        i += 1;
    }
    most
}

/// (Σwxq, Σwq²) of the codes that each of `inverses` gives.
#[inline(always)]
fn correlate<S: Simd, G: Grid, const WEIGHTED: bool, const N: usize>(
    s: S,
    x: &Groups,
    w: &Groups,
    inverses: [S::F32; N],
) -> [(S::F32, S::F32); N] {
    let reach = reach(if WEIGHTED { G::TRIED_WEIGHTED } else { G::TRIED });
    let mut sums = [(s.splat(0.0), s.splat(0.0)); N];
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        for ((xq, qq), inverse) in sums.iter_mut().zip(inverses) {
            let mut q = s.round(s.mul(x, inverse));
            if reach >= 0.5 - G::LOW {
                q = s.max(q, s.splat(G::LOW));
            }
            if reach >= 0.5 + G::HIGH {
                q = s.min(q, s.splat(G::HIGH));
            }
            let wq = if WEIGHTED { s.mul(s.load(w), q) } else { q };
            *xq = s.mul_add(wq, x, *xq);
            *qq = s.mul_add(wq, q, *qq);
        }
    }
    sums
}

/// The squared error that each of `scales` leaves, and the scale that suits its codes best.
#[inline(always)]
fn judge<S: Simd, G: Grid, const WEIGHTED: bool, const N: usize>(
    s: S,
    x: &Groups,
    w: &Groups,
    scales: [S::F32; N],
) -> [(S::F32, S::F32); N] {
    let mut inverses = scales;
    for (inverse, scale) in inverses.iter_mut().zip(scales) {
        *inverse = divisor(s, scale);
    }
    let mut sums = [(s.splat(0.0), s.splat(0.0), s.splat(0.0)); N];
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        for (((error, xq, qq), scale), inverse) in sums.iter_mut().zip(scales).zip(inverses) {
            let q = nearest::<S, G>(s, x, inverse);
            let rest = s.neg_mul_add(q, scale, x);
            let (wq, wrest) =
                if WEIGHTED { (s.mul(s.load(w), q), s.mul(s.load(w), rest)) } else { (q, rest) };
            *error = s.mul_add(wrest, rest, *error);
            *xq = s.mul_add(wq, x, *xq);
            *qq = s.mul_add(wq, q, *qq);
        }
    }
    let mut judged = [(s.splat(0.0), s.splat(0.0)); N];
    for (out, (error, xq, qq)) in judged.iter_mut().zip(sums) {
        *out = (error, storable(s, s.div(xq, qq)));
    }
    judged
}

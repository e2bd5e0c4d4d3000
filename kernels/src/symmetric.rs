//! The search for the scale of groups whose weights are `scale * code`, the codes being a run of integers around zero.
//!
//! Rounding to a grid of unknown step has no closed solution, but given the codes the best scale is a division. So a few
//! placements of the largest weight on the grid are tried, the peers' own among them, and the codes that explain the most give
//! the scale: but for its rounding to how it is stored never worse than the peers', nearly always better. (Where the least and
//! the greatest weight tie, peers go by the order of the weights; here the greatest decides.) With importance, what would
//! be stored is compared with what the peers would store, and refitted to the codes that it gives.

use crate::grid::{nearest_integer, rounded};
use crate::scales::{divisor, storable};
use crate::simd::{LANES, Simd};
use crate::stored::Stored;

/// Weights per group of GGUF's types.
pub const GROUP: usize = 32;

/// One weight of each of sixteen groups in each row.
pub type Groups<const N: usize = GROUP> = [[f32; LANES]; N];

/// The integers a scale multiplies, and where on them the weight of largest magnitude is tried.
pub trait Grid {
    /// The lowest code: -8, the long end of -8..=7.
    const LOW: i32;
    /// The highest code.
    const HIGH: i32;
    /// The code that peers give the weight of largest magnitude. A negative one turns the scale's sign against that
    /// weight's.
    const PEERS: f32;
    /// Codes, not necessarily whole, to try for it. Three at a time keep a machine busy that takes four cycles to add.
    const TRIED: &[[f32; 3]];
    /// The same with importance, where a few weights may decide.
    const TRIED_WEIGHTED: &[[f32; 3]];
}

/// The scale, a `T`, of least squared error among those tried, for each lane.
#[inline(always)]
pub fn search<S: Simd, G: Grid, T: Stored, const WEIGHTED: bool, const N: usize>(
    s: S,
    x: &Groups<N>,
    w: &Groups<N>,
) -> S::F32 {
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
    // Far from infinity: zeros must not become NaN. Weights so small have a scale of zero.
    let unit = s.min(divisor(s, peak), s.splat(1e36));

    // For codes q the best scale is Σwxq / Σwq², and it explains (Σwxq)² / Σwq² of the weights' norm.
    let mut best = (s.splat(0.0), s.splat(1.0));
    for tries in if WEIGHTED { G::TRIED_WEIGHTED } else { G::TRIED } {
        let mut inverses = [unit; 3];
        for (inverse, &code) in inverses.iter_mut().zip(tries) {
            *inverse = s.mul(unit, s.splat(code));
        }
        for sums in correlate::<S, G, WEIGHTED, N, 3>(s, x, w, inverses) {
            let gain = s.mul(s.mul(sums.0, sums.0), best.1);
            let better = s.lt(s.mul(s.mul(best.0, best.0), sums.1), gain);
            best.0 = s.select(better, sums.0, best.0);
            best.1 = s.select(better, sums.1, best.1);
        }
    }

    let refit = storable::<S, T>(s, s.div(best.0, best.1));
    if !WEIGHTED {
        return refit;
    }

    // From here on with scales as they are stored.
    let peers = storable::<S, T>(s, s.div(peak, s.splat(G::PEERS)));
    let [first, second] = judge::<S, G, T, WEIGHTED, N, 2>(s, x, w, [peers, refit]);
    let better = s.lt(second.0, first.0);
    let mut least = s.select(better, second.0, first.0);
    let mut scale = s.select(better, refit, peers);
    let mut refit = second.1;
    for _ in 0..2 {
        let [(error, next)] = judge::<S, G, T, WEIGHTED, N, 1>(s, x, w, [refit]);
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
fn correlate<S: Simd, G: Grid, const WEIGHTED: bool, const N: usize, const TRIES: usize>(
    s: S,
    x: &Groups<N>,
    w: &Groups<N>,
    inverses: [S::F32; TRIES],
) -> [(S::F32, S::F32); TRIES] {
    let reach = reach(if WEIGHTED { G::TRIED_WEIGHTED } else { G::TRIED });
    let mut sums = [(s.splat(0.0), s.splat(0.0)); TRIES];
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        for ((xq, qq), inverse) in sums.iter_mut().zip(inverses) {
            let q = if reach < 0.5 + G::HIGH as f32 {
                rounded(s, x, inverse)
            } else {
                nearest_integer(s, x, inverse, G::LOW, G::HIGH)
            };
            let wq = if WEIGHTED { s.mul(s.load(w), q) } else { q };
            *xq = s.mul_add(wq, x, *xq);
            *qq = s.mul_add(wq, q, *qq);
        }
    }
    sums
}

/// The squared error that each of `scales` leaves, and the scale that suits its codes best.
#[inline(always)]
fn judge<S: Simd, G: Grid, T: Stored, const WEIGHTED: bool, const N: usize, const TRIES: usize>(
    s: S,
    x: &Groups<N>,
    w: &Groups<N>,
    scales: [S::F32; TRIES],
) -> [(S::F32, S::F32); TRIES] {
    let mut inverses = scales;
    for (inverse, scale) in inverses.iter_mut().zip(scales) {
        *inverse = divisor(s, scale);
    }
    let mut sums = [(s.splat(0.0), s.splat(0.0), s.splat(0.0)); TRIES];
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        for (((error, xq, qq), scale), inverse) in sums.iter_mut().zip(scales).zip(inverses) {
            let q = nearest_integer(s, x, inverse, G::LOW, G::HIGH);
            let rest = s.neg_mul_add(q, scale, x);
            let (wq, wrest) =
                if WEIGHTED { (s.mul(s.load(w), q), s.mul(s.load(w), rest)) } else { (q, rest) };
            *error = s.mul_add(wrest, rest, *error);
            *xq = s.mul_add(wq, x, *xq);
            *qq = s.mul_add(wq, q, *qq);
        }
    }
    let mut judged = [(s.splat(0.0), s.splat(0.0)); TRIES];
    for (out, (error, xq, qq)) in judged.iter_mut().zip(sums) {
        *out = (error, storable::<S, T>(s, s.div(xq, qq)));
    }
    judged
}

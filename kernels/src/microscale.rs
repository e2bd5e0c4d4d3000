//! Groups of small floats under one 8-bit scale: the search for the scale that MXFP4, MXFP8 and NVFP4 share.
//!
//! A scale's code is an integer, monotonic in the scale, so the search tries the codes around the one that maps the largest
//! weight to the elements' largest value, and keeps the one with the smallest (weighted) squared error as decoded.

use std::marker::PhantomData;
use std::ops::Range;

use crate::fp8::{e4m3, e4m3_to_f32, e8m0_to_f32};
use crate::lanes::{gather, relative_importance};
use crate::minifloat::{Element, exp2};
use crate::simd::{Kernel, LANES, Simd};

/// A format of scales.
pub(crate) trait Scale {
    /// Codes to try, relative to [`Scale::start`].
    const CANDIDATES: Range<i32>;
    /// The smallest and the largest code.
    const LIMITS: (i32, i32);
    /// The code from which to search, for groups whose largest magnitude is `max`.
    fn start<S: Simd, E: Element>(s: S, max: S::F32) -> S::I32;
    /// The scale that a code stands for, and its inverse.
    fn value<S: Simd>(s: S, code: S::I32) -> (S::F32, S::F32);
    /// The scale that a code stands for.
    fn decode(code: u8) -> f32;
}

/// A power of two with all of `f32`'s exponents.
pub(crate) struct E8M0;

impl Scale for E8M0 {
    const CANDIDATES: Range<i32> = -1..2;
    const LIMITS: (i32, i32) = (0, 253);

    /// The largest element's exponent becomes the largest that the elements have.
    #[inline(always)]
    fn start<S: Simd, E: Element>(s: S, max: S::F32) -> S::I32 {
        s.sub_i(s.shr_i::<23>(s.bits(max)), s.splat_i(E::MAX_EXPONENT))
    }

    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I32) -> (S::F32, S::F32) {
        // 2⁻¹²⁷, code 0, is subnormal.
        let normal = s.shl_i::<23>(code);
        let scale = s.select_i(s.eq_i(code, s.splat_i(0)), s.splat_i(1 << 22), normal);
        let inverse = s.shl_i::<23>(s.sub_i(s.splat_i(254), code));
        (s.from_bits(scale), s.from_bits(inverse))
    }

    #[inline(always)]
    fn decode(code: u8) -> f32 {
        e8m0_to_f32(code)
    }
}

/// E4M3 without sign.
pub(crate) struct Ue4m3;

impl Scale for Ue4m3 {
    const CANDIDATES: Range<i32> = -5..9;
    const LIMITS: (i32, i32) = (1, 126);

    /// The scale at or below `max` divided by the largest element.
    #[inline(always)]
    fn start<S: Simd, E: Element>(s: S, max: S::F32) -> S::I32 {
        let scale = s.min(s.mul(max, s.splat(1.0 / E::MAX)), s.splat(448.0));
        let subnormal = s.to_i32(s.mul(scale, s.splat(exp2(9))));
        let normal = s.sub_i(s.shr_i::<20>(s.bits(scale)), s.splat_i(120 << 3));
        s.select_i(s.lt(scale, s.splat(exp2(-6))), subnormal, normal)
    }

    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I32) -> (S::F32, S::F32) {
        let scale = e4m3(s, code);
        (scale, s.div(s.splat(1.0), scale))
    }

    #[inline(always)]
    fn decode(code: u8) -> f32 {
        e4m3_to_f32(code)
    }
}

/// Sixteen groups, encoded: one per lane.
pub(crate) struct Groups<const GROUP: usize> {
    /// The scales' codes.
    pub scales: [u8; LANES],
    /// `codes[j][l]` is element `j` of group `l`.
    pub codes: [[i32; LANES]; GROUP],
}

/// Encodes `src`, groups of `GROUP` weights, and hands sixteen groups at a time to `pack` with the index of the first. The groups
/// beyond the end of `src` are zeros.
pub(crate) struct Encode<'a, E, C, P, const GROUP: usize> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    pack: P,
    format: PhantomData<(E, C)>,
}

/// Puts sixteen encoded groups into their container's bytes.
pub(crate) trait Pack<const GROUP: usize> {
    /// `first` is the index of the first group, `lanes` how many of the sixteen exist.
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize);
}

impl<'a, E, C, P, const GROUP: usize> Encode<'a, E, C, P, GROUP> {
    /// `importance` weighs the squared error of each column; see [`crate::format::Encode`].
    pub(crate) fn new(src: &'a [f32], importance: Option<&'a [f32]>, pack: P) -> Self {
        Self { src, importance, pack, format: PhantomData }
    }
}

impl<E: Element, C: Scale, P: Pack<GROUP>, const GROUP: usize> Kernel for Encode<'_, E, C, P, GROUP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let groups = self.src.len() / GROUP;
        let mut weights = [[0.0; LANES]; GROUP];
        let mut importance = [[1.0; LANES]; GROUP];
        let mut out = Groups { scales: [0; LANES], codes: [[0; LANES]; GROUP] };
        for first in (0..groups).step_by(LANES) {
            gather(s, self.src, GROUP, first, &mut weights);
            let code = if self.importance.is_some() {
                relative_importance(s, self.importance, GROUP, first, &mut importance);
                search::<S, E, C, true>(s, &weights, &importance)
            } else {
                search::<S, E, C, false>(s, &weights, &importance)
            };
            s.store_u8(code, &mut out.scales);
            let (_, inverse) = C::value(s, code);
            for (w, out) in weights.iter().zip(&mut out.codes) {
                let x = s.mul(s.load(w), inverse);
                s.store_i(E::code(s, x), out);
            }
            self.pack.pack(s, &out, first, LANES.min(groups - first));
        }
    }
}

/// The scale codes of sixteen groups.
#[inline(always)]
fn search<S: Simd, E: Element, C: Scale, const WEIGHTED: bool>(
    s: S,
    weights: &[[f32; LANES]],
    importance: &[[f32; LANES]],
) -> S::I32 {
    let mut max = s.splat(0.0);
    for w in weights {
        max = s.max(max, s.abs(s.load(w)));
    }
    let start = limited::<S, C>(s, C::start::<S, E>(s, max));
    let (_, unit) = C::value(s, start);
    let mut best = start;
    let mut least = s.splat(f32::INFINITY);
    for candidate in C::CANDIDATES {
        let code = limited::<S, C>(s, s.add_i(start, s.splat_i(candidate)));
        let (scale, inverse) = C::value(s, code);
        let mut error = s.splat(0.0);
        for (w, h) in weights.iter().zip(importance) {
            let x = s.mul(s.abs(s.load(w)), inverse);
            let off = s.sub(x, E::round(s, x));
            let weighted = if WEIGHTED { s.mul(off, s.load(h)) } else { off };
            error = s.mul_add(off, weighted, error);
        }
        // From units of this scale to those of the first, which small weights' squares don't underflow.
        let ratio = s.mul(scale, unit);
        let error = s.mul(error, s.mul(ratio, ratio));
        let better = s.lt(error, least);
        least = s.select(better, error, least);
        best = s.select_i(better, code, best);
    }
    best
}

#[inline(always)]
fn limited<S: Simd, C: Scale>(s: S, code: S::I32) -> S::I32 {
    s.min_i(s.max_i(code, s.splat_i(C::LIMITS.0)), s.splat_i(C::LIMITS.1))
}

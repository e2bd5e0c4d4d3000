//! The grid of IQ4_NL and IQ4_XS: sixteen values, closer together in the middle.

use crate::format::Format;
use crate::grid::Grid;
use crate::shaders::{Decoder, decoder, packed};
use crate::simd::{LANES, Simd};

/// The codebook of IQ4_NL and IQ4_XS (ggml's `kvalues_iq4nl`).
pub(crate) const IQ4: [f32; LANES] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// [`IQ4`] shifted by one: the value after each.
const IQ4_NEXT: [f32; LANES] = {
    let mut next = [IQ4[LANES - 1]; LANES];
    let mut i = 0;
    while i + 1 < LANES {
        next[i] = IQ4[i + 1];
        i += 1;
    }
    next
};

/// Halfway between each value and the next.
const IQ4_HALFWAY: [f32; LANES] = {
    let mut halfway = [f32::MAX; LANES];
    let mut i = 0;
    while i + 1 < LANES {
        halfway[i] = (IQ4[i] + IQ4[i + 1]) / 2.0;
        i += 1;
    }
    halfway
};

/// The codebook of IQ4_NL and IQ4_XS as a grid.
pub(crate) struct Iq4;

impl Iq4 {
    /// An index `g` such that the value nearest to `t` is number `g` or `g + 1`, and `t` clamped to the grid.
    ///
    /// The codebook follows a cubic: the polynomial's value at the point halfway between values `i` and `i + 1` lies
    /// within 0.13 of `i + 1/2`, so that `g`, its floor, is `i` on both sides of that point.
    #[inline(always)]
    fn bracket<S: Simd>(s: S, t: S::F32) -> (S::I32, S::F32) {
        let t = s.min(s.max(t, s.splat(IQ4[0])), s.splat(IQ4[LANES - 1]));
        let t2 = s.mul(t, t);
        let slope = s.mul_add(t2, s.splat(-1.493_13e-6), s.splat(8.174_24e-2));
        let curve = s.mul_add(t2, s.splat(-1.203_07e-5), s.splat(7.903_89 - 0.5));
        (s.to_i32(s.mul_add(t, slope, curve)), t)
    }
}

impl Grid for Iq4 {
    const LEAST: f32 = IQ4[0];

    #[inline(always)]
    fn nearest<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
        let (g, t) = Self::bracket(s, s.mul(x, inverse));
        let first = s.lt(t, s.lookup(&IQ4_HALFWAY, g));
        s.select(first, s.lookup(&IQ4, g), s.lookup(&IQ4_NEXT, g))
    }

    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
        let (g, t) = Self::bracket(s, s.mul(x, inverse));
        let first = s.lt(t, s.lookup(&IQ4_HALFWAY, g));
        let g = s.to_f32(g);
        s.select(first, g, s.add(g, s.splat(1.0)))
    }
}

/// `scale · value[code]` for 32 codes, packed by [`crate::nibbles::fold`].
#[inline(always)]
pub(crate) fn decode<S: Simd>(s: S, scale: f32, qs: &[u8; LANES], dst: &mut [f32; 32]) {
    let (scale, qs) = (s.splat(scale), s.load_u8(qs));
    let [low, high] = [s.and_i(qs, s.splat_i(15)), s.shr_i::<4>(qs)];
    let (first, second) = dst.split_at_mut(LANES);
    for (codes, dst) in [(low, first), (high, second)] {
        for dst in dst.as_chunks_mut().0 {
            s.store(s.mul(scale, s.lookup(&IQ4, codes)), dst);
        }
    }
}

/// [`Format::shader`] of IQ4_NL and IQ4_XS.
pub(crate) fn shader(format: &Format, part: &str) -> Decoder {
    let word = |i: usize| packed(&std::array::from_fn(|j| IQ4[4 * i + j] as i8 as u8));
    let names = ["CODEBOOK_0", "CODEBOOK_1", "CODEBOOK_2", "CODEBOOK_3"];
    let constants: [_; 4] = std::array::from_fn(|i| (names[i], word(i)));
    let parts = [include_str!("shaders/decode/codes.wgsl"), include_str!("shaders/decode/iq4.wgsl"), part];
    decoder(format, &constants, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    #[test]
    fn codebook_lookup_finds_the_nearest_value() {
        for i in -20_000..20_000 {
            let t = i as f32 / 128.0;
            let distance = |v: f32| (t - v).abs();
            let best = IQ4.iter().map(|&v| distance(v)).fold(f32::MAX, f32::min);
            let found = Iq4::nearest(Scalar, [t; LANES], [1.0; LANES])[0];
            assert_eq!(distance(found), best, "{t} -> {found}");
            let code = Iq4::code(Scalar, [t; LANES], [1.0; LANES])[0];
            assert_eq!(IQ4[code as usize], found, "{t} -> {code}");
        }
    }
}

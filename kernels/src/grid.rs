//! Grids: the values that a code can stand for, in units of the scale.

use crate::simd::Simd;

/// The values of a code in units of its group's scale.
pub(crate) trait Grid {
    /// The least value; its magnitude is the grid's largest.
    const LEAST: f32;
    /// The value nearest to `x · inverse`.
    fn nearest<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32;
    /// The code of the value nearest to `x · inverse`.
    fn code<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32;
}

/// The integers `-HALF..HALF`, whose codes begin at 0.
pub(crate) struct Integers<const HALF: i32>;

impl<const HALF: i32> Grid for Integers<HALF> {
    const LEAST: f32 = -HALF as f32;

    #[inline(always)]
    fn nearest<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
        nearest_integer(s, x, inverse, -HALF, HALF - 1)
    }

    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
        s.add(Self::nearest(s, x, inverse), s.splat(HALF as f32))
    }
}

/// A number whose last bit is worth 1, with room for integers on both sides: what is added to it is rounded to an integer.
const UNIT_BIT: f32 = 12_582_912.0;

/// The integer within `least..=most` nearest to `x · inverse` (which is not NaN).
///
/// `x · inverse + UNIT_BIT` is rounded once, to an integer. As bits, positive floats are in the order of their values,
/// with the negative ones below, so the clamp may compare integers: x86 does that on units which multiplications leave idle.
#[inline(always)]
pub(crate) fn nearest_integer<S: Simd>(s: S, x: S::F32, inverse: S::F32, least: i32, most: i32) -> S::F32 {
    s.sub(s.from_bits(clamped(s, x, inverse, least, most)), s.splat(UNIT_BIT))
}

/// [`nearest_integer`] as an integer, counted from `least`.
#[inline(always)]
pub(crate) fn nearest_code<S: Simd>(s: S, x: S::F32, inverse: S::F32, least: i32, most: i32) -> S::I32 {
    s.sub_i(clamped(s, x, inverse, least, most), s.splat_i(unit_bits(least)))
}

/// The integer nearest to `x · inverse`, of magnitude below 2^22. (Where a clamp would do nothing.)
#[inline(always)]
pub(crate) fn rounded<S: Simd>(s: S, x: S::F32, inverse: S::F32) -> S::F32 {
    s.sub(s.mul_add(x, inverse, s.splat(UNIT_BIT)), s.splat(UNIT_BIT))
}

/// The bits of an integer plus [`UNIT_BIT`].
const fn unit_bits(integer: i32) -> i32 {
    (UNIT_BIT + integer as f32).to_bits() as i32
}

/// The bits of the nearest integer plus [`UNIT_BIT`].
#[inline(always)]
fn clamped<S: Simd>(s: S, x: S::F32, inverse: S::F32, least: i32, most: i32) -> S::I32 {
    let rounded = s.bits(s.mul_add(x, inverse, s.splat(UNIT_BIT)));
    s.min_i(s.max_i(rounded, s.splat_i(unit_bits(least))), s.splat_i(unit_bits(most)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{LANES, Scalar};

    #[test]
    fn nearest_integers_are_clamped_whatever_comes() {
        for (x, inverse, want) in [
            (0.0, 0.0, 0.0),
            (2.4, 1.0, 2.0),
            (-2.6, 1.0, -3.0),
            (1.0, 2.5, 2.0),
            (1.0, 3.5, 4.0),
            (1.0, 7.5, 7.0),
            (-1.0, 1e4, -8.0),
            (1.0, 1e20, 7.0),
            (-1.0, 1e20, -8.0),
            (1.0, f32::INFINITY, 7.0),
            (-1.0, f32::INFINITY, -8.0),
        ] {
            let found = Integers::<8>::nearest(Scalar, [x; LANES], [inverse; LANES]);
            assert_eq!(found, [want; LANES], "{x} * {inverse}");
        }
    }
}

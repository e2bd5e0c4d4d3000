//! Grids: the values that a code can stand for, in units of the scale.

use crate::simd::Simd;

/// The values of a code in units of its group's scale.
pub(crate) trait Grid {
    /// The least value; its magnitude is the grid's largest.
    const LEAST: f32;
    /// The value nearest to `t`.
    fn nearest<S: Simd>(s: S, t: S::F32) -> S::F32;
    /// The code of the value nearest to `t`.
    fn code<S: Simd>(s: S, t: S::F32) -> S::F32;
}

/// The integers `-HALF..HALF`, whose codes begin at 0.
pub(crate) struct Integers<const HALF: i32>;

impl<const HALF: i32> Grid for Integers<HALF> {
    const LEAST: f32 = -HALF as f32;

    #[inline(always)]
    fn nearest<S: Simd>(s: S, t: S::F32) -> S::F32 {
        s.min(s.max(s.round(t), s.splat(Self::LEAST)), s.splat((HALF - 1) as f32))
    }

    #[inline(always)]
    fn code<S: Simd>(s: S, t: S::F32) -> S::F32 {
        s.add(Self::nearest(s, t), s.splat(HALF as f32))
    }
}

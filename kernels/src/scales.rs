//! Scales as formats store them: half floats at a fixed place in each block.

use crate::simd::{LANES, Simd};
use crate::stored::{Half, Stored, rescale};

/// The number nearest to each scale that can be stored. Magnitudes beyond the largest such number become that, so that no scale
/// is infinite; NaN, which searches over extreme weights may meet, becomes the lowest.
#[inline(always)]
pub fn storable<S: Simd, T: Stored>(s: S, scale: S::F32) -> S::F32 {
    T::round(s, s.min(s.max(scale, s.splat(-T::MAX)), s.splat(T::MAX)))
}

/// `1 / scale`, and 0 where the scale is 0: all weights of such a group get code 0.
#[inline(always)]
pub fn divisor<S: Simd>(s: S, scale: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    s.select(s.eq(scale, zero), zero, s.div(s.splat(1.0), scale))
}

/// Writes the scale of each lane (already a half float) to byte `at` of its block of `bytes` bytes.
#[inline(always)]
pub fn write_halves<S: Simd>(s: S, scales: S::F32, out: &mut [u8], bytes: usize, at: usize) {
    let mut halves = [0; LANES];
    s.store_f16(scales, &mut halves);
    for (half, block) in halves.iter().zip(out.chunks_mut(bytes)) {
        block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
}

/// The half floats at byte `at` of up to sixteen blocks, widened.
#[inline(always)]
pub fn read_halves<S: Simd, const BYTES: usize>(s: S, blocks: &[[u8; BYTES]], at: usize) -> [f32; LANES] {
    let mut halves = [0; LANES];
    for (half, block) in halves.iter_mut().zip(blocks) {
        *half = u16::from_le_bytes([block[at], block[at + 1]]);
    }
    let mut out = [0.0; LANES];
    s.store(s.load_f16(&halves), &mut out);
    out
}

/// The half float at byte `at` of a block.
pub fn half_at(block: &[u8], at: usize) -> f32 {
    Half::read(&block[at..])
}

/// [`Lattice::steps`](crate::lattice::Lattice) of a block that is one group and begins with its scale and, if `HALVES` is 2, its
/// offset.
pub fn steps<const HALVES: usize>(planes: &[&[u8]], scales: &mut [f32], offsets: &mut [f32]) {
    scales[0] = half_at(planes[0], 0);
    offsets[0] = if HALVES == 2 { half_at(planes[0], 2) } else { 0.0 };
}

/// [`Lattice::rescale`](crate::lattice::Lattice) of a block whose scale and, if `HALVES` is 2, offset are at byte `AT`, or those
/// that its groups multiply.
pub fn rescale_halves<const AT: usize, const HALVES: usize>(factors: [f32; 2], planes: &mut [&mut [u8]]) {
    for (half, factor) in planes[0][AT..].chunks_exact_mut(2).zip(factors).take(HALVES) {
        rescale::<Half>(factor, half);
    }
}

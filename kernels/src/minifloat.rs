//! Rounding to floats of four and eight bits: E2M1 (FP4) and E4M3 (FP8).
//!
//! Sources: OCP Microscaling Formats (MX) v1.0; the E4M3 without infinities of OCP FP8.

use crate::format::Format;
use crate::shaders::{Decoder, decoder};
use crate::simd::{LANES, Simd};

/// A small float format as the elements of a block.
pub(crate) trait Element {
    /// Bits of the mantissa.
    const MANTISSA: u32;
    /// Exponent of the largest value.
    const MAX_EXPONENT: i32;
    /// Exponent of the smallest normal value.
    const MIN_EXPONENT: i32;
    /// The largest value.
    const MAX: f32;
    /// Where the sign is.
    const SIGN: i32;

    /// The value nearest to `x` ≥ 0, ties to even, saturating.
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let x = s.min(x, s.splat(Self::MAX));
        let magic = s.from_bits(s.add_i(power::<S, Self>(s, x), s.splat_i(rounder::<Self>())));
        s.sub(s.add(x, magic), magic)
    }

    /// The code of the value nearest to `x`, ties to even, saturating.
    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F32) -> S::I32 {
        let magnitude = s.min(s.abs(x), s.splat(Self::MAX));
        let power = power::<S, Self>(s, magnitude);
        let magic = s.add_i(power, s.splat_i(rounder::<Self>()));
        // The sum's last bits count the spacings: up to two to the mantissa's bits more than the binade's first code.
        let spacings = s.sub_i(s.bits(s.add(magnitude, s.from_bits(magic))), magic);
        let binade = match Self::MANTISSA {
            1 => s.shr_i::<22>(power),
            _ => s.shr_i::<20>(power),
        };
        let first = s.sub_i(binade, s.splat_i((127 + Self::MIN_EXPONENT) << Self::MANTISSA));
        let negative = s.lt(x, s.splat(0.0));
        let sign = s.select_i(negative, s.splat_i(Self::SIGN), s.splat_i(0));
        s.or_i(s.add_i(first, spacings), sign)
    }
}

/// The bits of the power of two at or below `x`, which is not less than the smallest normal value: it gives the spacing of
/// values around `x`.
#[inline(always)]
fn power<S: Simd, E: Element + ?Sized>(s: S, x: S::F32) -> S::I32 {
    let exponent = s.and_i(s.bits(x), s.splat_i(0x7f80_0000));
    s.max_i(exponent, s.splat_i((127 + E::MIN_EXPONENT) << 23))
}

/// What to add to the bits of [`power`] for those of 1.5 · 2²³ spacings: a sum with that is rounded to the spacing.
const fn rounder<E: Element + ?Sized>() -> i32 {
    ((23 - E::MANTISSA as i32) << 23) + (1 << 22)
}

/// Sign, two bits of exponent, one of mantissa: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}.
pub(crate) struct E2M1;

impl Element for E2M1 {
    const MANTISSA: u32 = 1;
    const MAX_EXPONENT: i32 = 2;
    const MIN_EXPONENT: i32 = 0;
    const MAX: f32 = 6.0;
    const SIGN: i32 = 0x8;
}

/// Sign, four bits of exponent, three of mantissa, up to ±448; the all-ones magnitude is NaN.
pub(crate) struct E4M3;

impl Element for E4M3 {
    const MANTISSA: u32 = 3;
    const MAX_EXPONENT: i32 = 8;
    const MIN_EXPONENT: i32 = -6;
    const MAX: f32 = 448.0;
    const SIGN: i32 = 0x80;
}

/// The values of E2M1's codes.
pub(crate) const E2M1_VALUES: [f32; LANES] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The values of E2M1's codes in GGUF: ggml's integers have no negative zero.
pub(crate) const E2M1_GGUF: [f32; LANES] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// [`Format::shader`] of formats with such codes.
pub(crate) fn shader(format: &Format, part: &str) -> Decoder {
    let parts =
        [include_str!("shaders/decode/codes.wgsl"), include_str!("shaders/decode/minifloats.wgsl"), part];
    decoder(format, &[], &parts)
}

/// The numbers of E2M1, rising.
pub(crate) const E2M1_LEVELS: [f32; 15] =
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The codes of [`E2M1_LEVELS`], given by their indices.
pub(crate) fn e2m1_codes<const N: usize>(indices: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| match indices[i] {
        index @ ..7 => 15 - index,
        index => index - 7,
    })
}

/// 2^`exponent`, for normal values.
pub(crate) const fn exp2(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::fp8::e4m3_to_f32;
    use crate::simd::{Isa, Kernel};

    struct Nearest<'a, E> {
        x: &'a [f32; LANES],
        element: PhantomData<E>,
    }

    impl<E: Element> Kernel for Nearest<'_, E> {
        type Output = ([f32; LANES], [u8; LANES]);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let x = s.load(self.x);
            let value = E::round(s, s.abs(x));
            let (mut values, mut codes) = ([0.0; LANES], [0; LANES]);
            s.store(value, &mut values);
            s.store_u8(E::code(s, x), &mut codes);
            (values, codes)
        }
    }

    /// Every value, the middles between neighbours and their neighbours in f32: rounded as a search through the table does.
    fn rounds_to_nearest<E: Element>(table: &[f32]) {
        let positive: Vec<f32> = table[..table.len() / 2].iter().copied().filter(|v| !v.is_nan()).collect();
        let mut xs = vec![1000.0];
        for pair in positive.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            xs.extend([pair[0], middle.next_down(), middle, middle.next_up(), pair[1]]);
        }
        xs.extend(xs.clone().iter().map(|x| -x));
        xs.resize(xs.len().next_multiple_of(LANES), 0.0);
        for isa in Isa::available() {
            for x in xs.as_chunks::<LANES>().0 {
                let (values, codes) = isa.run(Nearest::<E> { x, element: PhantomData });
                for l in 0..LANES {
                    let x = x[l].abs();
                    let best = (0..positive.len())
                        .min_by(|&a, &b| {
                            let distance = |i: usize| (positive[i] - x).abs();
                            distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)))
                        })
                        .unwrap_or_default();
                    assert_eq!(values[l], positive[best], "{x}");
                    assert_eq!(usize::from(codes[l]) & (table.len() / 2 - 1), best, "{x}");
                }
                for (x, code) in x.iter().zip(codes) {
                    assert_eq!(usize::from(code) >= table.len() / 2, *x < 0.0);
                }
            }
        }
    }

    #[test]
    fn e2m1_rounds_to_nearest_even() {
        rounds_to_nearest::<E2M1>(&E2M1_VALUES);
    }

    #[test]
    fn e4m3_rounds_to_nearest_even() {
        rounds_to_nearest::<E4M3>(&std::array::from_fn::<f32, 256, _>(|code| e4m3_to_f32(code as u8)));
    }
}

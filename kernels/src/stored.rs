//! The float types in which formats store scales and offsets.

use crate::float::F16_MAX;
use crate::simd::{LANES, Scalar, Simd};

/// A float type in which scales and offsets are stored.
pub(crate) trait Stored {
    /// Bytes of a value.
    const BYTES: usize;
    /// How many of `f32`'s mantissa bits are not stored.
    const DROPPED: u32;
    /// The largest finite value.
    const MAX: f32;
    /// WGSL that reads and rounds.
    const SHADER: &str;
    /// To the nearest value, ties to even.
    fn round<S: Simd>(s: S, x: S::F32) -> S::F32;
    /// The bytes of rounded values.
    fn write<S: Simd>(s: S, x: S::F32, out: &mut [[u8; 4]; LANES]);
    /// The value of `BYTES` bytes.
    fn read(bytes: &[u8]) -> f32;

    /// [`Stored::round`] of zero (but for its sign) and of normal numbers below 2¹¹¹; anything of others.
    #[inline(always)]
    fn round_normal<S: Simd>(s: S, x: S::F32) -> S::F32 {
        Self::round(s, x)
    }

    /// The value `steps` beyond a rounded one, away from zero. A step of a value near zero may be no number.
    #[inline(always)]
    fn beyond<S: Simd>(s: S, x: S::F32, steps: i32) -> S::F32 {
        Self::round(s, s.from_bits(s.add_i(s.bits(x), s.splat_i(steps << Self::DROPPED))))
    }
}

pub(crate) struct Bf16;

impl Stored for Bf16 {
    const BYTES: usize = 2;
    const DROPPED: u32 = 16;
    const MAX: f32 = f32::from_bits(0x7f7f_0000);
    const SHADER: &str = include_str!("shaders/decode/stored_bf16.wgsl");

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let bits = s.bits(x);
        let odd = s.and_i(s.shr_i::<16>(bits), s.splat_i(1));
        let up = s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff)));
        s.from_bits(s.and_i(up, s.splat_i(-0x1_0000)))
    }

    /// Adding 2¹⁶ times `x` leaves of it, in the sum's last place, what BF16 holds. A tie rounds to even: only where 2¹⁶ `x` is
    /// even in that place can there be one.
    #[inline(always)]
    fn round_normal<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let above = s.splat(65536.0);
        s.neg_mul_add(x, above, s.mul_add(x, above, x))
    }

    #[inline(always)]
    fn write<S: Simd>(s: S, x: S::F32, out: &mut [[u8; 4]; LANES]) {
        Single::write(s, s.from_bits(s.shr_i::<16>(s.bits(x))), out);
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

pub(crate) struct Half;

impl Stored for Half {
    const BYTES: usize = 2;
    const DROPPED: u32 = 13;
    const MAX: f32 = F16_MAX;
    const SHADER: &str = include_str!("shaders/decode/stored_f16.wgsl");

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F32) -> S::F32 {
        s.round_f16(x)
    }

    #[inline(always)]
    fn write<S: Simd>(s: S, x: S::F32, out: &mut [[u8; 4]; LANES]) {
        let mut bits = [0; LANES];
        s.store_f16(x, &mut bits);
        *out = bits.map(|b| u32::from(b).to_le_bytes());
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

pub(crate) struct Single;

impl Stored for Single {
    const BYTES: usize = 4;
    const DROPPED: u32 = 0;
    const MAX: f32 = f32::MAX;
    const SHADER: &str = include_str!("shaders/decode/stored_f32.wgsl");

    #[inline(always)]
    fn round<S: Simd>(_: S, x: S::F32) -> S::F32 {
        x
    }

    #[inline(always)]
    fn write<S: Simd>(s: S, x: S::F32, out: &mut [[u8; 4]; LANES]) {
        let mut values = [0.0; LANES];
        s.store(x, &mut values);
        *out = values.map(f32::to_le_bytes);
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// Writes a finite number that is one of the type's own: whether it is.
pub(crate) fn exactly<T: Stored>(number: f32, out: &mut [u8]) -> bool {
    let mut bytes = [[0; 4]; LANES];
    T::write(Scalar, T::round(Scalar, [number; LANES]), &mut bytes);
    out.copy_from_slice(&bytes[0][..T::BYTES]);
    number.is_finite() && T::read(out) == number
}

/// Multiplies a stored number by `factor`, and rounds. It stays as it is where the product would be infinite, no number, zero or
/// so small that some machines take it for zero.
pub(crate) fn rescale<T: Stored>(factor: f32, number: &mut [u8]) {
    let mut bytes = [[0; 4]; LANES];
    T::write(Scalar, T::round(Scalar, [T::read(number) * factor; LANES]), &mut bytes);
    if T::read(&bytes[0]).is_normal() {
        number.copy_from_slice(&bytes[0][..T::BYTES]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Rounded(f32);

    impl Kernel for Rounded {
        type Output = [u32; 2];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [u32; 2] {
            let x = s.splat(self.0);
            [Bf16::round(s, x), Bf16::round_normal(s, x)].map(|v| {
                let mut out = [0.0; LANES];
                s.store(v, &mut out);
                out[3].to_bits()
            })
        }
    }

    #[test]
    fn normal_numbers_round_as_all_do() {
        // Ties and their neighbours, with the bit before even and odd, and where the exponent changes.
        let mantissas = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x1_8001];
        let top = [0, 0x2_0000, 0x2a_0000, 0x7e_0000];
        for isa in Isa::available() {
            for exponent in [1, 2, 60, 126, 127, 128, 237] {
                for mantissa in top.iter().flat_map(|top| mantissas.map(|low| top | low)) {
                    let x = f32::from_bits(exponent << 23 | mantissa);
                    for x in [x, -x] {
                        let [all, normal] = isa.run(Rounded(x));
                        assert_eq!(normal, all, "{x:e} by {}", isa.name());
                        assert_eq!(all, u32::from(half::bf16::from_f32(x).to_bits()) << 16);
                    }
                }
            }
            assert_eq!(isa.run(Rounded(0.0)), [0; 2]);
        }
    }
}

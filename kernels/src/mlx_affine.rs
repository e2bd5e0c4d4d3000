//! MLX's affine quantization: groups of 32, 64 or 128 codes of 2 to 8 bits, each group with a scale and a bias of its own:
//! w = scale · q + bias.
//!
//! Three planes: codes as a little-endian bit stream, the first in the lowest bits; scales; biases, both in the checkpoint's
//! 16- or 32-bit float type. `mx.dequantize` computes in that type: it rounds after the product and after the sum.

use std::marker::PhantomData;

use crate::affine_search::{Plan, search};
use crate::float;
use crate::format::Format;
use crate::lanes::{gather, relative_importance};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// The format of `bits` (2, 3, 4, 5, 6 or 8) in groups of `group` (32, 64 or 128) whose scales and biases are of a float format
/// (BF16, F16 or F32), or `None` if MLX has no such.
pub fn affine(bits: u32, group: usize, scales: &Format) -> Option<&'static Format> {
    let (_, rows) = tables().into_iter().find(|(float, _)| *float == scales)?;
    rows.iter().find(|format| format.block == group && self::bits(format) == bits as usize)
}

/// The float format of an affine format's scales and biases; `None` for any other format.
pub fn scales_of(format: &Format) -> Option<&'static Format> {
    tables().into_iter().find(|(_, rows)| rows.contains(format)).map(|(float, _)| float)
}

/// The same format with scales and biases of a float format; any format but an affine one is itself.
pub fn with_scales(format: &'static Format, scales: &Format) -> &'static Format {
    let affine = scales_of(format).and_then(|_| affine(bits(format) as u32, format.block, scales));
    affine.unwrap_or(format)
}

fn tables() -> [(&'static Format, &'static [Format; 18]); 3] {
    [(&float::BF16, &BF16), (&float::F16, &F16), (&float::F32, &F32)]
}

macro_rules! rows {
    ($scale:ty, $bytes:literal, $suffix:literal: $($bits:literal)*) => {
        [$(
            row!($scale, $bytes, concat!($bits, "bit-g32", $suffix), $bits, 32),
            row!($scale, $bytes, concat!($bits, "bit-g64", $suffix), $bits, 64),
            row!($scale, $bytes, concat!($bits, "bit-g128", $suffix), $bits, 128),
        )*]
    };
}

macro_rules! row {
    ($scale:ty, $bytes:literal, $name:expr, $bits:literal, $group:literal) => {
        Format {
            name: $name,
            block: $group,
            planes: &[$group * $bits / 8, $bytes, $bytes],
            encode: Some(encode::<$scale>),
            decode: decode::<$scale>,
        }
    };
}

/// Scales in BF16: `4bit-g64`.
pub static BF16: [Format; 18] = rows!(Bf16, 2, "": 2 3 4 5 6 8);
/// Scales in F16: `4bit-g64-f16`.
pub static F16: [Format; 18] = rows!(Half, 2, "-f16": 2 3 4 5 6 8);
/// Scales in F32: `4bit-g64-f32`.
pub static F32: [Format; 18] = rows!(Single, 4, "-f32": 2 3 4 5 6 8);

fn bits(format: &Format) -> usize {
    format.planes[0] * 8 / format.block
}

/// The largest group.
const LARGEST: usize = 128;

/// A float type of scales and biases.
pub(crate) trait Stored {
    /// Bytes of a value.
    const BYTES: usize;
    /// How many of `f32`'s mantissa bits are not stored.
    const DROPPED: u32;
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

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F32) -> S::F32 {
        let mut bits = [0; LANES];
        s.store_f16(x, &mut bits);
        s.load_f16(&bits)
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

/// A weight as `mx.dequantize` gives it.
#[inline(always)]
pub(crate) fn dequantized<S: Simd, T: Stored>(s: S, code: S::F32, scale: S::F32, bias: S::F32) -> S::F32 {
    T::round(s, s.add(T::round(s, s.mul(code, scale)), bias))
}

fn encode<T: Stored>(
    format: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    let [codes, scales, biases] = planes else { unreachable!("three planes") };
    isa.run(Encode::<T> {
        group: format.block,
        bits: bits(format),
        src,
        importance,
        codes,
        scales,
        biases,
        stored: PhantomData,
    });
}

struct Encode<'a, T> {
    group: usize,
    bits: usize,
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    biases: &'a mut [u8],
    stored: PhantomData<T>,
}

impl<T: Stored> Kernel for Encode<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plan = Plan::of(self.bits);
        let groups = self.src.len() / self.group;
        let mut weights = [[0.0; LANES]; LARGEST];
        let mut importance = [[1.0; LANES]; LARGEST];
        let mut places = [[0.0; LANES]; LARGEST];
        let mut words = [[0; LANES]; LARGEST / 4];
        let weights = &mut weights[..self.group];
        let importance = &mut importance[..self.group];
        let places = &mut places[..self.group];
        let words = &mut words[..self.group / 4];
        for first in (0..groups).step_by(LANES) {
            let lanes = LANES.min(groups - first);
            gather(s, self.src, self.group, first, weights);
            let (scale, bias) = if self.importance.is_some() {
                relative_importance(s, self.importance, self.group, first, importance);
                search::<S, T, true>(s, &plan, weights, importance, places, words)
            } else {
                search::<S, T, false>(s, &plan, weights, importance, places, words)
            };
            let bytes = self.group * self.bits / 8;
            pack(s, self.bits, words, bytes, &mut self.codes[first * bytes..(first + lanes) * bytes]);
            write::<S, T>(s, scale, &mut self.scales[first * T::BYTES..(first + lanes) * T::BYTES]);
            write::<S, T>(s, bias, &mut self.biases[first * T::BYTES..(first + lanes) * T::BYTES]);
        }
    }
}

#[inline(always)]
fn write<S: Simd, T: Stored>(s: S, x: S::F32, out: &mut [u8]) {
    let mut bytes = [[0; 4]; LANES];
    T::write(s, x, &mut bytes);
    for (out, bytes) in out.chunks_exact_mut(T::BYTES).zip(&bytes) {
        out.copy_from_slice(&bytes[..T::BYTES]);
    }
}

fn decode<T: Stored>(format: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]) {
    isa.run(Decode::<T> { group: format.block, bits: bits(format), planes, dst, stored: PhantomData });
}

struct Decode<'a, T> {
    group: usize,
    bits: usize,
    planes: &'a [&'a [u8]],
    dst: &'a mut [f32],
    stored: PhantomData<T>,
}

impl<T: Stored> Kernel for Decode<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut codes = [0; LARGEST];
        let codes = &mut codes[..self.group];
        for (i, out) in self.dst.chunks_exact_mut(self.group).enumerate() {
            let bytes = self.group * self.bits / 8;
            unpack(self.bits, &self.planes[0][i * bytes..(i + 1) * bytes], codes);
            let scale = s.splat(T::read(&self.planes[1][i * T::BYTES..]));
            let bias = s.splat(T::read(&self.planes[2][i * T::BYTES..]));
            for (codes, out) in codes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                s.store(dequantized::<S, T>(s, s.to_f32(s.load_u8(codes)), scale, bias), out);
            }
        }
    }
}

/// The words of four codes that [`search`] gives become a bit stream of `bytes` for each group.
#[inline(always)]
fn pack<S: Simd>(s: S, bits: usize, words: &[[i32; LANES]], bytes: usize, out: &mut [u8]) {
    for (t, tile) in words.chunks(LANES).enumerate() {
        let mut square = [s.splat(0.0); LANES];
        for (v, words) in square.iter_mut().zip(tile) {
            *v = s.from_bits(s.load_i(words));
        }
        s.transpose(&mut square);
        let (start, len) = (t * LANES * bits / 2, tile.len() * bits / 2);
        for (&v, out) in square.iter().zip(out.chunks_exact_mut(bytes)) {
            let mut words = [0; LANES];
            s.store_i(s.bits(v), &mut words);
            let out = &mut out[start..start + len];
            match bits {
                2 => join::<2>(&words, out),
                3 => join::<3>(&words, out),
                4 => join::<4>(&words, out),
                5 => join::<5>(&words, out),
                6 => join::<6>(&words, out),
                _ => join::<8>(&words, out),
            }
        }
    }
}

/// Two words of four codes become eight codes: `BITS` bytes.
#[inline(always)]
fn join<const BITS: usize>(words: &[i32; LANES], out: &mut [u8]) {
    for (words, out) in words.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<BITS>().0) {
        let codes = u64::from(words[0] as u32) | u64::from(words[1] as u32) << (4 * BITS);
        out.copy_from_slice(&codes.to_le_bytes()[..BITS]);
    }
}

/// The way back of [`pack`].
#[inline(always)]
fn unpack(bits: usize, bytes: &[u8], codes: &mut [u8]) {
    match bits {
        2 => unpack_eights::<2>(bytes, codes),
        3 => unpack_eights::<3>(bytes, codes),
        4 => unpack_eights::<4>(bytes, codes),
        5 => unpack_eights::<5>(bytes, codes),
        6 => unpack_eights::<6>(bytes, codes),
        _ => codes.copy_from_slice(bytes),
    }
}

#[inline(always)]
fn unpack_eights<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.as_chunks::<BITS>().0.iter().zip(codes.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (word >> (i * BITS)) as u8 & ((1 << BITS) - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

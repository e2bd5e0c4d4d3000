//! Weights stored as floats: F32, F16, BF16. A block is one weight.
//!
//! Encoding rounds to nearest, ties to even. A magnitude beyond the largest the format holds becomes infinity, as IEEE
//! 754 says: whoever encodes compares [`crate::stats::Summary::max_abs`] with [`F16_MAX`] first.

use std::marker::PhantomData;

use crate::format::Format;
use crate::shaders::decoder;
use crate::simd::{Isa, Kernel, LANES, Simd};

/// The largest finite half float. Magnitudes from 65520 on round to infinity.
pub const F16_MAX: f32 = 65504.0;

/// IEEE 754 binary32.
pub static F32: Format = Format {
    name: "f32",
    block: 1,
    planes: &[4],
    encode: Some(encode::<Single, 64>),
    decode: decode::<Single, 64>,
    lattice: None,
    shader: |format| decoder(format, &[], &[include_str!("shaders/decode/f32.wgsl")]),
};

/// IEEE 754 binary16.
pub static F16: Format = Format {
    name: "f16",
    block: 1,
    planes: &[2],
    encode: Some(encode::<Half, 32>),
    decode: decode::<Half, 32>,
    lattice: None,
    shader: |format| decoder(format, &[], &[include_str!("shaders/decode/f16.wgsl")]),
};

/// The upper half of binary32.
pub static BF16: Format = Format {
    name: "bf16",
    block: 1,
    planes: &[2],
    encode: Some(encode::<Brain, 32>),
    decode: decode::<Brain, 32>,
    lattice: None,
    shader: |format| decoder(format, &[], &[include_str!("shaders/decode/bf16.wgsl")]),
};

/// Sixteen floats to and from `BYTES` little-endian bytes.
trait Float<const BYTES: usize> {
    fn narrow<S: Simd>(s: S, v: S::F32) -> [u8; BYTES];
    fn widen<S: Simd>(s: S, bytes: &[u8; BYTES]) -> S::F32;
}

struct Single;

impl Float<64> for Single {
    #[inline(always)]
    fn narrow<S: Simd>(s: S, v: S::F32) -> [u8; 64] {
        let mut out = [0.0; LANES];
        s.store(v, &mut out);
        bytemuck::cast(out)
    }
    #[inline(always)]
    fn widen<S: Simd>(s: S, bytes: &[u8; 64]) -> S::F32 {
        s.load(&bytemuck::cast(*bytes))
    }
}

struct Half;

impl Float<32> for Half {
    #[inline(always)]
    fn narrow<S: Simd>(s: S, v: S::F32) -> [u8; 32] {
        let mut out = [0; LANES];
        s.store_f16(v, &mut out);
        bytemuck::cast(out)
    }
    #[inline(always)]
    fn widen<S: Simd>(s: S, bytes: &[u8; 32]) -> S::F32 {
        s.load_f16(&bytemuck::cast(*bytes))
    }
}

struct Brain;

impl Float<32> for Brain {
    #[inline(always)]
    fn narrow<S: Simd>(s: S, v: S::F32) -> [u8; 32] {
        let bits = s.bits(v);
        let upper = s.shr_i::<16>(bits);
        // Half of the last place, less one where the result would be odd, so that ties go to even.
        let odd = s.and_i(upper, s.splat_i(1));
        let rounded = s.shr_i::<16>(s.add_i(bits, s.add_i(odd, s.splat_i(0x7fff))));
        // A NaN keeps its upper bits and is made quiet, or it might round to infinity.
        let quiet = s.or_i(upper, s.splat_i(0x40));
        let mut out = [0; LANES];
        s.store_u16(s.select_i(s.eq(v, v), rounded, quiet), &mut out);
        bytemuck::cast(out)
    }
    #[inline(always)]
    fn widen<S: Simd>(s: S, bytes: &[u8; 32]) -> S::F32 {
        s.from_bits(s.shl_i::<16>(s.load_u16(&bytemuck::cast(*bytes))))
    }
}

fn encode<F: Float<BYTES>, const BYTES: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    _importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    isa.run(Narrow::<F, BYTES>(src, planes[0], PhantomData));
}

fn decode<F: Float<BYTES>, const BYTES: usize>(_: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]) {
    isa.run(Widen::<F, BYTES>(planes[0], dst, PhantomData));
}

/// Both directions go sixteen weights at a time, the last ones padded with zeros.
struct Narrow<'a, F, const BYTES: usize>(&'a [f32], &'a mut [u8], PhantomData<F>);

impl<F: Float<BYTES>, const BYTES: usize> Kernel for Narrow<'_, F, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (src, src_rest) = self.0.as_chunks::<LANES>();
        let (out, out_rest) = self.1.as_chunks_mut::<BYTES>();
        for (src, out) in src.iter().zip(out) {
            *out = F::narrow(s, s.load(src));
        }
        let mut padded = [0.0; LANES];
        padded[..src_rest.len()].copy_from_slice(src_rest);
        let bytes = F::narrow(s, s.load(&padded));
        out_rest.copy_from_slice(&bytes[..out_rest.len()]);
    }
}

struct Widen<'a, F, const BYTES: usize>(&'a [u8], &'a mut [f32], PhantomData<F>);

impl<F: Float<BYTES>, const BYTES: usize> Kernel for Widen<'_, F, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (src, src_rest) = self.0.as_chunks::<BYTES>();
        let (out, out_rest) = self.1.as_chunks_mut::<LANES>();
        for (src, out) in src.iter().zip(out) {
            s.store(F::widen(s, src), out);
        }
        let mut padded = [0; BYTES];
        padded[..src_rest.len()].copy_from_slice(src_rest);
        let mut floats = [0.0; LANES];
        s.store(F::widen(s, &padded), &mut floats);
        out_rest.copy_from_slice(&floats[..out_rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(format: &Format, isa: Isa, src: &[f32]) -> Vec<u8> {
        let mut out = vec![0; src.len() * format.planes[0]];
        (format.encode.expect("floats encode"))(format, isa, src, None, &mut [&mut out]);
        out
    }

    fn decoded(format: &Format, isa: Isa, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / format.planes[0]];
        (format.decode)(format, isa, &[bytes], &mut out);
        out
    }

    /// Halfway cases around even and odd, denormals, overflow, and values all over the range.
    fn values() -> Vec<f32> {
        let mut values = vec![0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, -1e30, f32::MAX, 1e-45];
        for exponent in 0..255u32 {
            for mantissa in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_ffff, 0x1000, 0x3000] {
                values.push(f32::from_bits((exponent & 1) << 31 | exponent << 23 | mantissa));
            }
        }
        values
    }

    #[test]
    fn rounds_as_the_half_crate_does() {
        for isa in Isa::available() {
            let values = values();
            let f16: Vec<u8> =
                values.iter().flat_map(|&x| half::f16::from_f32_const(x).to_le_bytes()).collect();
            assert_eq!(encoded(&F16, isa, &values), f16, "{}", isa.name());
            let bf16: Vec<u8> = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
            assert_eq!(encoded(&BF16, isa, &values), bf16, "{}", isa.name());
            let f32: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(encoded(&F32, isa, &values), f32, "{}", isa.name());
        }
    }

    #[test]
    fn every_16_bit_float_survives_both_ways() {
        let words: Vec<u16> = (0..=u16::MAX).collect();
        for isa in Isa::available() {
            for format in [&F16, &BF16] {
                let floats = decoded(format, isa, bytemuck::cast_slice(&words));
                let back = encoded(format, isa, &floats);
                for ((word, float), back) in words.iter().zip(&floats).zip(back.chunks(2)) {
                    let back = u16::from_le_bytes([back[0], back[1]]);
                    let exact = if format == &F16 {
                        half::f16::from_bits(*word).to_f32()
                    } else {
                        half::bf16::from_bits(*word).to_f32()
                    };
                    if exact.is_nan() {
                        assert!(float.is_nan());
                    } else {
                        assert_eq!((float.to_bits(), back), (exact.to_bits(), *word));
                    }
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_one_in_bf16() {
        for isa in Isa::available() {
            let nans = [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)];
            assert!(decoded(&BF16, isa, &encoded(&BF16, isa, &nans)).iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn any_number_of_weights_is_taken() {
        for isa in Isa::available() {
            for n in 0..40 {
                let src: Vec<f32> = (0..n).map(|i| i as f32).collect();
                for format in [&F32, &F16, &BF16] {
                    assert_eq!(decoded(format, isa, &encoded(format, isa, &src)), src);
                }
            }
        }
    }
}

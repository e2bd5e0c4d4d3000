//! FP8 weights with one scale per rectangle, as DeepSeek-V3 stores them, and scalar E4M3 and E8M0 conversions.
//!
//! E4M3 here is the OCP variant without infinities ("E4M3FN"): sign, 4 exponent bits with bias 7, 3 mantissa bits; codes 0x7f
//! and 0xff are NaN; the largest magnitude is 448. E8M0 is a bare exponent: `2^(code - 127)`, 0xff is NaN.
//! Source: OCP 8-bit Floating Point Specification, revision 1.0; OCP Microscaling Formats, version 1.0.

use crate::simd::{Isa, Kernel, LANES, Simd};

/// The largest finite E4M3 magnitude.
pub const E4M3_MAX: f32 = 448.0;

/// The value of an E4M3 code.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let magnitude = code & 0x7f;
    let value = match magnitude {
        0x7f => f32::NAN,
        0..8 => f32::from(magnitude) * DENORMAL,
        _ => f32::from_bits((u32::from(magnitude) << 20) + REBIAS as u32),
    };
    if code & 0x80 != 0 { -value } else { value }
}

/// The nearest E4M3 code, ties to even; magnitudes beyond 448 become 448, NaN stays NaN.
pub fn e4m3_from_f32(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= E4M3_MAX {
        0x7e
    } else if magnitude < 8.0 * DENORMAL {
        // Eight rounds up into the first normal code, as it should.
        (magnitude / DENORMAL).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits() - REBIAS as u32;
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) as u8
    };
    sign | code
}

/// The value of an E8M0 code.
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0xff => f32::NAN,
        0 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The step of the denormal codes 1..8.
const DENORMAL: f32 = 1.0 / 512.0;

/// Between the exponent biases 127 and 7, at the place of the exponent in an `f32`.
const REBIAS: i32 = 120 << 23;

/// Decodes rows of E4M3 codes that share a scale per rectangle of `block` = (rows, columns): `out = code * scale`.
///
/// `codes` and `out` are the rows from `first_row` on, each `columns` long. `scales` are the rows of the scale matrix
/// from row `first_row / block.0` on, each `columns.div_ceil(block.1)` long; a rectangle at the edge may hang over.
/// NaN codes and NaN scales give NaN.
///
/// Panics if `scales` holds fewer rows than `codes` needs, or a side of `block` is zero.
pub fn widen_block_scaled(
    isa: Isa,
    codes: &[u8],
    columns: usize,
    first_row: usize,
    scales: &[f32],
    block: (usize, usize),
    out: &mut [f32],
) {
    assert_eq!(codes.len(), out.len());
    if columns == 0 {
        return;
    }
    let scale_columns = columns.div_ceil(block.1);
    let first_scale_row = first_row / block.0;
    for (i, (codes, out)) in codes.chunks(columns).zip(out.chunks_mut(columns)).enumerate() {
        let at = ((first_row + i) / block.0 - first_scale_row) * scale_columns;
        let scales = &scales[at..at + scale_columns];
        isa.run(WidenRow { codes, scales, width: block.1, out });
    }
}

struct WidenRow<'a> {
    codes: &'a [u8],
    scales: &'a [f32],
    width: usize,
    out: &'a mut [f32],
}

impl Kernel for WidenRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let spans = self.codes.chunks(self.width).zip(self.out.chunks_mut(self.width));
        for ((codes, out), &scale) in spans.zip(self.scales) {
            let scale = s.splat(scale);
            let (codes, codes_rest) = codes.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for (codes, out) in codes.iter().zip(out) {
                s.store(s.mul(e4m3(s, s.load_u8(codes)), scale), out);
            }
            if !codes_rest.is_empty() {
                let mut padded = [0; LANES];
                padded[..codes_rest.len()].copy_from_slice(codes_rest);
                let mut floats = [0.0; LANES];
                s.store(s.mul(e4m3(s, s.load_u8(&padded)), scale), &mut floats);
                out_rest.copy_from_slice(&floats[..out_rest.len()]);
            }
        }
    }
}

/// The values of sixteen E4M3 codes. Denormal codes are scaled as integers: the trick of reading them as denormal
/// floats is slow on processors that handle those in microcode.
#[inline(always)]
pub fn e4m3<S: Simd>(s: S, codes: S::I32) -> S::F32 {
    let magnitude = s.and_i(codes, s.splat_i(0x7f));
    let sign = s.shl_i::<24>(s.and_i(codes, s.splat_i(0x80)));
    let normal = s.from_bits(s.add_i(s.shl_i::<20>(magnitude), s.splat_i(REBIAS)));
    let denormal = s.mul(s.to_f32(magnitude), s.splat(DENORMAL));
    let value = s.select(s.lt_i(magnitude, s.splat_i(8)), denormal, normal);
    let value = s.select(s.eq_i(magnitude, s.splat_i(0x7f)), s.splat(f32::NAN), value);
    s.from_bits(s.or_i(s.bits(value), sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in `f64`.
    fn e4m3_defined(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code & 0x80 != 0 { -magnitude } else { magnitude }
    }

    #[test]
    fn e4m3_codes_mean_what_the_specification_says() {
        assert_eq!(e4m3_to_f32(0x7e), E4M3_MAX);
        for code in 0..=255 {
            let want = e4m3_defined(code) as f32;
            let got = e4m3_to_f32(code);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{code:#x}");
        }
    }

    #[test]
    fn e4m3_rounds_to_the_nearest_code_and_saturates() {
        for code in 0..0x7eu8 {
            let (low, high) = (e4m3_to_f32(code), e4m3_to_f32(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(e4m3_from_f32(low), code);
            assert_eq!(e4m3_from_f32(-low), code | 0x80);
            assert_eq!(e4m3_from_f32(middle.next_down()), code);
            assert_eq!(e4m3_from_f32(middle.next_up()), code + 1);
            assert_eq!(e4m3_from_f32(middle), if code % 2 == 0 { code } else { code + 1 });
        }
        assert_eq!(e4m3_from_f32(1e9), 0x7e);
        assert_eq!(e4m3_from_f32(f32::NEG_INFINITY), 0xfe);
        assert!(e4m3_to_f32(e4m3_from_f32(f32::NAN)).is_nan());
        assert_eq!(e4m3_from_f32(-0.0), 0x80);
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        for code in 0..255 {
            assert_eq!(f64::from(e8m0_to_f32(code)), 2f64.powi(i32::from(code) - 127));
        }
        assert!(e8m0_to_f32(255).is_nan());
    }

    #[test]
    fn every_code_takes_the_scale_of_its_rectangle() {
        let (rows, columns, block) = (11, 43, (4, 20));
        let scale_columns = 3;
        let codes: Vec<u8> = (0..rows * columns).map(|i| (i * 31 + i / 256) as u8).collect();
        let mut scales: Vec<f32> = (0..3 * scale_columns).map(|i| 0.3 + i as f32 * 1.7).collect();
        scales[4] = f32::NAN;
        for isa in Isa::available() {
            for (first, last) in [(0, rows), (3, 9), (5, 6), (8, rows)] {
                let mut out = vec![0.0; (last - first) * columns];
                let tile = &codes[first * columns..last * columns];
                let scales_of_tile = &scales[first / block.0 * scale_columns..];
                widen_block_scaled(isa, tile, columns, first, scales_of_tile, block, &mut out);
                for (i, got) in out.iter().enumerate() {
                    let (row, column) = (first + i / columns, i % columns);
                    let scale = scales[row / block.0 * scale_columns + column / block.1];
                    let want = e4m3_defined(codes[row * columns + column]) as f32 * scale;
                    assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
                }
            }
        }
    }
}

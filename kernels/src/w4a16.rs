//! compressed-tensors' `pack-quantized` weights of four bits, symmetric, in groups of 32, 64 or 128 that share a scale (vLLM's "W4A16"):
//! w = scale · (code − 8).
//!
//! Two planes: codes as words of eight, the first in the lowest bits (`weight_packed`), and scales in the checkpoint's 16- or 32-bit
//! float type (`weight_scale`). compressed-tensors' `dequantize` (`quantization/lifecycle/forward.py`) multiplies in that type, and so
//! do the kernels of vLLM: products are rounded to it.
//!
//! As in Q4_0 the grid -8..7 is not symmetric and a scale may be negative, so that the weight of largest magnitude can have the long end.

use std::marker::PhantomData;

use crate::float;
use crate::format::Format;
use crate::grid::nearest_code;
use crate::lanes::{gather, relative_importance};
use crate::lattice::{Lattice, Levels, Moves};
use crate::mlx_affine::{pack, pack_eights, unpack, write};
use crate::scales::divisor;
use crate::shaders::{Decoder, decoder};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::stored::{Bf16, Half, Single, Stored, exactly, rescale};
use crate::symmetric::{Grid, search};

/// The format of groups of `group` (32, 64 or 128) whose scales are of a float format (BF16, F16 or F32), or `None` if there is none.
pub fn w4a16(group: u64, scales: &Format) -> Option<&'static Format> {
    let (_, rows) = tables().into_iter().find(|(float, _)| *float == scales)?;
    rows.iter().find(|format| format.block as u64 == group)
}

/// The float format of such a format's scales; `None` for any other format.
pub fn scales_of(format: &Format) -> Option<&'static Format> {
    tables().into_iter().find(|(_, rows)| rows.contains(format)).map(|(float, _)| float)
}

/// The same format with scales of a float format; any other format is itself.
pub fn with_scales(format: &'static Format, scales: &Format) -> &'static Format {
    scales_of(format).and_then(|_| w4a16(format.block as u64, scales)).unwrap_or(format)
}

fn tables() -> [(&'static Format, &'static [Format; 3]); 3] {
    [(&float::BF16, &BF16), (&float::F16, &F16), (&float::F32, &F32)]
}

macro_rules! rows {
    ($scale:ty, $bytes:literal, $suffix:literal) => {
        [
            row!($scale, $bytes, concat!("w4a16-g32", $suffix), 32),
            row!($scale, $bytes, concat!("w4a16-g64", $suffix), 64),
            row!($scale, $bytes, concat!("w4a16-g128", $suffix), 128),
        ]
    };
}

macro_rules! row {
    ($scale:ty, $bytes:literal, $name:expr, $group:literal) => {
        Format {
            name: $name,
            block: $group,
            planes: &[$group / 2, $bytes],
            encode: Some(encode::<$scale, $group>),
            decode: decode::<$scale, $group>,
            lattice: Some(&Lattice {
                group: $group,
                levels: Levels::Integers(-ZERO, ZERO - 1),
                steps: |planes, scales, offsets| {
                    (scales[0], offsets[0]) = (<$scale>::read(planes[1]), 0.0);
                },
                store: |indices, planes| pack_eights::<4>(indices, planes[0]),
                rescale: Some(|factors, planes| rescale::<$scale>(factors[0], planes[1])),
                moves: Some(&Moves {
                    load: |planes, codes| unpack(4, planes[0], codes),
                    store: |codes, planes| pack_eights::<4>(codes, planes[0]),
                    set: |scales, offsets, planes| {
                        exactly::<$scale>(scales[0], planes[1]) && offsets[0] == 0.0
                    },
                }),
            }),
            shader: shader::<$scale>,
        }
    };
}

/// Scales in BF16: `w4a16-g128`.
pub static BF16: [Format; 3] = rows!(Bf16, 2, "");
/// Scales in F16: `w4a16-g128-f16`.
pub static F16: [Format; 3] = rows!(Half, 2, "-f16");
/// Scales in F32: `w4a16-g128-f32`.
pub static F32: [Format; 3] = rows!(Single, 4, "-f32");

/// The code of zero.
const ZERO: i32 = 8;

/// The tries were chosen one by one over groups of all three sizes, and are within 2 % of a raster's best: the more weights share a
/// scale, the more it pays to clip the largest.
struct Codes;

impl Grid for Codes {
    const LOW: i32 = -ZERO;
    const HIGH: i32 = ZERO - 1;
    const PEERS: f32 = -8.0;
    const TRIED: &[[f32; 3]] = &[[-8.0, -8.5, -7.4], [-8.9, -9.4, -8.2]];
    const TRIED_WEIGHTED: &[[f32; 3]] = &[[-9.2, 7.0, 8.2], [-6.2, -7.8, -8.4], [-8.8, -7.4, -8.2]];
}

fn encode<T: Stored, const GROUP: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    let [codes, scales] = planes else { unreachable!("two planes") };
    let stored = PhantomData;
    match importance {
        None => isa.run(Encode::<T, GROUP, false> { src, importance, codes, scales, stored }),
        Some(_) => isa.run(Encode::<T, GROUP, true> { src, importance, codes, scales, stored }),
    }
}

struct Encode<'a, T, const GROUP: usize, const WEIGHTED: bool> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    stored: PhantomData<T>,
}

impl<T: Stored, const GROUP: usize, const WEIGHTED: bool> Kernel for Encode<'_, T, GROUP, WEIGHTED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut x = [[0.0; LANES]; GROUP];
        let mut w = [[1.0; LANES]; GROUP];
        // Four codes each; of the largest group.
        let mut words = [[0; LANES]; 32];
        let words = &mut words[..GROUP / 4];
        let outs = self.codes.chunks_mut(LANES * GROUP / 2).zip(self.scales.chunks_mut(LANES * T::BYTES));
        for (i, (codes, scales)) in outs.enumerate() {
            gather(s, self.src, GROUP, i * LANES, &mut x);
            if WEIGHTED {
                relative_importance(s, self.importance, GROUP, i * LANES, &mut w);
            }
            let scale = search::<S, Codes, T, WEIGHTED, _>(s, &x, &w);
            let inverse = divisor(s, scale);
            for (word, x) in words.iter_mut().zip(x.as_chunks::<4>().0) {
                let [a, b, c, d] =
                    std::array::from_fn(|k| nearest_code(s, s.load(&x[k]), inverse, -ZERO, ZERO - 1));
                let pairs = [s.or_i(a, s.shl_i::<4>(b)), s.or_i(c, s.shl_i::<4>(d))];
                s.store_i(s.or_i(pairs[0], s.shl_i::<8>(pairs[1])), word);
            }
            pack(s, 4, words, GROUP / 2, codes);
            write::<S, T>(s, scale, scales);
        }
    }
}

fn decode<T: Stored, const GROUP: usize>(_: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]) {
    isa.run(Decode::<T, GROUP> { planes, dst, stored: PhantomData });
}

struct Decode<'a, T, const GROUP: usize> {
    planes: &'a [&'a [u8]],
    dst: &'a mut [f32],
    stored: PhantomData<T>,
}

impl<T: Stored, const GROUP: usize> Kernel for Decode<'_, T, GROUP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(ZERO as f32);
        let blocks = self.planes[0].chunks_exact(GROUP / 2).zip(self.planes[1].chunks_exact(T::BYTES));
        for ((bytes, scale), out) in blocks.zip(self.dst.chunks_exact_mut(GROUP)) {
            let mut codes = [0; GROUP];
            unpack(4, bytes, &mut codes);
            let scale = s.splat(T::read(scale));
            for (codes, out) in codes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                let level = s.sub(s.to_f32(s.load_u8(codes)), zero);
                s.store(T::round(s, s.mul(level, scale)), out);
            }
        }
    }
}

/// [`Format::shader`]
fn shader<T: Stored>(format: &Format) -> Decoder {
    let text = decoder(format, &[], &[T::SHADER, include_str!("shaders/decode/w4a16.wgsl")]);
    Decoder { name: format.name.to_owned(), ..text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of about the size that models have, with long tails.
    fn weights(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * (0.02 + uniform() * uniform())).collect()
    }

    fn encode(format: &Format, src: &[f32]) -> [Vec<u8>; 2] {
        let blocks = src.len() / format.block;
        let [mut codes, mut scales] = [0, 1].map(|plane| vec![0; blocks * format.planes[plane]]);
        let encode = format.encode.expect("an encoder");
        encode(format, Isa::detect(), src, None, &mut [&mut codes, &mut scales]);
        [codes, scales]
    }

    fn decode(format: &Format, [codes, scales]: &[Vec<u8>; 2]) -> Vec<f32> {
        let mut out = vec![f32::NAN; codes.len() * 2];
        (format.decode)(format, Isa::detect(), &[codes, scales], &mut out);
        out
    }

    #[test]
    fn words_hold_eight_codes_from_the_lowest_bits_up() {
        for format in BF16.iter().chain(&F16).chain(&F32) {
            let planes = encode(format, &weights(40 * format.block));
            let decoded = decode(format, &planes);
            let words = planes[0].as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
            for (i, (word, decoded)) in words.zip(decoded.chunks_exact(8)).enumerate() {
                let at = 8 * i / format.block * format.planes[1];
                let bytes = &planes[1][at..at + format.planes[1]];
                let scale = match scales_of(format).map(|scales| scales.name) {
                    Some("bf16") => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                    Some("f16") => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                    _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                };
                for (k, decoded) in decoded.iter().enumerate() {
                    let product = ((word >> (4 * k) & 15) as f32 - 8.0) * scale;
                    let want = match scales_of(format).map(|scales| scales.name) {
                        Some("bf16") => half::bf16::from_f32(product).to_f32(),
                        Some("f16") => half::f16::from_f32(product).to_f32(),
                        _ => product,
                    };
                    assert_eq!(*decoded, want, "{format:?}, word {i}, code {k}");
                }
            }
        }
    }

    fn squared_error(src: &[f32], decoded: &[f32]) -> f64 {
        src.iter().zip(decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    }

    /// compressed-tensors' own rule: the scale is the largest magnitude / 7.5.
    #[test]
    fn a_search_errs_less_than_the_rule_of_compressed_tensors() {
        for format in BF16.iter().chain(&F16).chain(&F32) {
            let src = weights(200 * format.block);
            let by_rule = src.chunks(format.block).flat_map(|group| {
                let scale = group.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 7.5;
                group.iter().map(move |x| (x / scale).round_ties_even().clamp(-8.0, 7.0) * scale)
            });
            let by_rule = squared_error(&src, &by_rule.collect::<Vec<_>>());
            let ours = squared_error(&src, &decode(format, &encode(format, &src)));
            assert!(ours < 0.85 * by_rule, "{format:?}: {ours:e}, {by_rule:e} by the rule");
        }
    }

    #[test]
    fn formats_are_found() {
        let format = w4a16(128, &float::F16).expect("a format");
        assert_eq!((format.name, scales_of(format)), ("w4a16-g128-f16", Some(&float::F16)));
        assert_eq!(with_scales(format, &float::BF16).name, "w4a16-g128");
        assert_eq!(with_scales(&float::F16, &float::BF16), &float::F16);
        assert_eq!(w4a16(16, &float::F16), None);
    }
}

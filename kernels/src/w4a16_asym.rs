//! Weights of four bits in groups of 32, 64 or 128 that share a scale and an integer zero point (compressed-tensors' asymmetric
//! `pack-quantized`, AWQ, GPTQ): w = scale · (code − zero).
//!
//! Three planes: codes, the first in the lowest bits; scales in a 16- or 32-bit float type; zero points, 0 to 15, a byte each. In files
//! zero points lie four bits wide and in other orders, which is the containers' business. Consumers multiply in the scales' type, and
//! products are rounded to it, as in [`w4a16`](crate::w4a16).

use std::marker::PhantomData;

use crate::float;
use crate::format::Format;
use crate::lanes::{gather, relative_importance};
use crate::lattice::{Lattice, Levels, Moves};
use crate::mlx_affine::{pack, pack_eights, unpack, write};
use crate::scales::{divisor, storable};
use crate::shaders::{Decoder, decoder};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::stored::{Bf16, Half, Single, Stored, exactly};

/// The format of groups of `group` (32, 64 or 128) whose scales are of a float format (BF16, F16 or F32), or `None` if there is none.
pub fn w4a16_asym(group: u64, scales: &Format) -> Option<&'static Format> {
    let (_, rows) = tables().into_iter().find(|(float, _)| *float == scales)?;
    rows.iter().find(|format| format.block as u64 == group)
}

/// The float format of such a format's scales; `None` for any other format.
pub fn scales_of(format: &Format) -> Option<&'static Format> {
    tables().into_iter().find(|(_, rows)| rows.contains(format)).map(|(float, _)| float)
}

/// The same format with scales of a float format; any other format is itself.
pub fn with_scales(format: &'static Format, scales: &Format) -> &'static Format {
    scales_of(format).and_then(|_| w4a16_asym(format.block as u64, scales)).unwrap_or(format)
}

fn tables() -> [(&'static Format, &'static [Format; 3]); 3] {
    [(&float::BF16, &BF16), (&float::F16, &F16), (&float::F32, &F32)]
}

macro_rules! rows {
    ($scale:ty, $bytes:literal, $suffix:literal) => {
        [
            row!($scale, $bytes, concat!("w4a16-asym-g32", $suffix), 32),
            row!($scale, $bytes, concat!("w4a16-asym-g64", $suffix), 64),
            row!($scale, $bytes, concat!("w4a16-asym-g128", $suffix), 128),
        ]
    };
}

macro_rules! row {
    ($scale:ty, $bytes:literal, $name:expr, $group:literal) => {
        Format {
            name: $name,
            block: $group,
            planes: &[$group / 2, $bytes, 1],
            encode: Some(encode::<$scale, $group>),
            decode: decode::<$scale, $group>,
            lattice: Some(&Lattice {
                group: $group,
                levels: Levels::Integers(0, MOST),
                steps: |planes, scales, offsets| {
                    scales[0] = <$scale>::read(planes[1]);
                    offsets[0] = -f32::from(planes[2][0]) * scales[0];
                },
                store: |indices, planes| pack_eights::<4>(indices, planes[0]),
                // An offset is no number of its own.
                rescale: None,
                // A zero point times a scale in single precision is no single one: no other format can hold it.
                moves: if $bytes == 4 {
                    None
                } else {
                    Some(&Moves {
                    load: |planes, codes| unpack(4, planes[0], codes),
                    store: |codes, planes| pack_eights::<4>(codes, planes[0]),
                    set: |scales, offsets, planes| {
                        let zero = if scales[0] == 0.0 { 0.0 } else { (-offsets[0] / scales[0]).round() };
                        planes[2][0] = zero as u8;
                        exactly::<$scale>(scales[0], planes[1])
                            && (0.0..=MOST as f32).contains(&zero)
                            && f64::from(zero) * f64::from(scales[0]) == -f64::from(offsets[0])
                    },
                })
                },
            }),
            shader: shader::<$scale>,
        }
    };
}

/// Scales in BF16: `w4a16-asym-g128`.
pub static BF16: [Format; 3] = rows!(Bf16, 2, "");
/// Scales in F16: `w4a16-asym-g128-f16`.
pub static F16: [Format; 3] = rows!(Half, 2, "-f16");
/// Scales in F32: `w4a16-asym-g128-f32`.
pub static F32: [Format; 3] = rows!(Single, 4, "-f32");

/// The largest code.
const MOST: i32 = 15;

/// By how many codes the lower and the upper end of the weights' range are pulled in, and how far from its place the zero point is
/// tried: a few ranges, each with the two integers around the place of zero.
const TRIED: [(f32, f32); 6] = [(0.0, 0.0), (0.5, 0.5), (0.0, 0.8), (0.8, 0.0), (1.4, 1.4), (2.4, 2.4)];

fn encode<T: Stored, const GROUP: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    let [codes, scales, zeros] = planes else { unreachable!("three planes") };
    let stored = PhantomData;
    match importance {
        None => isa.run(Encode::<T, GROUP, false> { src, importance, codes, scales, zeros, stored }),
        Some(_) => isa.run(Encode::<T, GROUP, true> { src, importance, codes, scales, zeros, stored }),
    }
}

struct Encode<'a, T, const GROUP: usize, const WEIGHTED: bool> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    zeros: &'a mut [u8],
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
        let scales = self.scales.chunks_mut(LANES * T::BYTES).zip(self.zeros.chunks_mut(LANES));
        for (i, (codes, (scales, zeros))) in self.codes.chunks_mut(LANES * GROUP / 2).zip(scales).enumerate()
        {
            gather(s, self.src, GROUP, i * LANES, &mut x);
            if WEIGHTED {
                relative_importance(s, self.importance, GROUP, i * LANES, &mut w);
            }
            let Step { scale, zero } = search::<S, T, WEIGHTED, GROUP>(s, &x, &w);
            let inverse = divisor(s, scale);
            for (word, x) in words.iter_mut().zip(x.as_chunks::<4>().0) {
                let [a, b, c, d] =
                    std::array::from_fn(|k| s.to_i32(s.add(level(s, s.load(&x[k]), inverse, zero), zero)));
                let pairs = [s.or_i(a, s.shl_i::<4>(b)), s.or_i(c, s.shl_i::<4>(d))];
                s.store_i(s.or_i(pairs[0], s.shl_i::<8>(pairs[1])), word);
            }
            pack(s, 4, words, GROUP / 2, codes);
            write::<S, T>(s, scale, scales);
            let mut bytes = [0; LANES];
            s.store_u8(s.to_i32(zero), &mut bytes);
            zeros.copy_from_slice(&bytes[..zeros.len()]);
        }
    }
}

/// A scale as it is stored, and a zero point, for each lane.
#[derive(Clone, Copy)]
struct Step<S: Simd> {
    scale: S::F32,
    zero: S::F32,
}

/// Code less zero point of the code nearest to a weight.
#[inline(always)]
fn level<S: Simd>(s: S, x: S::F32, inverse: S::F32, zero: S::F32) -> S::F32 {
    let place = s.round(s.mul(x, inverse));
    // In this order a NaN ends at the highest code everywhere.
    s.min(s.max(place, s.neg(zero)), s.sub(s.splat(MOST as f32), zero))
}

/// The step of least squared error among those tried.
///
/// Given the codes and the zero point, the best scale is a division. Each of a few ranges gives a scale and a place for the zero
/// point, of which the two integers beside it are tried, with the scale that suits their codes, and once more with the one that suits
/// the codes of that.
#[inline(always)]
fn search<S: Simd, T: Stored, const WEIGHTED: bool, const N: usize>(
    s: S,
    x: &[[f32; LANES]; N],
    w: &[[f32; LANES]; N],
) -> Step<S> {
    // Zero is a code in any case.
    let (mut low, mut high) = (s.splat(0.0), s.splat(0.0));
    for x in x {
        low = s.min(s.load(x), low);
        high = s.max(s.load(x), high);
    }
    let range = s.sub(high, low);
    let mut best = Step { scale: s.splat(0.0), zero: s.splat(0.0) };
    let mut least = s.splat(f32::INFINITY);
    for (lower, upper) in TRIED {
        let step = s.mul(range, s.splat(1.0 / (MOST as f32 + lower + upper)));
        let inverse = s.min(divisor(s, step), s.splat(1e36));
        let place = s.sub(s.neg(s.mul(low, inverse)), s.splat(lower));
        let nearest = s.round(place);
        // The other integer beside the place.
        let side = s.select(s.lt(place, nearest), s.splat(-1.0), s.splat(1.0));
        for zero in [nearest, s.add(nearest, side)] {
            let zero = s.min(s.max(zero, s.splat(0.0)), s.splat(MOST as f32));
            let ranged = Step { scale: step, zero };
            let (_, mut scale) = judge::<S, T, WEIGHTED, N>(s, x, w, inverse, ranged);
            for _ in 0..2 {
                let tried = Step { scale, zero };
                let (error, next) = judge::<S, T, WEIGHTED, N>(s, x, w, divisor(s, scale), tried);
                let better = s.lt(error, least);
                least = s.select(better, error, least);
                best.scale = s.select(better, scale, best.scale);
                best.zero = s.select(better, zero, best.zero);
                scale = next;
            }
        }
    }
    best
}

/// The squared error that a step leaves, whose scale's inverse is given, and the scale that suits its codes best.
#[inline(always)]
fn judge<S: Simd, T: Stored, const WEIGHTED: bool, const N: usize>(
    s: S,
    x: &[[f32; LANES]; N],
    w: &[[f32; LANES]; N],
    inverse: S::F32,
    step: Step<S>,
) -> (S::F32, S::F32) {
    let zero = s.splat(0.0);
    let (mut error, mut xl, mut ll) = (zero, zero, zero);
    for (x, w) in x.iter().zip(w) {
        let x = s.load(x);
        let l = level(s, x, inverse, step.zero);
        let rest = s.neg_mul_add(l, step.scale, x);
        let (wl, wrest) = if WEIGHTED { (s.mul(s.load(w), l), s.mul(s.load(w), rest)) } else { (l, rest) };
        error = s.mul_add(wrest, rest, error);
        xl = s.mul_add(wl, x, xl);
        ll = s.mul_add(wl, l, ll);
    }
    let scale = s.select(s.eq(ll, zero), zero, s.div(xl, ll));
    (error, storable::<S, T>(s, scale))
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
        let [codes, scales, zeros] = self.planes else { unreachable!("three planes") };
        let steps = scales.chunks_exact(T::BYTES).zip(*zeros);
        let blocks = codes.chunks_exact(GROUP / 2).zip(steps);
        for ((bytes, (scale, zero)), out) in blocks.zip(self.dst.chunks_exact_mut(GROUP)) {
            let mut codes = [0; GROUP];
            unpack(4, bytes, &mut codes);
            let (scale, zero) = (s.splat(T::read(scale)), s.splat(f32::from(*zero)));
            for (codes, out) in codes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                let level = s.sub(s.to_f32(s.load_u8(codes)), zero);
                s.store(T::round(s, s.mul(level, scale)), out);
            }
        }
    }
}

/// [`Format::shader`]
fn shader<T: Stored>(format: &Format) -> Decoder {
    let text = decoder(format, &[], &[T::SHADER, include_str!("shaders/decode/w4a16_asym.wgsl")]);
    Decoder { name: format.name.to_owned(), ..text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of about the size that models have, with long tails, a little off zero.
    fn weights(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut weight = || (0..6).map(|_| uniform()).sum::<f32>() * 0.02 * (1.0 + uniform());
        (0..count).map(|i| weight() + 0.01 * (i / 32 % 5) as f32).collect()
    }

    fn encode(format: &Format, src: &[f32], importance: Option<&[f32]>) -> [Vec<u8>; 3] {
        let blocks = src.len() / format.block;
        let [mut codes, mut scales, mut zeros] =
            [0, 1, 2].map(|plane| vec![0; blocks * format.planes[plane]]);
        let encode = format.encode.expect("an encoder");
        encode(format, Isa::detect(), src, importance, &mut [&mut codes, &mut scales, &mut zeros]);
        [codes, scales, zeros]
    }

    fn decode(format: &Format, [codes, scales, zeros]: &[Vec<u8>; 3]) -> Vec<f32> {
        let mut out = vec![f32::NAN; codes.len() * 2];
        (format.decode)(format, Isa::detect(), &[codes, scales, zeros], &mut out);
        out
    }

    fn all() -> impl Iterator<Item = &'static Format> {
        BF16.iter().chain(&F16).chain(&F32)
    }

    fn squared_error(src: &[f32], decoded: &[f32], importance: &[f32]) -> f64 {
        let terms = src.iter().zip(decoded).zip(importance.iter().cycle());
        terms.map(|((x, y), w)| f64::from(*w) * f64::from(x - y).powi(2)).sum()
    }

    /// compressed-tensors' own rule (`calculate_qparams`): the range, with zero in it, over 15 steps.
    #[test]
    fn a_search_errs_less_than_the_rule_of_compressed_tensors() {
        for format in all() {
            let src = weights(200 * format.block);
            let by_rule = src.chunks(format.block).flat_map(|group| {
                let low = group.iter().fold(0.0f32, |least, x| least.min(*x));
                let high = group.iter().fold(0.0f32, |most, x| most.max(*x));
                let scale = (high - low) / 15.0;
                let zero = (-low / scale).round_ties_even().clamp(0.0, 15.0);
                let code = move |x: f32| ((x / scale).round_ties_even() + zero).clamp(0.0, 15.0);
                group.iter().map(move |x| (code(*x) - zero) * scale)
            });
            let by_rule = by_rule.collect::<Vec<_>>();
            let weighing: Vec<f32> = (0..format.block).map(|i| 0.2 + (i % 7) as f32).collect();
            for importance in [None, Some(&*weighing)] {
                let weighing = importance.unwrap_or(&[1.0]);
                let rule = squared_error(&src, &by_rule, weighing);
                let ours = decode(format, &encode(format, &src, importance));
                let ours = squared_error(&src, &ours, weighing);
                assert!(ours < 0.9 * rule, "{format:?}: {ours:e}, {rule:e} by the rule");
            }
        }
    }

    #[test]
    fn what_lies_on_the_grid_stays_there() {
        for format in all() {
            // Codes 0 to 15 with zero at 3, and all zeros.
            let on_grid = (0..format.block).map(|i| 0.25 * ((i * 7 % 16) as f32 - 3.0));
            let src: Vec<f32> = on_grid.chain(std::iter::repeat_n(0.0, format.block)).collect();
            let planes = encode(format, &src, None);
            assert_eq!(decode(format, &planes), src, "{format:?}");
            assert_eq!(planes[2][0], 3);
        }
    }

    #[test]
    fn formats_are_found() {
        let format = w4a16_asym(128, &float::F16).expect("a format");
        assert_eq!((format.name, scales_of(format)), ("w4a16-asym-g128-f16", Some(&float::F16)));
        assert_eq!(with_scales(format, &float::BF16).name, "w4a16-asym-g128");
        assert_eq!(with_scales(&float::F16, &float::BF16), &float::F16);
        assert_eq!(w4a16_asym(16, &float::F16), None);
    }
}

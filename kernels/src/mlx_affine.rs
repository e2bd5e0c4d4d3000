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
use crate::lattice::{Lattice, Levels, Moves};
use crate::shaders::{Decoder, decoder};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::stored::{Bf16, Half, Single, Stored, exactly, rescale};

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
            lattice: Some(&Lattice {
                group: $group,
                levels: Levels::Integers(0, (1 << $bits) - 1),
                steps: steps::<$scale>,
                store: |indices, planes| pack_eights::<$bits>(indices, planes[0]),
                rescale: Some(rescale_biased::<$scale>),
                moves: Some(&Moves {
                    load: |planes, codes| unpack($bits, planes[0], codes),
                    store: |codes, planes| pack_eights::<$bits>(codes, planes[0]),
                    set: |scales, offsets, planes| {
                        exactly::<$scale>(scales[0], planes[1]) && exactly::<$scale>(offsets[0], planes[2])
                    },
                }),
            }),
            shader: shader::<$scale>,
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

/// Writes the value of each lane, one after the other.
#[inline(always)]
pub(crate) fn write<S: Simd, T: Stored>(s: S, x: S::F32, out: &mut [u8]) {
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
pub(crate) fn pack<S: Simd>(s: S, bits: usize, words: &[[i32; LANES]], bytes: usize, out: &mut [u8]) {
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
pub(crate) fn unpack(bits: usize, bytes: &[u8], codes: &mut [u8]) {
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

/// Packs whole eights of codes of `BITS` bits.
pub(crate) fn pack_eights<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<BITS>().0) {
        let word = codes.iter().rev().fold(0, |word, &code| word << BITS | u64::from(code));
        out.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

/// [`Format::shader`]
fn shader<T: Stored>(format: &Format) -> Decoder {
    let constants = [("CODE_BITS", bits(format) as u32)];
    decoder(format, &constants, &[T::SHADER, include_str!("shaders/decode/affine.wgsl")])
}

/// [`Lattice::steps`]
fn steps<T: Stored>(planes: &[&[u8]], scales: &mut [f32], offsets: &mut [f32]) {
    scales[0] = T::read(planes[1]);
    offsets[0] = T::read(planes[2]);
}

/// [`Lattice::rescale`]
fn rescale_biased<T: Stored>(factors: [f32; 2], planes: &mut [&mut [u8]]) {
    for (plane, factor) in planes[1..].iter_mut().zip(factors) {
        rescale::<T>(factor, plane);
    }
}

//! GGUF's Q8_0: 32 weights share a half-float scale `d`; a weight is `d * code`, -127 ≤ code ≤ 127.
//!
//! Layout: `block_q8_0` of ggml-common.h: the scale, then 32 signed bytes. -128 is left out, as peers do.

use crate::format::Format;
use crate::grid::nearest_integer;
use crate::lanes::{gather, gather_importance, scatter_words, word_of};
use crate::lattice::{Lattice, Levels};
use crate::scales::{self, divisor, read_halves, rescale_halves, write_halves};
use crate::shaders::decoder_of_codes;
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::stored::Half;
use crate::symmetric::{GROUP, Grid, search};

const BYTES: usize = 2 + GROUP;

/// 8 bits a weight and a scale: 34 bytes for 32 weights.
pub static Q8_0: Format = Format {
    name: "q8_0",
    block: GROUP,
    planes: &[BYTES],
    encode: Some(encode),
    decode,
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Integers(Eight::LOW, Eight::HIGH),
        steps: scales::steps::<1>,
        store: |indices, planes| {
            for (byte, index) in planes[0][2..].iter_mut().zip(indices) {
                *byte = index.wrapping_sub(Eight::HIGH as u8);
            }
        },
        rescale: Some(rescale_halves::<0, 1>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q8_0.wgsl")),
};

struct Eight;

impl Grid for Eight {
    const LOW: i32 = -127;
    const HIGH: i32 = 127;
    const PEERS: f32 = 127.0;
    // A scale a little larger costs almost nothing, and of several roundings of 32 weights one is luckier.
    const TRIED: &[[f32; 3]] = &[[127.0, 126.0, 125.0]];
    const TRIED_WEIGHTED: &[[f32; 3]] =
        &[[127.4, 127.0, 126.6], [126.2, 125.8, 125.4], [125.0, 124.6, 124.2], [123.7, 123.2, 122.7]];
}

fn encode(_: &Format, isa: Isa, src: &[f32], importance: Option<&[f32]>, planes: &mut [&mut [u8]]) {
    let out = &mut *planes[0];
    match importance {
        None => isa.run(Encode::<false> { src, importance, out }),
        Some(_) => isa.run(Encode::<true> { src, importance, out }),
    }
}

struct Encode<'a, const WEIGHTED: bool> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl<const WEIGHTED: bool> Kernel for Encode<'_, WEIGHTED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut x = [[0.0; LANES]; GROUP];
        let mut w = [[1.0; LANES]; GROUP];
        for (i, out) in self.out.chunks_mut(LANES * BYTES).enumerate() {
            gather(s, self.src, GROUP, i * LANES, &mut x);
            if WEIGHTED {
                gather_importance(s, self.importance, GROUP, i * LANES, &mut w);
            }
            let scale = search::<S, Eight, Half, WEIGHTED, _>(s, &x, &w);
            let inverse = divisor(s, scale);
            let mut words = [[0; LANES]; GROUP / 4];
            for (word, x) in words.iter_mut().zip(x.as_chunks::<4>().0) {
                let mut bytes = [s.splat_i(0); 4];
                for (byte, x) in bytes.iter_mut().zip(x) {
                    let code = nearest_integer(s, s.load(x), inverse, Eight::LOW, Eight::HIGH);
                    *byte = s.and_i(s.to_i32(code), s.splat_i(0xff));
                }
                s.store_i(word_of(s, bytes), word);
            }
            scatter_words(&words, out.len() / BYTES, BYTES, &mut out[2..]);
            write_halves(s, scale, out, BYTES, 0);
        }
    }
}

fn decode(_: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]) {
    isa.run(Decode { src: planes[0], out: dst });
}

struct Decode<'a> {
    src: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (blocks, _) = self.src.as_chunks::<BYTES>();
        let (out, _) = self.out.as_chunks_mut::<GROUP>();
        for (blocks, out) in blocks.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let scales = read_halves(s, blocks, 0);
            for ((block, out), scale) in blocks.iter().zip(out).zip(scales) {
                let scale = s.splat(scale);
                let (codes, _) = block[2..].as_chunks::<LANES>();
                let (out, _) = out.as_chunks_mut::<LANES>();
                for (codes, out) in codes.iter().zip(out) {
                    s.store(s.mul(s.to_f32(s.load_i8(codes)), scale), out);
                }
            }
        }
    }
}

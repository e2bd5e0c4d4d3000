//! GGUF's Q4_1 and Q5_1: 32 weights share a half-float scale `d` and minimum `m`; a weight is `d * code + m`.
//!
//! Layouts: `block_q4_1`, `block_q5_1` of ggml-common.h.

use std::marker::PhantomData;

use crate::asymmetric::{Steps, nearest, search};
use crate::format::Format;
use crate::lanes::{gather, gather_importance};
use crate::lattice::{Lattice, Levels};
use crate::nibbles::{self, BLOCK};
use crate::scales::{self, divisor, read_halves, rescale_halves, write_halves};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// 4 bits a weight, a scale and a minimum: 20 bytes for 32 weights.
pub static Q4_1: Format = Format {
    name: "q4_1",
    block: BLOCK,
    planes: &[20],
    encode: Some(encode::<Four, 4, 20>),
    decode: decode::<4, 20>,
    lattice: Some(&Lattice {
        group: BLOCK,
        levels: Levels::Integers(0, 15),
        steps: scales::steps::<2>,
        store: nibbles::store::<4, 20>,
        rescale: Some(rescale_halves::<0, 2>),
        moves: Some(&nibbles::moves::<4, 20, 2>()),
    }),
    shader: |format| nibbles::shader(format, 4, 2),
};

/// 5 bits a weight, a scale and a minimum: 24 bytes for 32 weights.
pub static Q5_1: Format = Format {
    name: "q5_1",
    block: BLOCK,
    planes: &[24],
    encode: Some(encode::<Five, 5, 24>),
    decode: decode::<5, 24>,
    lattice: Some(&Lattice {
        group: BLOCK,
        levels: Levels::Integers(0, 31),
        steps: scales::steps::<2>,
        store: nibbles::store::<5, 24>,
        rescale: Some(rescale_halves::<0, 2>),
        moves: Some(&nibbles::moves::<5, 24, 2>()),
    }),
    shader: |format| nibbles::shader(format, 5, 2),
};

// Of all triples on a raster this one loses least on normal, long-tailed and real weights, with 4 and with 5 bits.
const TRIED: &[[(f32, f32); 3]] = &[[(0.0, 0.0), (-0.3, 0.3), (0.3, -0.3)]];
const TRIED_WEIGHTED: &[[(f32, f32); 3]] = &[
    [(0.0, 0.0), (-0.3, 0.3), (0.3, -0.3)],
    [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)],
    [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)],
    [(0.5, 1.2), (1.2, 0.5), (1.8, 1.8)],
    [(0.0, 1.8), (1.8, 0.0), (2.6, 2.6)],
    [(0.0, 2.8), (2.8, 0.0), (1.0, 3.2)],
    [(3.2, 1.0), (0.0, 4.0), (4.0, 0.0)],
];

struct Four;

impl Steps for Four {
    const HIGH: f32 = 15.0;
    const TRIED: &[[(f32, f32); 3]] = TRIED;
    const TRIED_WEIGHTED: &[[(f32, f32); 3]] = TRIED_WEIGHTED;
}

struct Five;

impl Steps for Five {
    const HIGH: f32 = 31.0;
    const TRIED: &[[(f32, f32); 3]] = TRIED;
    const TRIED_WEIGHTED: &[[(f32, f32); 3]] = TRIED_WEIGHTED;
}

fn encode<T: Steps, const BITS: u32, const BYTES: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    let out = &mut *planes[0];
    let steps = PhantomData;
    match importance {
        None => isa.run(Encode::<T, BITS, BYTES, false> { src, importance, out, steps }),
        Some(_) => isa.run(Encode::<T, BITS, BYTES, true> { src, importance, out, steps }),
    }
}

struct Encode<'a, T, const BITS: u32, const BYTES: usize, const WEIGHTED: bool> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    steps: PhantomData<T>,
}

impl<T: Steps, const BITS: u32, const BYTES: usize, const WEIGHTED: bool> Kernel
    for Encode<'_, T, BITS, BYTES, WEIGHTED>
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut x = [[0.0; LANES]; BLOCK];
        let mut w = [[1.0; LANES]; BLOCK];
        let mut codes = [s.splat_i(0); BLOCK];
        for (i, out) in self.out.chunks_mut(LANES * BYTES).enumerate() {
            gather(s, self.src, BLOCK, i * LANES, &mut x);
            if WEIGHTED {
                gather_importance(s, self.importance, BLOCK, i * LANES, &mut w);
            }
            let (scale, minimum) = search::<S, T, WEIGHTED>(s, &x, &w);
            let inverse = divisor(s, scale);
            for (code, x) in codes.iter_mut().zip(&x) {
                *code = s.to_i32(nearest::<S, T>(s, s.load(x), minimum, inverse));
            }
            nibbles::pack::<S, BITS, BYTES>(s, &codes, out);
            write_halves(s, scale, out, BYTES, 0);
            write_halves(s, minimum, out, BYTES, 2);
        }
    }
}

fn decode<const BITS: u32, const BYTES: usize>(_: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]) {
    isa.run(Decode::<BITS, BYTES> { src: planes[0], out: dst });
}

struct Decode<'a, const BITS: u32, const BYTES: usize> {
    src: &'a [u8],
    out: &'a mut [f32],
}

impl<const BITS: u32, const BYTES: usize> Kernel for Decode<'_, BITS, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (blocks, _) = self.src.as_chunks::<BYTES>();
        let (out, _) = self.out.as_chunks_mut::<BLOCK>();
        for (blocks, out) in blocks.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let scales = read_halves(s, blocks, 0);
            let minima = read_halves(s, blocks, 2);
            for (i, (block, out)) in blocks.iter().zip(out).enumerate() {
                let (scale, minimum) = (s.splat(scales[i]), s.splat(minima[i]));
                let codes = nibbles::unpack::<S, BITS, BYTES>(s, block);
                for (codes, out) in codes.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
                    // Rounded twice, as gguf-py does.
                    s.store(s.add(s.mul(s.to_f32(codes), scale), minimum), out);
                }
            }
        }
    }
}

//! GGUF's Q4_0 and Q5_0: 32 weights share a half-float scale `d`; a weight is `d * (code - 2^(bits - 1))`.
//!
//! The grid -8..7 (-16..15) is not symmetric, so the sign of `d` matters: usually the weight of largest magnitude goes to the
//! long end. Layouts: `block_q4_0`, `block_q5_0` of ggml-common.h.

use std::marker::PhantomData;

use crate::format::Format;
use crate::grid::nearest_code;
use crate::lanes::{gather, gather_importance};
use crate::lattice::{Lattice, Levels};
use crate::nibbles::{self, BLOCK};
use crate::scales::{self, divisor, read_halves, rescale_halves, write_halves};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::stored::Half;
use crate::symmetric::{Grid, search};

/// 4 bits a weight and a scale: 18 bytes for 32 weights.
pub static Q4_0: Format = Format {
    name: "q4_0",
    block: BLOCK,
    planes: &[18],
    encode: Some(encode::<Four, 4, 18>),
    decode: decode::<4, 18>,
    lattice: Some(&Lattice {
        group: BLOCK,
        levels: Levels::Integers(-8, 7),
        steps: scales::steps::<1>,
        store: nibbles::store::<4, 18>,
        rescale: Some(rescale_halves::<0, 1>),
        moves: Some(&nibbles::moves::<4, 18, 1>()),
    }),
    shader: |format| nibbles::shader(format, 4, 1),
};

/// 5 bits a weight and a scale: 22 bytes for 32 weights.
pub static Q5_0: Format = Format {
    name: "q5_0",
    block: BLOCK,
    planes: &[22],
    encode: Some(encode::<Five, 5, 22>),
    decode: decode::<5, 22>,
    lattice: Some(&Lattice {
        group: BLOCK,
        levels: Levels::Integers(-16, 15),
        steps: scales::steps::<1>,
        store: nibbles::store::<5, 22>,
        rescale: Some(rescale_halves::<0, 1>),
        moves: Some(&nibbles::moves::<5, 22, 1>()),
    }),
    shader: |format| nibbles::shader(format, 5, 1),
};

struct Four;

impl Grid for Four {
    const LOW: i32 = -8;
    const HIGH: i32 = 7;
    const PEERS: f32 = -8.0;
    // The peers' own, one further out, one at the short end: within 0.1 % of the best triple of a raster.
    const TRIED: &[[f32; 3]] = &[[-8.0, -8.5, 7.2]];
    // Chosen one by one, each the one of a raster that lowered the error the most.
    const TRIED_WEIGHTED: &[[f32; 3]] = &[[-9.2, 7.0, 8.2], [-6.2, -7.8, -8.4], [-8.8, -7.4, -8.2]];
}

struct Five;

impl Grid for Five {
    const LOW: i32 = -16;
    const HIGH: i32 = 15;
    const PEERS: f32 = -16.0;
    const TRIED: &[[f32; 3]] = &[[-16.0, -16.5, 15.2]];
    const TRIED_WEIGHTED: &[[f32; 3]] = &[[-16.4, -15.2, -14.0], [-13.1, 14.7, -15.8], [12.0, -17.0, -17.6]];
}

fn encode<G: Grid, const BITS: u32, const BYTES: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    let out = &mut *planes[0];
    let grid = PhantomData;
    match importance {
        None => isa.run(Encode::<G, BITS, BYTES, false> { src, importance, out, grid }),
        Some(_) => isa.run(Encode::<G, BITS, BYTES, true> { src, importance, out, grid }),
    }
}

struct Encode<'a, G, const BITS: u32, const BYTES: usize, const WEIGHTED: bool> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
    grid: PhantomData<G>,
}

impl<G: Grid, const BITS: u32, const BYTES: usize, const WEIGHTED: bool> Kernel
    for Encode<'_, G, BITS, BYTES, WEIGHTED>
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
            let scale = search::<S, G, Half, WEIGHTED, _>(s, &x, &w);
            let inverse = divisor(s, scale);
            for (code, x) in codes.iter_mut().zip(&x) {
                *code = nearest_code(s, s.load(x), inverse, G::LOW, G::HIGH);
            }
            nibbles::pack::<S, BITS, BYTES>(s, &codes, out);
            write_halves(s, scale, out, BYTES, 0);
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
        let zero = s.splat_i(1 << (BITS - 1));
        for (blocks, out) in blocks.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let scales = read_halves(s, blocks, 0);
            for ((block, out), scale) in blocks.iter().zip(out).zip(scales) {
                let scale = s.splat(scale);
                let codes = nibbles::unpack::<S, BITS, BYTES>(s, block);
                for (codes, out) in codes.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
                    s.store(s.mul(s.to_f32(s.sub_i(codes, zero)), scale), out);
                }
            }
        }
    }
}

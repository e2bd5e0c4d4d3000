//! MXFP4: groups of 32 E2M1 codes under an E8M0 scale, 4.25 bits per weight, as GGUF and as MLX store them.

use std::marker::PhantomData;

use crate::format::Format;
use crate::lanes::scatter;
use crate::lattice::{Lattice, Levels, Moves};
use crate::microscale::{E8M0, Encode, Groups, Pack, Scale};
use crate::minifloat::{self, E2M1, E2M1_GGUF, E2M1_LEVELS, E2M1_VALUES, e2m1_codes};
use crate::mlx_affine::{pack_eights, unpack};
use crate::nibbles::fold;
use crate::simd::{Kernel, LANES, Simd};

/// Weights per scale.
const GROUP: usize = 32;

/// GGUF's MXFP4. A block (ggml's `block_mxfp4`) is the scale, then 16 bytes with weights 0–15 in the low nibbles and 16–31 in the
/// high ones.
pub static MXFP4: Format = Format {
    name: "mxfp4",
    block: GROUP,
    planes: &[17],
    encode: Some(|_, isa, src, importance, planes| {
        isa.run(Encode::<E2M1, E8M0, _, GROUP>::new(src, importance, Blocks(planes[0])))
    }),
    decode: |_, isa, planes, dst| isa.run(Decode { blocks: planes[0].as_chunks().0, dst }),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: steps::<E8M0>,
        store: |indices, planes| fold::<GROUP>(&e2m1_codes::<GROUP>(indices), &mut planes[0][1..]),
        rescale: None,
        moves: Some(&Moves {
            load: |planes, codes| {
                let (low, high) = codes.split_at_mut(GROUP / 2);
                for ((byte, low), high) in planes[0][1..].iter().zip(low).zip(high) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            },
            store: |codes, planes| fold::<GROUP>(codes, &mut planes[0][1..]),
            set: |scales, offsets, planes| set_power(scales[0], offsets[0], &mut planes[0][0]),
        }),
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/mxfp4.wgsl")),
};

/// MLX's `mxfp4`: codes, the first in the lowest bits; scales.
pub static MLX_MXFP4: Format = Format {
    name: "mxfp4",
    block: GROUP,
    planes: &[16, 1],
    encode: Some(|_, isa, src, importance, planes| {
        let [codes, scales] = planes else { unreachable!("two planes") };
        isa.run(Encode::<E2M1, E8M0, _, GROUP>::new(src, importance, Pairs { codes, scales }))
    }),
    decode: |_, isa, planes, dst| isa.run(DecodePairs::<E8M0, GROUP>::new(planes[0], planes[1], dst)),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: steps::<E8M0>,
        store: store_pairs::<GROUP>,
        rescale: None,
        moves: Some(&Moves {
            load: |planes, codes| unpack(4, planes[0], codes),
            store: |codes, planes| pack_eights::<4>(codes, planes[0]),
            set: |scales, offsets, planes| set_power(scales[0], offsets[0], &mut planes[1][0]),
        }),
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/mlx_fp4.wgsl")),
};

/// Sets a scale that is a power of two, if there is no offset: whether it is one, and there is none.
fn set_power(scale: f32, offset: f32, code: &mut u8) -> bool {
    // The least power is subnormal, without an exponent.
    *code = (scale.to_bits() >> 23) as u8;
    E8M0::decode(*code) == scale && offset == 0.0
}

struct Blocks<'a>(&'a mut [u8]);

impl Pack<GROUP> for Blocks<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize) {
        let mut rows = [groups.scales; 17];
        for (j, row) in rows[1..].iter_mut().enumerate() {
            let high = s.shl_i::<4>(s.load_i(&groups.codes[j + 16]));
            s.store_u8(s.or_i(s.load_i(&groups.codes[j]), high), row);
        }
        scatter(s, &rows, lanes, 17, &mut self.0[17 * first..]);
    }
}

struct Decode<'a> {
    blocks: &'a [[u8; 17]],
    dst: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.blocks.iter().zip(self.dst.as_chunks_mut::<GROUP>().0) {
            let [code, codes @ ..] = block;
            let [low, high] = out.as_chunks_mut::<LANES>().0 else { unreachable!("32 = 2 · 16") };
            let scale = s.splat(E8M0::decode(*code));
            let codes = s.load_u8(codes);
            s.store(s.mul(scale, s.lookup(&E2M1_GGUF, codes)), low);
            s.store(s.mul(scale, s.lookup(&E2M1_GGUF, s.shr_i::<4>(codes))), high);
        }
    }
}

/// MLX's planes of four-bit codes and 8-bit scales.
pub(crate) struct Pairs<'a> {
    pub codes: &'a mut [u8],
    pub scales: &'a mut [u8],
}

impl<const GROUP: usize> Pack<GROUP> for Pairs<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize) {
        self.scales[first..first + lanes].copy_from_slice(&groups.scales[..lanes]);
        let mut rows = [[0; LANES]; GROUP];
        let (pairs, _) = groups.codes.as_chunks::<2>();
        for ([even, odd], row) in pairs.iter().zip(&mut rows) {
            s.store_u8(s.or_i(s.load_i(even), s.shl_i::<4>(s.load_i(odd))), row);
        }
        scatter(s, &rows[..GROUP / 2], lanes, GROUP / 2, &mut self.codes[GROUP / 2 * first..]);
    }
}

/// Decodes [`Pairs`].
pub(crate) struct DecodePairs<'a, C, const GROUP: usize> {
    codes: &'a [u8],
    scales: &'a [u8],
    dst: &'a mut [f32],
    format: PhantomData<C>,
}

impl<'a, C, const GROUP: usize> DecodePairs<'a, C, GROUP> {
    pub(crate) fn new(codes: &'a [u8], scales: &'a [u8], dst: &'a mut [f32]) -> Self {
        Self { codes, scales, dst, format: PhantomData }
    }
}

impl<C: Scale, const GROUP: usize> Kernel for DecodePairs<'_, C, GROUP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (bytes, _) = self.codes.as_chunks::<8>();
        for (i, (bytes, out)) in bytes.iter().zip(self.dst.as_chunks_mut::<LANES>().0).enumerate() {
            let mut codes = [0; LANES];
            for (byte, pair) in bytes.iter().zip(codes.as_chunks_mut::<2>().0) {
                *pair = [byte & 15, byte >> 4];
            }
            let scale = s.splat(C::decode(self.scales[i * LANES / GROUP]));
            s.store(s.mul(scale, s.lookup(&E2M1_VALUES, s.load_u8(&codes))), out);
        }
    }
}

/// [`Lattice::steps`] of a block that is one group, with its scale at the start of its last plane.
pub(crate) fn steps<C: Scale>(planes: &[&[u8]], scales: &mut [f32], offsets: &mut [f32]) {
    scales[0] = C::decode(planes[planes.len() - 1][0]);
    offsets[0] = 0.0;
}

/// [`Lattice::store`] of [`Pairs`].
pub(crate) fn store_pairs<const GROUP: usize>(indices: &[u8], planes: &mut [&mut [u8]]) {
    pack_eights::<4>(&e2m1_codes::<GROUP>(indices), planes[0]);
}

//! NVFP4: groups of 16 E2M1 codes under an E4M3 scale, 4.5 bits per weight, as GGUF and as MLX store them. Neither stores a scale of
//! the whole tensor in the type itself.

use crate::format::Format;
use crate::fp8::e4m3_to_f32;
use crate::lanes::scatter;
use crate::lattice::{Lattice, Levels};
use crate::microscale::{Encode, Groups, Pack, Ue4m3};
use crate::minifloat::{self, E2M1, E2M1_GGUF, E2M1_LEVELS, e2m1_codes};
use crate::mxfp4::{DecodePairs, Pairs, steps, store_pairs};
use crate::nibbles::fold;
use crate::simd::{Kernel, LANES, Simd};

/// Weights per scale.
const GROUP: usize = 16;

/// GGUF's NVFP4. A block (ggml's `block_nvfp4`) is four scales, then for each of the four groups 8 bytes with weights 0–7 in the low
/// nibbles and 8–15 in the high ones.
pub static NVFP4: Format = Format {
    name: "nvfp4",
    block: 64,
    planes: &[36],
    encode: Some(|_, isa, src, importance, planes| {
        isa.run(Encode::<E2M1, Ue4m3, _, GROUP>::new(src, importance, Blocks(planes[0])))
    }),
    decode: |_, isa, planes, dst| isa.run(Decode { blocks: planes[0].as_chunks().0, dst }),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: |planes, scales, offsets| {
            for (scale, &code) in scales.iter_mut().zip(planes[0]) {
                *scale = unsigned(code);
            }
            offsets.fill(0.0);
        },
        store: |indices, planes| fold::<GROUP>(&e2m1_codes::<64>(indices), &mut planes[0][4..]),
        rescale: None,
        moves: None,
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/nvfp4.wgsl")),
};

/// MLX's `nvfp4`: codes, the first in the lowest bits; scales.
pub static MLX_NVFP4: Format = Format {
    name: "nvfp4",
    block: GROUP,
    planes: &[8, 1],
    encode: Some(|_, isa, src, importance, planes| {
        let [codes, scales] = planes else { unreachable!("two planes") };
        isa.run(Encode::<E2M1, Ue4m3, _, GROUP>::new(src, importance, Pairs { codes, scales }))
    }),
    decode: |_, isa, planes, dst| isa.run(DecodePairs::<Ue4m3, GROUP>::new(planes[0], planes[1], dst)),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: steps::<Ue4m3>,
        store: store_pairs::<GROUP>,
        rescale: None,
        moves: None,
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/mlx_fp4.wgsl")),
};

struct Blocks<'a>(&'a mut [u8]);

impl Pack<GROUP> for Blocks<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize) {
        let mut rows = [[0; LANES]; 8];
        for (j, row) in rows.iter_mut().enumerate() {
            let high = s.shl_i::<4>(s.load_i(&groups.codes[j + 8]));
            s.store_u8(s.or_i(s.load_i(&groups.codes[j]), high), row);
        }
        let mut codes = [0; 8 * LANES];
        scatter(s, &rows, LANES, 8, &mut codes);
        let blocks = &mut self.0[36 * (first / 4)..][..36 * (lanes / 4)];
        let parts = groups.scales.as_chunks::<4>().0.iter().zip(codes.as_chunks::<32>().0);
        for (block, (scales, codes)) in blocks.as_chunks_mut::<36>().0.iter_mut().zip(parts) {
            block[..4].copy_from_slice(scales);
            block[4..].copy_from_slice(codes);
        }
    }
}

struct Decode<'a> {
    blocks: &'a [[u8; 36]],
    dst: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.blocks.iter().zip(self.dst.as_chunks_mut::<64>().0) {
            let (scales, codes) = block.split_at(4);
            let groups = codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<GROUP>().0);
            for ((bytes, out), &scale) in groups.zip(scales) {
                let mut codes = [0; LANES];
                for (j, byte) in bytes.iter().enumerate() {
                    (codes[j], codes[j + 8]) = (byte & 15, byte >> 4);
                }
                let scale = s.splat(unsigned(scale));
                s.store(s.mul(scale, s.lookup(&E2M1_GGUF, s.load_u8(&codes))), out);
            }
        }
    }
}

/// The scale as ggml reads it: the sign bit is ignored, NaN without sign is zero and with it 480.
#[inline(always)]
fn unsigned(code: u8) -> f32 {
    match code {
        0x7f => 0.0,
        0xff => 480.0,
        _ => e4m3_to_f32(code & 0x7f),
    }
}

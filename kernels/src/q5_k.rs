//! Q5_K: super-blocks of 8 groups of 32, 5-bit codes, 6-bit sub-scales and sub-minima, 5.5 bits per weight.
//!
//! Layout (ggml's `block_q5_K`, 176 bytes): `d`, `dmin` f16, `scales` [12] as in Q4_K, `qh` [32], `qs` [128];
//! x = d · scale · code − dmin · min. `qs` holds the low nibbles of the codes as in Q4_K, bit g of `qh[i]` the high bit of
//! element i of group g.

use half::f16;

use crate::affine::{self, Plan};
use crate::format::Format;
use crate::lattice::{Lattice, Levels};
use crate::nibbles::fold;
use crate::q4_k::{pack_scales, steps, unpack_scales};
use crate::scales::rescale_halves;
use crate::shaders::decoder_of_codes;
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's Q5_K.
pub static Q5_K: Format = Format {
    name: "q5_k",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 32,
        levels: Levels::Integers(0, 31),
        steps,
        store: |indices, planes| pack(indices, &mut planes[0][16..]),
        rescale: Some(rescale_halves::<0, 2>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[("CODE_BITS", 5)], include_str!("shaders/decode/q4_k.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 176;

/// The ranges were chosen one by one, each the one of a grid that lowered the error the most.
const PLAN: Plan = Plan {
    codes: 31,
    limit: 63.0,
    ranges: &[
        (0.0, 0.0),
        (0.2, -0.8),
        (-0.8, -0.8),
        (-0.1, 0.5),
        (0.5, -0.1),
        (-0.4, -1.2),
        (-1.2, -0.8),
        (0.5, 0.5),
        (-0.1, -0.4),
        (-0.8, -1.2),
        (-0.1, -1.2),
        (1.2, 0.2),
        (-0.1, 0.8),
        (-0.1, -0.8),
    ],
};

struct Type;

impl Blocks<BYTES> for Type {
    const BLOCK: usize = SUPER_BLOCK;
    const PER_TILE: usize = 2;

    #[inline(always)]
    fn encode<S: Simd, const WEIGHTED: bool>(
        s: S,
        weights: &Weights,
        tile: usize,
        blocks: &mut [[u8; BYTES]],
    ) {
        let tile = Tile::<S, 32>::load::<8, WEIGHTED>(s, weights, tile);
        let found = affine::search::<S, 32, 8, WEIGHTED>(s, &PLAN, &tile);
        let codes = bytes(s, &found.codes);
        let scales = lane_bytes(s, found.scale);
        let mins = lane_bytes(s, found.min);
        for (i, block) in blocks.iter_mut().enumerate() {
            let lanes = i * 8..i * 8 + 8;
            block[..2].copy_from_slice(&found.d[lanes.start].to_le_bytes());
            block[2..4].copy_from_slice(&found.dmin[lanes.start].to_le_bytes());
            pack_scales(&scales[lanes.clone()], &mins[lanes.clone()], &mut block[4..16]);
            pack(codes[lanes].as_flattened(), &mut block[16..]);
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let dmin = f16::from_le_bytes([block[2], block[3]]).to_f32();
        let (scales, mins) = unpack_scales(&block[4..16]);
        let (qh, qs) = block[16..].split_at(32);
        for (g, dst) in dst.chunks_exact_mut(32).enumerate() {
            let scale = s.splat(d * f32::from(scales[g]));
            let min = s.splat(dmin * f32::from(mins[g]));
            let mut codes = [0; 32];
            for i in 0..32 {
                codes[i] = qs[g / 2 * 32 + i] >> (g % 2 * 4) & 15 | (qh[i] >> g & 1) << 4;
            }
            for (codes, dst) in codes.as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<LANES>().0) {
                let q = s.to_f32(s.load_u8(codes));
                s.store(s.sub(s.mul(scale, q), min), dst);
            }
        }
    }
}

/// Packs the codes (0..32) of a super-block into `qh` and `qs`.
#[inline(always)]
fn pack(codes: &[u8], out: &mut [u8]) {
    let (qh, qs) = out.split_at_mut(32);
    qh.fill(0);
    for (g, codes) in codes.chunks_exact(32).enumerate() {
        for i in 0..32 {
            qh[i] |= codes[i] >> 4 << g;
        }
    }
    fold::<64>(codes, qs);
}

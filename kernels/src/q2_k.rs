//! Q2_K: super-blocks of 16 groups of 16, 2-bit codes, 4-bit sub-scales and sub-minima, 2.625 bits per weight.
//!
//! Layout (ggml's `block_q2_K`, 84 bytes): `scales` [16] (sub-scale in the low nibble, sub-minimum in the high one),
//! `qs` [64] (see [`pack_pairs`]), `d`, `dmin` f16; x = d · scale · code − dmin · min.

use half::f16;

use crate::affine::{self, Plan};
use crate::format::Format;
use crate::lattice::{Lattice, Levels};
use crate::scales::{half_at, rescale_halves};
use crate::shaders::decoder_of_codes;
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's Q2_K.
pub static Q2_K: Format = Format {
    name: "q2_k",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 16,
        levels: Levels::Integers(0, 3),
        steps: |planes, scales, offsets| {
            let (d, dmin) = (half_at(planes[0], 80), half_at(planes[0], 82));
            for (i, both) in planes[0][..16].iter().enumerate() {
                scales[i] = d * f32::from(both & 15);
                offsets[i] = -dmin * f32::from(both >> 4);
            }
        },
        store: |indices, planes| pack_pairs(indices, &mut planes[0][16..80]),
        rescale: Some(rescale_halves::<80, 2>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q2_k.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 84;

/// The ranges were chosen one by one, each the one of a grid that lowered the error the most.
const PLAN: Plan = Plan {
    codes: 3,
    limit: 15.0,
    ranges: &[
        (0.0, 0.0),
        (0.6, 0.45),
        (0.0, 0.6),
        (0.9, 0.0),
        (-0.3, 0.9),
        (0.45, 0.0),
        (0.3, 0.6),
        (0.3, -0.6),
        (0.9, -0.3),
    ],
};

struct Type;

impl Blocks<BYTES> for Type {
    const BLOCK: usize = SUPER_BLOCK;
    const PER_TILE: usize = 1;

    #[inline(always)]
    fn encode<S: Simd, const WEIGHTED: bool>(
        s: S,
        weights: &Weights,
        tile: usize,
        blocks: &mut [[u8; BYTES]],
    ) {
        let tile = Tile::<S, 16>::load::<16, WEIGHTED>(s, weights, tile);
        let found = affine::search::<S, 16, 16, WEIGHTED>(s, &PLAN, &tile);
        let codes = bytes(s, &found.codes);
        let scales = lane_bytes(s, found.scale);
        let mins = lane_bytes(s, found.min);
        for block in blocks {
            for i in 0..LANES {
                block[i] = scales[i] | mins[i] << 4;
            }
            pack_pairs(codes.as_flattened(), &mut block[16..80]);
            block[80..82].copy_from_slice(&found.d[0].to_le_bytes());
            block[82..].copy_from_slice(&found.dmin[0].to_le_bytes());
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[80], block[81]]).to_f32();
        let dmin = f16::from_le_bytes([block[82], block[83]]).to_f32();
        let codes = unpack_pairs(&block[16..80]);
        let groups = codes.as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<LANES>().0);
        for ((codes, dst), &scale) in groups.zip(&block[..16]) {
            let min = s.splat(dmin * f32::from(scale >> 4));
            let scale = s.splat(d * f32::from(scale & 15));
            let q = s.to_f32(s.load_u8(codes));
            s.store(s.sub(s.mul(scale, q), min), dst);
        }
    }
}

/// Packs the low bit pairs of 256 codes into 64 bytes: byte i of each half of 32 holds elements i, 32 + i, 64 + i and
/// 96 + i of its 128, from the low bits up.
#[inline(always)]
pub(crate) fn pack_pairs(codes: &[u8], qs: &mut [u8]) {
    for (codes, qs) in codes.chunks_exact(128).zip(qs.chunks_exact_mut(32)) {
        for i in 0..32 {
            qs[i] = codes[i] & 3 | (codes[32 + i] & 3) << 2 | (codes[64 + i] & 3) << 4 | codes[96 + i] << 6;
        }
    }
}

/// The bit pairs that [`pack_pairs`] packed.
#[inline(always)]
pub(crate) fn unpack_pairs(qs: &[u8]) -> [u8; SUPER_BLOCK] {
    let mut codes = [0; SUPER_BLOCK];
    for (codes, qs) in codes.chunks_exact_mut(128).zip(qs.chunks_exact(32)) {
        for i in 0..32 {
            codes[i] = qs[i] & 3;
            codes[32 + i] = qs[i] >> 2 & 3;
            codes[64 + i] = qs[i] >> 4 & 3;
            codes[96 + i] = qs[i] >> 6;
        }
    }
    codes
}

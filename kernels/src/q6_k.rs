//! Q6_K: super-blocks of 16 groups of 16, 6-bit codes, signed 8-bit sub-scales, 6.5625 bits per weight.
//!
//! Layout (ggml's `block_q6_K`, 210 bytes): `ql` [128] low nibbles, `qh` [64] high bit pairs, `scales` [16] i8, `d` f16;
//! x = d · scale · (code − 32). Each half of 128 weights is four runs of 32: `ql` holds runs 0 and 2 (and 1 and 3) as low
//! and high nibbles of 64 bytes, `qh` the bit pairs of all four from the low bits up.

use half::f16;

use crate::format::Format;
use crate::grid::Integers;
use crate::lattice::{Lattice, Levels};
use crate::nibbles::fold;
use crate::scales::{half_at, rescale_halves};
use crate::shaders::decoder_of_codes;
use crate::signed::{self, Plan};
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's Q6_K.
pub static Q6_K: Format = Format {
    name: "q6_k",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 16,
        levels: Levels::Integers(-32, 31),
        steps: |planes, scales, offsets| {
            let d = half_at(planes[0], 208);
            for (scale, &sub_scale) in scales.iter_mut().zip(&planes[0][192..208]) {
                *scale = d * f32::from(sub_scale as i8);
            }
            offsets.fill(0.0);
        },
        store: |indices, planes| pack(indices, planes[0]),
        rescale: Some(rescale_halves::<208, 1>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q6_k.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 210;

/// The places were chosen one by one, each the one of a raster that lowered the error the most.
const PLAN: Plan = Plan {
    limit: 128,
    tried: &[[-32.0, -31.0, -30.0], [-29.0, -28.0, -32.5], [-31.5, -30.5, -29.5]],
    tried_weighted: &[[-27.0, -26.0, -33.0]],
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
        let found = signed::search::<S, Integers<32>, 16, 16, WEIGHTED>(s, &PLAN, &tile);
        let codes = bytes(s, &found.codes);
        let scales = lane_bytes(s, found.sub_scale);
        for block in blocks {
            pack(codes.as_flattened(), block);
            block[192..208].copy_from_slice(&scales);
            block[208..].copy_from_slice(&found.d[0].to_le_bytes());
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        let codes = unpack(block);
        let groups = codes.as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<LANES>().0);
        for ((codes, dst), &scale) in groups.zip(&block[192..208]) {
            let scale = s.splat(d * f32::from(scale as i8));
            let q = s.sub_i(s.load_u8(codes), s.splat_i(32));
            s.store(s.mul(scale, s.to_f32(q)), dst);
        }
    }
}

/// Writes the codes (0..64) of a super-block into `ql` and `qh`.
#[inline(always)]
fn pack(codes: &[u8], block: &mut [u8]) {
    let (ql, qh) = block[..192].split_at_mut(128);
    fold::<128>(codes, ql);
    for (codes, qh) in codes.chunks_exact(128).zip(qh.chunks_exact_mut(32)) {
        for i in 0..32 {
            qh[i] =
                codes[i] >> 4 | codes[32 + i] >> 4 << 2 | codes[64 + i] >> 4 << 4 | codes[96 + i] >> 4 << 6;
        }
    }
}

/// The codes of a super-block, as [`pack`] wrote them.
#[inline(always)]
fn unpack(block: &[u8; BYTES]) -> [u8; SUPER_BLOCK] {
    let mut out = [0; SUPER_BLOCK];
    let (ql, qh) = block[..192].split_at(128);
    for ((out, ql), qh) in out.chunks_exact_mut(128).zip(ql.chunks_exact(64)).zip(qh.chunks_exact(32)) {
        for i in 0..32 {
            out[i] = ql[i] & 15 | (qh[i] & 3) << 4;
            out[32 + i] = ql[32 + i] & 15 | (qh[i] >> 2 & 3) << 4;
            out[64 + i] = ql[i] >> 4 | (qh[i] >> 4 & 3) << 4;
            out[96 + i] = ql[32 + i] >> 4 | qh[i] >> 6 << 4;
        }
    }
    out
}

//! Q3_K: super-blocks of 16 groups of 16, 3-bit codes, signed 6-bit sub-scales, 3.4375 bits per weight.
//!
//! Layout (ggml's `block_q3_K`, 110 bytes): `hmask` [32], `qs` [64], `scales` [12] (see [`pack_scales`]), `d` f16;
//! x = d · scale · (code − 4). `qs` holds the low bit pairs of the codes as in Q2_K, bit r of `hmask[i]` the high bit of
//! element i of run r of 32.

use half::f16;

use crate::format::Format;
use crate::grid::Integers;
use crate::lattice::{Lattice, Levels};
use crate::q2_k::{pack_pairs, unpack_pairs};
use crate::scales::{half_at, rescale_halves};
use crate::shaders::decoder_of_codes;
use crate::signed::{self, Plan};
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's Q3_K.
pub static Q3_K: Format = Format {
    name: "q3_k",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 16,
        levels: Levels::Integers(-4, 3),
        steps: |planes, scales, offsets| {
            let d = half_at(planes[0], 108);
            for (scale, sub_scale) in scales.iter_mut().zip(unpack_scales(&planes[0][96..108])) {
                *scale = d * (f32::from(sub_scale) - 32.0);
            }
            offsets.fill(0.0);
        },
        store: |indices, planes| pack(indices, planes[0]),
        rescale: Some(rescale_halves::<108, 1>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q3_k.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 110;

/// The places were chosen one by one, each the one of a raster that lowered the error the most.
const PLAN: Plan = Plan {
    limit: 32,
    tried: &[[-4.5, -3.25, -4.0], [-3.75, -5.0, -4.25]],
    tried_weighted: &[[-7.25, 4.0, 6.0], [-3.0, -5.75, 4.75]],
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
        let found = signed::search::<S, Integers<4>, 16, 16, WEIGHTED>(s, &PLAN, &tile);
        let codes = bytes(s, &found.codes);
        let scales = lane_bytes(s, s.add(found.sub_scale, s.splat(32.0)));
        for block in blocks {
            pack(codes.as_flattened(), block);
            pack_scales(&scales, &mut block[96..108]);
            block[108..].copy_from_slice(&found.d[0].to_le_bytes());
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[108], block[109]]).to_f32();
        let scales = unpack_scales(&block[96..108]);
        let mut codes = unpack_pairs(&block[32..96]);
        for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
            for i in 0..32 {
                codes[i] |= (block[i] >> run & 1) << 2;
            }
        }
        let groups = codes.as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<LANES>().0);
        for ((codes, dst), scale) in groups.zip(scales) {
            let scale = s.splat(d * (f32::from(scale) - 32.0));
            let q = s.sub_i(s.load_u8(codes), s.splat_i(4));
            s.store(s.mul(scale, s.to_f32(q)), dst);
        }
    }
}

/// Writes the codes (0..8) of a super-block into `hmask` and `qs`.
#[inline(always)]
fn pack(codes: &[u8], block: &mut [u8]) {
    let (hmask, qs) = block[..96].split_at_mut(32);
    hmask.fill(0);
    for (run, codes) in codes.chunks_exact(32).enumerate() {
        for i in 0..32 {
            hmask[i] |= codes[i] >> 2 << run;
        }
    }
    pack_pairs(codes, qs);
}

/// Packs 16 sub-scales (0..64, 32 more than they mean) into 12 bytes: the low nibbles of 0..8 and, above them, of 8..16
/// in 8 bytes; then byte i of 4 holds the upper bit pairs of i, 4 + i, 8 + i and 12 + i, from the low bits up.
#[inline(always)]
fn pack_scales(scales: &[u8; LANES], out: &mut [u8]) {
    for i in 0..8 {
        out[i] = scales[i] & 15 | scales[8 + i] << 4;
    }
    for i in 0..4 {
        out[8 + i] =
            scales[i] >> 4 | scales[4 + i] >> 4 << 2 | scales[8 + i] >> 4 << 4 | scales[12 + i] >> 4 << 6;
    }
}

/// The sub-scales that [`pack_scales`] packed.
#[inline(always)]
fn unpack_scales(packed: &[u8]) -> [u8; LANES] {
    std::array::from_fn(|i| packed[i % 8] >> (i / 8 * 4) & 15 | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4)
}

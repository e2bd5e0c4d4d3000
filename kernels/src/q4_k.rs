//! Q4_K: super-blocks of 8 groups of 32, 4-bit codes, 6-bit sub-scales and sub-minima, 4.5 bits per weight.
//!
//! Layout (ggml's `block_q4_K`, 144 bytes): `d`, `dmin` f16, `scales` [12] (see [`pack_scales`]), `qs` [128];
//! x = d · scale · code − dmin · min. `qs` holds groups 2 i and 2 i + 1 as low and high nibbles of 32 bytes.

use half::f16;

use crate::affine::{self, Plan};
use crate::format::Format;
use crate::lattice::{Lattice, Levels};
use crate::nibbles::fold;
use crate::scales::{half_at, rescale_halves};
use crate::shaders::decoder_of_codes;
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's Q4_K.
pub static Q4_K: Format = Format {
    name: "q4_k",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 32,
        levels: Levels::Integers(0, 15),
        steps,
        store: |indices, planes| fold::<64>(indices, &mut planes[0][16..]),
        rescale: Some(rescale_halves::<0, 2>),
        moves: None,
    }),
    shader: |format| decoder_of_codes(format, &[("CODE_BITS", 4)], include_str!("shaders/decode/q4_k.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 144;

/// The ranges were chosen one by one, each the one of a grid that lowered the error the most.
const PLAN: Plan = Plan {
    codes: 15,
    limit: 63.0,
    ranges: &[
        (0.0, 0.0),
        (0.2, -0.4),
        (-0.1, 0.5),
        (-1.0, -0.1),
        (0.8, 0.2),
        (-1.0, -1.0),
        (0.5, 0.5),
        (-0.4, -1.0),
        (0.2, 1.2),
        (1.2, -0.1),
        (-0.7, -0.4),
        (-0.1, 0.2),
        (0.2, -0.7),
        (0.5, -0.1),
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
            fold::<64>(codes[lanes].as_flattened(), &mut block[16..]);
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let dmin = f16::from_le_bytes([block[2], block[3]]).to_f32();
        let (scales, mins) = unpack_scales(&block[4..16]);
        for (g, dst) in dst.chunks_exact_mut(32).enumerate() {
            let scale = s.splat(d * f32::from(scales[g]));
            let min = s.splat(dmin * f32::from(mins[g]));
            let qs = &block[16 + g / 2 * 32..][..32];
            for (qs, dst) in qs.as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<LANES>().0) {
                let q = s.load_u8(qs);
                let q = if g % 2 == 0 { s.and_i(q, s.splat_i(15)) } else { s.shr_i::<4>(q) };
                s.store(s.sub(s.mul(scale, s.to_f32(q)), min), dst);
            }
        }
    }
}

/// Packs 8 sub-scales and 8 sub-minima (0..64) into 12 bytes: 0..4 scales 0..4, 4..8 minima 0..4, in the low 6 bits; 8..12
/// the low nibbles of scales 4..8 and, above them, of minima 4..8, whose upper bit pairs are the upper bits of bytes 0..8.
#[inline(always)]
pub(crate) fn pack_scales(scales: &[u8], mins: &[u8], out: &mut [u8]) {
    for i in 0..4 {
        out[i] = scales[i] | scales[4 + i] >> 4 << 6;
        out[4 + i] = mins[i] | mins[4 + i] >> 4 << 6;
        out[8 + i] = scales[4 + i] & 15 | mins[4 + i] << 4;
    }
}

/// The sub-scales and sub-minima that [`pack_scales`] packed.
#[inline(always)]
pub(crate) fn unpack_scales(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[4 + i] & 63;
        scales[4 + i] = packed[8 + i] & 15 | packed[i] >> 6 << 4;
        mins[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
    (scales, mins)
}

/// [`Lattice::steps`] of Q4_K and Q5_K, whose blocks begin alike.
pub(crate) fn steps(planes: &[&[u8]], scales: &mut [f32], offsets: &mut [f32]) {
    let (d, dmin) = (half_at(planes[0], 0), half_at(planes[0], 2));
    let (sub_scales, mins) = unpack_scales(&planes[0][4..16]);
    for g in 0..8 {
        scales[g] = d * f32::from(sub_scales[g]);
        offsets[g] = -dmin * f32::from(mins[g]);
    }
}

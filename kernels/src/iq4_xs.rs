//! IQ4_XS: super-blocks of 8 groups of 32, 4-bit codes of a codebook, signed 6-bit sub-scales, 4.25 bits per weight.
//!
//! Layout (ggml's `block_iq4_xs`, 136 bytes): `d` f16, `scales_h` u16, `scales_l` [4], `qs` [128];
//! x = d · scale · value\[code\]. `scales_l` holds the low nibbles of the sub-scales (plus 32), `scales_h` their upper bit
//! pairs; `qs` the codes of each group as in IQ4_NL.

use half::f16;

use crate::codebook::{self, IQ4, Iq4};
use crate::format::Format;
use crate::lattice::{Lattice, Levels};
use crate::nibbles::fold;
use crate::scales::{half_at, rescale_halves};
use crate::signed::{self, Plan};
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, SUPER_BLOCK, Tile, Weights, bytes, lane_bytes};

/// GGUF's IQ4_XS.
pub static IQ4_XS: Format = Format {
    name: "iq4_xs",
    block: SUPER_BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: 32,
        levels: Levels::Values(&IQ4),
        steps: |planes, scales, offsets| {
            let d = half_at(planes[0], 0);
            for (scale, sub_scale) in scales.iter_mut().zip(sub_scales(planes[0])) {
                *scale = d * sub_scale;
            }
            offsets.fill(0.0);
        },
        store: |indices, planes| fold::<32>(indices, &mut planes[0][8..]),
        rescale: Some(rescale_halves::<0, 1>),
        moves: None,
    }),
    shader: |format| codebook::shader(format, include_str!("shaders/decode/iq4_xs.wgsl")),
};

/// Bytes of a super-block.
const BYTES: usize = 136;

/// The places were chosen one by one, each the one of a raster that lowered the error the most.
const PLAN: Plan = Plan {
    limit: 32,
    tried: &[[-130.0, 110.0, -125.0], [-110.0, -135.0, 120.0], [-120.0, 115.0, -105.0]],
    tried_weighted: &[[-145.0, 130.0, -155.0]],
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
        let found = signed::search::<S, Iq4, 32, 8, WEIGHTED>(s, &PLAN, &tile);
        let codes = bytes(s, &found.codes);
        let scales = lane_bytes(s, s.add(found.sub_scale, s.splat(32.0)));
        for (i, block) in blocks.iter_mut().enumerate() {
            let lanes = i * 8..i * 8 + 8;
            block[..2].copy_from_slice(&found.d[lanes.start].to_le_bytes());
            let scales = &scales[lanes.clone()];
            let high = (0..8).fold(0, |bits, g| bits | u16::from(scales[g] >> 4) << (2 * g));
            block[2..4].copy_from_slice(&high.to_le_bytes());
            for g in 0..4 {
                block[4 + g] = scales[2 * g] & 15 | scales[2 * g + 1] << 4;
            }
            fold::<32>(codes[lanes].as_flattened(), &mut block[8..]);
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let groups = block[8..].as_chunks::<LANES>().0.iter().zip(dst.as_chunks_mut::<32>().0);
        for ((qs, dst), sub_scale) in groups.zip(sub_scales(block)) {
            codebook::decode(s, d * sub_scale, qs, dst);
        }
    }
}

/// What the groups of a super-block multiply `d` by: -32..32.
#[inline(always)]
fn sub_scales(block: &[u8]) -> [f32; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|g| {
        let stored = block[4 + g / 2] >> (g % 2 * 4) & 15 | ((high >> (2 * g) & 3) as u8) << 4;
        f32::from(stored) - 32.0
    })
}

//! IQ4_NL: blocks of 32, 4-bit codes of a codebook, 4.5 bits per weight.
//!
//! Layout (ggml's `block_iq4_nl`, 18 bytes): `d` f16, `qs` [16]; x = d · value\[code\].

use half::f16;

use crate::codebook::{self, IQ4, Iq4};
use crate::format::Format;
use crate::grid::Grid;
use crate::lattice::{Lattice, Levels};
use crate::nibbles;
use crate::scales::{self, rescale_halves};
use crate::simd::{LANES, Simd};
use crate::superblock::{self, Blocks, Tile, Weights, bytes, reciprocal, stored, stored_bits};

/// GGUF's IQ4_NL.
pub static IQ4_NL: Format = Format {
    name: "iq4_nl",
    block: BLOCK,
    planes: &[BYTES],
    encode: Some(superblock::encode::<Type, BYTES>),
    decode: superblock::decode::<Type, BYTES>,
    lattice: Some(&Lattice {
        group: BLOCK,
        levels: Levels::Values(&IQ4),
        steps: scales::steps::<1>,
        store: nibbles::store::<4, BYTES>,
        rescale: Some(rescale_halves::<0, 1>),
        moves: None,
    }),
    shader: |format| codebook::shader(format, include_str!("shaders/decode/iq4_nl.wgsl")),
};

/// Weights of a block.
const BLOCK: usize = 32;
/// Bytes of a block.
const BYTES: usize = 18;

/// Scales tried, in units of the one that maps a block's extreme weight to the codebook's value of largest magnitude.
const FACTORS: &[f32] = &[
    1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 1.03, 1.06, -1.2, -1.17, -1.14, -1.11, -1.08, -1.05, -1.02,
    -0.99, -0.96,
];

struct Type;

impl Blocks<BYTES> for Type {
    const BLOCK: usize = BLOCK;
    const PER_TILE: usize = LANES;

    #[inline(always)]
    fn encode<S: Simd, const WEIGHTED: bool>(
        s: S,
        weights: &Weights,
        tile: usize,
        blocks: &mut [[u8; BYTES]],
    ) {
        let tile = Tile::<S, BLOCK>::load::<1, WEIGHTED>(s, weights, tile);
        let zero = s.splat(0.0);
        let (mut low, mut high) = (zero, zero);
        for &x in &tile.x {
            low = s.min(x, low);
            high = s.max(x, high);
        }
        let extreme = s.select(s.lt(s.neg(low), high), high, low);
        let full = s.mul(extreme, s.splat(1.0 / Iq4::LEAST));
        let mut best = Fit { scale: full, gain: zero };
        for &factor in FACTORS {
            best.consider::<WEIGHTED>(s, &tile, s.mul(full, s.splat(factor)));
        }
        best.consider::<WEIGHTED>(s, &tile, best.scale);
        let d = stored(s, best.scale, tile.unit);
        let inverse = reciprocal(s, d);
        let (mut codes, mut error, mut zeros) = (tile.x, zero, zero);
        for (i, code) in codes.iter_mut().enumerate() {
            let e = s.neg_mul_add(d, Iq4::nearest(s, tile.x[i], inverse), tile.x[i]);
            error = s.mul_add(e, e, error);
            zeros = s.mul_add(tile.x[i], tile.x[i], zeros);
            *code = Iq4::code(s, tile.x[i], inverse);
        }
        // No value is zero: a block far below the least step is better off with no scale at all.
        let d = s.select(s.lt(error, zeros), d, zero);
        let mut halves = [0; LANES];
        stored_bits(s, d, tile.unit, &mut halves);
        let codes = bytes(s, &codes);
        for ((block, d), codes) in blocks.iter_mut().zip(halves).zip(&codes) {
            block[..2].copy_from_slice(&d.to_le_bytes());
            nibbles::fold::<BLOCK>(codes, &mut block[2..]);
        }
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let (qs, dst) = (block[2..].as_chunks::<LANES>().0.iter(), dst.as_chunks_mut::<BLOCK>().0);
        for (qs, dst) in qs.zip(dst) {
            codebook::decode(s, d, qs, dst);
        }
    }
}

/// The best scale of each block so far.
struct Fit<S: Simd> {
    scale: S::F32,
    /// By how much it lowers the error that zeros would have.
    gain: S::F32,
}

impl<S: Simd> Fit<S> {
    /// Tries the codes that a scale gives, with the scale that fits best to them: Σ w x v / Σ w v².
    #[inline(always)]
    fn consider<const WEIGHTED: bool>(&mut self, s: S, tile: &Tile<S, BLOCK>, scale: S::F32) {
        let inverse = reciprocal(s, scale);
        let (mut xv, mut vv) = (s.splat(0.0), s.splat(0.0));
        for i in 0..BLOCK {
            let v = Iq4::nearest(s, tile.x[i], inverse);
            let wv = if WEIGHTED { s.mul(v, tile.w[i]) } else { v };
            xv = s.mul_add(wv, tile.x[i], xv);
            vv = s.mul_add(wv, v, vv);
        }
        let fit = s.mul(xv, reciprocal(s, vv));
        let gain = s.mul(xv, fit);
        let better = s.lt(self.gain, gain);
        self.scale = s.select(better, fit, self.scale);
        self.gain = s.select(better, gain, self.gain);
    }
}

//! How GGUF's blocks of 32 hold codes of 4 or 5 bits, after their scales: with 5 bits a little-endian word of all fifth
//! bits, then 16 bytes, byte `j` holding the low four bits of weights `j` (low nibble) and `j + 16`.

use crate::format::Format;
use crate::lanes::{scatter_words, word_of};
use crate::lattice::Moves;
use crate::shaders::{Decoder, decoder_of_codes};
use crate::simd::{LANES, Scalar, Simd};
use crate::stored::{Half, exactly};

/// Weights per block.
pub const BLOCK: usize = 32;

/// [`Format::shader`] of blocks with `bits` bits a code and `halves` half floats: a scale and perhaps an offset.
pub fn shader(format: &Format, bits: u32, halves: u32) -> Decoder {
    let constants = [("CODE_BITS", bits), ("HALVES", halves)];
    decoder_of_codes(format, &constants, include_str!("shaders/decode/q4_0.wgsl"))
}

/// Packs the codes of up to sixteen blocks, one per lane, into blocks of `BYTES` bytes: `codes[j]` are those of weight `j`.
#[inline(always)]
pub fn pack<S: Simd, const BITS: u32, const BYTES: usize>(s: S, codes: &[S::I32; BLOCK], out: &mut [u8]) {
    let mut words = [[0; LANES]; 4];
    for (k, word) in words.iter_mut().enumerate() {
        let mut bytes = [s.splat_i(0); 4];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let (mut low, mut high) = (codes[4 * k + i], codes[4 * k + i + 16]);
            if BITS == 5 {
                (low, high) = (s.and_i(low, s.splat_i(15)), s.and_i(high, s.splat_i(15)));
            }
            *byte = s.or_i(low, s.shl_i::<4>(high));
        }
        s.store_i(word_of(s, bytes), word);
    }
    let at = BYTES - 16;
    scatter_words(&words, out.len() / BYTES, BYTES, &mut out[at..]);
    if BITS == 5 {
        let mut fifth = s.splat_i(0);
        for (&low, &high) in codes[..16].iter().zip(&codes[16..]) {
            // Bit 4 goes in from the left: after sixteen turns weight 0's is at bit 0 of its half.
            let pair = s.or_i(
                s.and_i(s.shl_i::<11>(low), s.splat_i(1 << 15)),
                s.and_i(s.shl_i::<27>(high), s.splat_i(i32::MIN)),
            );
            fifth = s.or_i(s.and_i(s.shr_i::<1>(fifth), s.splat_i(0x7fff_7fff)), pair);
        }
        let mut words = [0; LANES];
        s.store_i(fifth, &mut words);
        for (word, block) in words.iter().zip(out.chunks_mut(BYTES)) {
            block[at - 4..at].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// [`Lattice::store`](crate::lattice::Lattice): packs the codes of one block.
pub fn store<const BITS: u32, const BYTES: usize>(indices: &[u8], planes: &mut [&mut [u8]]) {
    let (block, at) = (&mut *planes[0], BYTES - 16);
    fold::<BLOCK>(indices, &mut block[at..]);
    if BITS == 5 {
        let fifth = indices.iter().rev().fold(0, |word, index| word << 1 | u32::from(index >> 4));
        block[at - 4..at].copy_from_slice(&fifth.to_le_bytes());
    }
}

/// [`Lattice::moves`](crate::lattice::Lattice) of a block with `HALVES` half floats, a scale and perhaps an offset.
pub const fn moves<const BITS: u32, const BYTES: usize, const HALVES: usize>() -> Moves {
    Moves { load: load::<BITS, BYTES>, store: store::<BITS, BYTES>, set: set::<HALVES> }
}

fn load<const BITS: u32, const BYTES: usize>(planes: &[&[u8]], codes: &mut [u8]) {
    let mut block = [0; BYTES];
    block.copy_from_slice(planes[0]);
    for (half, codes) in unpack::<Scalar, BITS, BYTES>(Scalar, &block).iter().zip(codes.chunks_exact_mut(16))
    {
        codes.iter_mut().zip(half).for_each(|(code, &found)| *code = found as u8);
    }
}

fn set<const HALVES: usize>(scales: &[f32], offsets: &[f32], planes: &mut [&mut [u8]]) -> bool {
    let (scale, offset) = planes[0][..4].split_at_mut(2);
    exactly::<Half>(scales[0], scale)
        && if HALVES == 2 { exactly::<Half>(offsets[0], offset) } else { offsets[0] == 0.0 }
}

/// Packs the low four bits of codes, `GROUP` into `GROUP / 2` bytes: byte `i` holds code `i` in its low nibble and code
/// `GROUP / 2 + i` in its high one.
#[inline(always)]
pub fn fold<const GROUP: usize>(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<GROUP>().0.iter().zip(out.chunks_exact_mut(GROUP / 2)) {
        let (low, high) = codes.split_at(GROUP / 2);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = low & 15 | high << 4;
        }
    }
}

const BIT: [i32; LANES] = {
    let mut bit = [0; LANES];
    let mut j = 0;
    while j < LANES {
        bit[j] = 1 << j;
        j += 1;
    }
    bit
};

/// The codes of one block: weights 0..16 and 16..32.
#[inline(always)]
pub fn unpack<S: Simd, const BITS: u32, const BYTES: usize>(s: S, block: &[u8; BYTES]) -> [S::I32; 2] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&block[BYTES - 16..]);
    let bytes = s.load_u8(&bytes);
    let mut codes = [s.and_i(bytes, s.splat_i(15)), s.shr_i::<4>(bytes)];
    if BITS == 5 {
        let mut word = [0; 4];
        word.copy_from_slice(&block[BYTES - 20..BYTES - 16]);
        let word = i32::from_le_bytes(word);
        let bit = s.load_i(&BIT);
        for (codes, half) in codes.iter_mut().zip([word & 0xffff, word >> 16 & 0xffff]) {
            let unset = s.eq_i(s.and_i(s.splat_i(half), bit), s.splat_i(0));
            *codes = s.select_i(unset, *codes, s.or_i(*codes, s.splat_i(16)));
        }
    }
    codes
}

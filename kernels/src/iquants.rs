//! The i-quants below four bits: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S. Read only.
//!
//! Eight (IQ3: four) weights at once are an entry of a codebook ([`crate::grids`]), with the signs beside it. Layouts are
//! ggml's `block_iq*`; the order of the roundings is that of gguf-py's `dequantize_blocks`.

use half::f16;

use crate::format::Format;
use crate::grids;
use crate::shaders::{Decoder, decoder, packed};
use crate::simd::Isa;

/// Weights of a super-block.
const SUPER_BLOCK: usize = 256;

/// What the indices of the IQ2 codebooks stand for (they never hold index 3).
const IQ2: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// What the indices of IQ3_XXS's codebook stand for.
const IQ3_XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// The shift that IQ1 adds to its codebook's −1, 0, 1, one way or the other.
const IQ1_DELTA: f32 = 0.125;

macro_rules! formats {
    ($($(#[$doc:meta])* $format:ident $name:literal $bytes:literal $block:ident $grid:ident [$($part:literal)*];)*) => {$(
        $(#[$doc])*
        pub static $format: Format = Format {
            name: $name,
            block: SUPER_BLOCK,
            planes: &[$bytes],
            encode: None,
            decode: |_: &Format, _: Isa, planes: &[&[u8]], dst: &mut [f32]| {
                let blocks: &[[u8; $bytes]] = planes[0].as_chunks().0;
                for (block, out) in blocks.iter().zip(dst.as_chunks_mut().0) {
                    $block(block, out);
                }
            },
            lattice: None,
            shader: |format| shader(format, &grids::$grid, [$(include_str!(concat!("shaders/decode/", $part, ".wgsl"))),*]),
        };
    )*};
}

formats! {
    /// GGUF's IQ2_XXS, 2.0625 bits per weight.
    IQ2_XXS "iq2_xxs" 66 iq2_xxs IQ2_XXS ["iq2" "iq2_xxs"];
    /// GGUF's IQ2_XS, 2.3125 bits per weight.
    IQ2_XS "iq2_xs" 74 iq2_xs IQ2_XS ["iq2" "iq2_xs"];
    /// GGUF's IQ2_S, 2.5625 bits per weight.
    IQ2_S "iq2_s" 82 iq2_s IQ2_S ["iq2" "iq2_s"];
    /// GGUF's IQ3_XXS, 3.0625 bits per weight.
    IQ3_XXS "iq3_xxs" 98 iq3_xxs IQ3_XXS ["iq3" "iq3_xxs"];
    /// GGUF's IQ3_S, 3.4375 bits per weight.
    IQ3_S "iq3_s" 110 iq3_s IQ3_S ["iq3" "iq3_s"];
    /// GGUF's IQ1_S, 1.5625 bits per weight.
    IQ1_S "iq1_s" 50 iq1_s IQ1_S ["iq1" "iq1_s"];
    /// GGUF's IQ1_M, 1.75 bits per weight.
    IQ1_M "iq1_m" 56 iq1_m IQ1_S ["iq1" "iq1_m"];
}

/// [`Format::shader`], with the values of those whose indices stand for bytes.
fn shader(format: &Format, grid: &'static [u16], parts: [&str; 2]) -> Decoder {
    let bytes = |values: [f32; 4]| packed(&values.map(|x| x as u8));
    let [v @ .., a, b, c, d] = IQ3_XXS_VALUES;
    let constants = [("IQ2_VALUES", bytes(IQ2)), ("IQ3_LOW", bytes(v)), ("IQ3_HIGH", bytes([a, b, c, d]))];
    let parts = [include_str!("shaders/decode/iquants.wgsl"), parts[0], parts[1]];
    Decoder { codebook: bytemuck::cast_slice(grid), ..decoder(format, &constants, &parts) }
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The half float that a block starts with.
fn scale(block: &[u8]) -> f32 {
    f16::from_bits(u16_at(block, 0)).to_f32()
}

/// Low nibble for an even `i`, high nibble for an odd one.
fn nibble(byte: u8, i: usize) -> f32 {
    f32::from(byte >> (i % 2 * 4) & 15)
}

/// Eight signs stored in seven bits: the number of minus signs is even.
fn signs7(bits: u32) -> u8 {
    let seven = bits as u8 & 0x7f;
    seven | (seven.count_ones() as u8 & 1) << 7
}

fn signed(x: f32, signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 1 { -x } else { x }
}

/// Eight weights from an IQ2 codebook entry.
fn eight(out: &mut [f32], d: f32, entry: u16, signs: u8) {
    for (i, x) in out.iter_mut().enumerate() {
        *x = signed(d * IQ2[usize::from(entry >> (2 * i) & 3)], signs, i);
    }
}

/// Eight weights from two IQ3 codebook entries.
fn twice_four(out: &mut [f32], d: f32, entries: [u16; 2], signs: u8, value: impl Fn(u16) -> f32) {
    for (i, x) in out.iter_mut().enumerate() {
        *x = signed(d * value(entries[i / 4] >> (4 * (i % 4)) & 15), signs, i);
    }
}

/// d f16; per 32 weights: four codebook indices (u8), then u32 = 4 × 7 sign bits and a 4-bit scale on top.
fn iq2_xxs(block: &[u8; 66], out: &mut [f32; SUPER_BLOCK]) {
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let at = 2 + 8 * g;
        let word = u32_at(block, at + 4);
        let d = scale(block) * (0.5 + (word >> 28) as f32) * 0.25;
        for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            eight(out, d, grids::IQ2_XXS[usize::from(block[at + j])], signs7(word >> (7 * j)));
        }
    }
}

/// d f16; 32 × u16 = 9-bit index and 7 sign bits; 16 nibbles of scales, one per 16 weights.
fn iq2_xs(block: &[u8; 74], out: &mut [f32; SUPER_BLOCK]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16_at(block, 2 + 2 * j);
        let d = scale(block) * (0.5 + nibble(block[66 + j / 4], j / 2)) * 0.25;
        eight(out, d, grids::IQ2_XS[usize::from(word & 511)], signs7(u32::from(word >> 9)));
    }
}

/// d f16; 32 low bytes of the 10-bit indices; 32 bytes of signs; 8 bytes of the indices' high bit pairs; 16 nibbles of scales.
fn iq2_s(block: &[u8; 82], out: &mut [f32; SUPER_BLOCK]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = block[66 + j / 4] >> (j % 4 * 2) & 3;
        let d = scale(block) * (0.5 + nibble(block[74 + j / 4], j / 2)) * 0.25;
        eight(out, d, grids::IQ2_S[usize::from(high) << 8 | usize::from(block[2 + j])], block[34 + j]);
    }
}

/// d f16; 64 codebook indices (u8); per 32 weights a u32 = 4 × 7 sign bits and a 4-bit scale on top.
fn iq3_xxs(block: &[u8; 98], out: &mut [f32; SUPER_BLOCK]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u32_at(block, 66 + j / 4 * 4);
        let d = scale(block) * (0.5 + (word >> 28) as f32) * 0.5;
        let entries = [0, 1].map(|k| grids::IQ3_XXS[usize::from(block[2 + 2 * j + k])]);
        twice_four(out, d, entries, signs7(word >> (j % 4 * 7)), |i| IQ3_XXS_VALUES[usize::from(i & 7)]);
    }
}

/// d f16; 64 low bytes of the 9-bit indices; their high bits in 8 bytes; 32 bytes of signs; 8 nibbles of scales, one per 32
/// weights. The values are the odd numbers 1 to 15.
fn iq3_s(block: &[u8; 110], out: &mut [f32; SUPER_BLOCK]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let d = scale(block) * (1.0 + 2.0 * nibble(block[106 + j / 8], j / 4));
        let entries = [2 * j, 2 * j + 1].map(|k| {
            let high = block[66 + k / 8] >> (k % 8) & 1;
            grids::IQ3_S[usize::from(high) << 8 | usize::from(block[2 + k])]
        });
        twice_four(out, d, entries, block[74 + j], |i| f32::from(2 * i + 1));
    }
}

/// Eight weights from an IQ1 codebook entry, shifted by ±1/8.
fn ternary(out: &mut [f32], d: f32, entry: u16, minus: bool) {
    let delta = if minus { -IQ1_DELTA } else { IQ1_DELTA };
    for (i, x) in out.iter_mut().enumerate() {
        *x = d * (f32::from(entry >> (2 * i) & 3) - 1.0 + delta);
    }
}

/// d f16; 32 low bytes of the 11-bit indices; per 32 weights a u16 = four 3-bit high parts, a 3-bit scale and the shift's sign.
fn iq1_s(block: &[u8; 50], out: &mut [f32; SUPER_BLOCK]) {
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16_at(block, 34 + j / 4 * 2);
        let d = scale(block) * f32::from(2 * (word >> 12 & 7) + 1);
        let high = word >> (j % 4 * 3) & 7;
        ternary(out, d, grids::IQ1_S[usize::from(high << 8) | usize::from(block[j + 2])], word >> 15 == 1);
    }
}

/// 32 low bytes of the 11-bit indices; their 3-bit high parts with the shift's sign in 32 nibbles; 4 × u16 = four 3-bit scales,
/// one per 16 weights, and on top four bits of the f16 d.
fn iq1_m(block: &[u8; 56], out: &mut [f32; SUPER_BLOCK]) {
    let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let d = f16::from_bits(words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12);
    for (j, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let d = d.to_f32() * f32::from(2 * (words[j / 8] >> (j / 2 % 4 * 3) & 7) + 1);
        let high = block[32 + j / 2] >> (j % 2 * 4) & 15;
        let entry = grids::IQ1_S[usize::from(high & 7) << 8 | usize::from(block[j])];
        ternary(out, d, entry, high & 8 != 0);
    }
}

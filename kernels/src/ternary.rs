//! GGUF types of one to two bits without a codebook, and ggml's 8-bit intermediate: TQ1_0, TQ2_0, Q1_0, Q8_K. Read only.

use crate::format::Format;
use crate::scales::half_at;
use crate::shaders::decoder_of_codes;

/// GGUF's TQ1_0: −1, 0, 1 in base 3, 1.6875 bits per weight.
pub static TQ1_0: Format = Format {
    name: "tq1_0",
    block: 256,
    planes: &[54],
    encode: None,
    decode: |_, _, p, dst| decode(p, dst, tq1_0),
    lattice: None,
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/tq1_0.wgsl")),
};

/// GGUF's TQ2_0: −1, 0, 1 in two bits, 2.0625 bits per weight.
pub static TQ2_0: Format = Format {
    name: "tq2_0",
    block: 256,
    planes: &[66],
    encode: None,
    decode: |_, _, p, dst| decode(p, dst, tq2_0),
    lattice: None,
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/tq2_0.wgsl")),
};

/// GGUF's Q1_0: one sign per weight, 1.125 bits.
pub static Q1_0: Format = Format {
    name: "q1_0",
    block: 128,
    planes: &[18],
    encode: None,
    decode: |_, _, p, dst| decode(p, dst, q1_0),
    lattice: None,
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q1_0.wgsl")),
};

/// ggml's Q8_K: what it quantizes activations to for dot products with K-quants, 9.125 bits per weight.
pub static Q8_K: Format = Format {
    name: "q8_k",
    block: 256,
    planes: &[292],
    encode: None,
    decode: |_, _, p, dst| decode(p, dst, q8_k),
    lattice: None,
    shader: |format| decoder_of_codes(format, &[], include_str!("shaders/decode/q8_k.wgsl")),
};

/// Block by block.
fn decode<const BYTES: usize, const WEIGHTS: usize>(
    planes: &[&[u8]],
    dst: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    for (bytes, out) in planes[0].as_chunks().0.iter().zip(dst.as_chunks_mut().0) {
        block(bytes, out);
    }
}

/// 48 bytes of five base-3 digits (32 then 16 side by side), 4 bytes of four; d f16. A byte is a fraction of 256: multiplied by
/// 3ⁿ (mod 256), its next digit is what spills over 256 on another multiplication by 3.
fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at(block, 52);
    let mut at = 0;
    for (start, bytes, digits) in [(0, 32, 5), (32, 16, 5), (48, 4, 4)] {
        let mut power = 1_u8;
        for _ in 0..digits {
            for &byte in &block[start..start + bytes] {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                out[at] = d * (f32::from(digit) - 1.0);
                at += 1;
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// 64 bytes, each half holding four runs of 32 as bit pairs from the low bits up; d f16.
fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let bytes = &block[run / 4 * 32..][..32];
        for (x, byte) in out.iter_mut().zip(bytes) {
            *x = d * (f32::from(byte >> (run % 4 * 2) & 3) - 1.0);
        }
    }
}

/// d f16; 128 bits from the lowest up: 1 is d, 0 is −d (ggml's `dequantize_row_q1_0`).
fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half_at(block, 0);
    for (i, x) in out.iter_mut().enumerate() {
        *x = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

/// d f32; 256 × i8; 16 × i16 sums of 16, which decoding does not need (ggml's `dequantize_row_q8_K`).
fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (x, &code) in out.iter_mut().zip(&block[4..260]) {
        *x = d * f32::from(code as i8);
    }
}

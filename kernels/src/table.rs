//! All formats, by the names their containers' users know.
//!
//! Names are unique within a container, not among them: `mxfp4` in a GGUF is one plane of 17-byte blocks, in MLX two planes.

use crate::float::{BF16, F16, F32};
use crate::format::Format;
use crate::iq4_nl::IQ4_NL;
use crate::iq4_xs::IQ4_XS;
use crate::iquants::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use crate::mlx_affine;
use crate::mxfp4::{MLX_MXFP4, MXFP4};
use crate::mxfp8::MLX_MXFP8;
use crate::nvfp4::{COMPRESSED_NVFP4, MLX_NVFP4, NVFP4};
use crate::q2_k::Q2_K;
use crate::q3_k::Q3_K;
use crate::q4_0::{Q4_0, Q5_0};
use crate::q4_1::{Q4_1, Q5_1};
use crate::q4_k::Q4_K;
use crate::q5_k::Q5_K;
use crate::q6_k::Q6_K;
use crate::q8_0::Q8_0;
use crate::ternary::{Q1_0, Q8_K, TQ1_0, TQ2_0};
use crate::w4a16;
use crate::w4a16_asym;

/// The types of GGUF, in lower case (`q4_k`, `bf16`).
pub static GGUF: &[&Format] = &[
    &F32, &F16, &BF16, &Q4_0, &Q4_1, &Q5_0, &Q5_1, &Q8_0, &Q2_K, &Q3_K, &Q4_K, &Q5_K, &Q6_K, &IQ4_NL,
    &IQ4_XS, &MXFP4, &NVFP4, &IQ3_S, &IQ3_XXS, &IQ2_S, &IQ2_XS, &IQ2_XXS, &IQ1_M, &IQ1_S, &TQ2_0, &TQ1_0,
    &Q1_0, &Q8_K,
];

/// The quantization modes of MLX, and the types of its unquantized tensors (`4bit-g64`, `mxfp4`, `bf16`).
pub static MLX: &[&Format] = &{
    let others = [&F32, &F16, &BF16, &MLX_MXFP4, &MLX_MXFP8, &MLX_NVFP4];
    let affine = [&mlx_affine::BF16, &mlx_affine::F16, &mlx_affine::F32];
    let mut all = [others[0]; 6 + 3 * 18];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < 6 { others[i] } else { &affine[(i - 6) / 18][(i - 6) % 18] };
        i += 1;
    }
    all
};

/// The schemes of compressed-tensors, and the types of weights without one (`w4a16-g128`, `mxfp4`, `bf16`).
pub static COMPRESSED_TENSORS: &[&Format] = &{
    let mut all = [&F32; 5 + 18];
    (all[1], all[2], all[3], all[4]) = (&F16, &BF16, &MLX_MXFP4, &COMPRESSED_NVFP4);
    let groups =
        [(&w4a16::BF16, &w4a16_asym::BF16), (&w4a16::F16, &w4a16_asym::F16), (&w4a16::F32, &w4a16_asym::F32)];
    let mut i = 0;
    while i < 9 {
        all[5 + i] = &groups[i / 3].0[i % 3];
        all[14 + i] = &groups[i / 3].1[i % 3];
        i += 1;
    }
    all
};

/// What GPTQ's files hold: symmetric groups, whose scales are half floats, and weights that aren't quantized.
pub static GPTQ: &[&Format] = &[&F32, &F16, &BF16, &w4a16::F16[0], &w4a16::F16[1], &w4a16::F16[2]];

/// What AWQ's files hold: groups with zero points, whose scales are half floats, and weights that aren't quantized.
pub static AWQ: &[&Format] =
    &[&F32, &F16, &BF16, &w4a16_asym::F16[0], &w4a16_asym::F16[1], &w4a16_asym::F16[2]];

/// Every format once.
pub fn all() -> impl Iterator<Item = &'static Format> {
    let schemes = COMPRESSED_TENSORS.iter().filter(|format| !MLX.contains(format));
    let others = MLX.iter().chain(schemes).filter(|format| format.planes.len() > 1);
    GGUF.iter().chain(others).copied()
}

/// The format that GGUF calls `name` (in any case).
pub fn gguf(name: &str) -> Option<&'static Format> {
    find(GGUF, name)
}

/// The format that MLX calls `name` (in any case).
pub fn mlx(name: &str) -> Option<&'static Format> {
    find(MLX, name)
}

/// The format that this project calls `name` (in any case) in compressed-tensors, which has no names for schemes.
pub fn compressed_tensors(name: &str) -> Option<&'static Format> {
    find(COMPRESSED_TENSORS, name)
}

fn find(formats: &[&'static Format], name: &str) -> Option<&'static Format> {
    formats.iter().copied().find(|format| format.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_are_unique() {
        assert_eq!(gguf("F16"), Some(&F16));
        assert_eq!(mlx("bf16"), Some(&BF16));
        assert_eq!(gguf("q4"), None);
        let tables = [(GGUF, gguf as fn(&str) -> _), (MLX, mlx), (COMPRESSED_TENSORS, compressed_tensors)];
        for (formats, lookup) in tables {
            for format in formats {
                assert_eq!(lookup(format.name), Some(*format), "{format:?} is listed twice");
            }
        }
    }
}

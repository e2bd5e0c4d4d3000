//! Kernels for graphics processors, in WGSL (<https://www.w3.org/TR/WGSL/>): text, out of which a device makes what it runs. Nothing
//! here knows a device.
//!
//! A kernel that multiplies with weights, or reads them, is put together of three parts: `words.wgsl` (how bytes are read), the
//! format's own `decode8` ([`Decoder`]), and the kernel. So every format is written once, and every kernel knows all of them.

mod matmul;
mod rowwise;
mod sequence;

pub use matmul::{TILE, Unit, matmul};
pub use rowwise::{Function, Other, copy, count, elementwise, gather, halve, rms_norm, rope, scatter_add};
pub use sequence::{DELTA_COLUMNS, DIVERGENCE_WORDS, attention, convolution, delta_rule, divergence};

use crate::float;
use crate::format::Format;

/// How a kernel gets at the weights of a format.
///
/// All planes of some rows lie in one buffer, bound as `weights: array<u32>`; the kernel declares `plane1()` and `plane2()`, the byte
/// offsets of the second and the third (the first begins at 0). The text has `fn decode8(at: u32) -> Eight`: eight weights from number
/// `at` on, a multiple of 8, counted through all the rows of the buffer. Planes begin at multiples of 4, and of the buffer 4 bytes
/// more than the weights take are read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decoder {
    /// Names the text: two decoders of the same name have the same.
    pub name: String,
    /// `decode8` and what it needs.
    pub text: String,
    /// What belongs in the buffer besides the weights, as if it were the second plane of a format that has but one: bytes at
    /// `plane1()`. Of most formats there is nothing.
    pub codebook: &'static [u8],
}

const WORDS: &str = include_str!("words.wgsl");

impl Decoder {
    /// Of a format.
    pub fn of(format: &Format) -> Decoder {
        (format.shader)(format)
    }

    /// For plain floats in single precision.
    pub fn f32() -> Decoder {
        Decoder::of(&float::F32)
    }

    /// For rows of E4M3 codes, in another plane a scale in `f32` for every `block_columns` weights: what
    /// [`widen_block_scaled`](crate::fp8::widen_block_scaled) does where scales are written out for every row. Rows are a whole number
    /// of blocks.
    pub fn fp8(block_columns: u32) -> Decoder {
        let parts = [include_str!("decode/minifloats.wgsl"), include_str!("decode/fp8.wgsl")];
        let text = text(&[("BLOCK_WEIGHTS", block_columns)], &parts);
        Decoder { name: format!("fp8 {block_columns}"), text, codebook: &[] }
    }
}

/// Constants, and what is written for all their values.
fn text(constants: &[(&str, u32)], parts: &[&str]) -> String {
    let constants: String =
        constants.iter().map(|(name, value)| format!("const {name} = {value:#x}u;\n")).collect();
    [&[constants.as_str()], parts].concat().join("\n")
}

/// The decoder of a format: the constants `BLOCK_WEIGHTS` and `BLOCK_BYTES` (in the first plane), others, and what is written for all
/// their values.
pub(crate) fn decoder(format: &Format, constants: &[(&str, u32)], parts: &[&str]) -> Decoder {
    // Names of GGUF's types and of MLX's modes may be the same; the former have one plane.
    let container = if format.planes.len() > 1 { "mlx " } else { "" };
    let own = [("BLOCK_WEIGHTS", format.block as u32), ("BLOCK_BYTES", format.planes[0] as u32)];
    Decoder {
        name: format!("{container}{}", format.name),
        text: text(&[&own, constants].concat(), parts),
        codebook: &[],
    }
}

/// [`decoder`] of a format with codes in bytes or parts of them.
pub(crate) fn decoder_of_codes(format: &Format, constants: &[(&str, u32)], part: &str) -> Decoder {
    decoder(format, constants, &[include_str!("decode/codes.wgsl"), part])
}

/// Bytes as they lie in words.
pub(crate) fn packed(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

/// What products are computed in; sums are always `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operands {
    /// Single precision.
    F32,
    /// Half precision: needs a device that has it.
    F16,
}

/// A kernel's text.
#[derive(Clone, Debug)]
pub struct Shader {
    /// Names the text: two kernels of the same name have the same.
    pub name: String,
    /// WGSL with one entry point.
    pub text: String,
}

/// Decodes rows to `f32`.
pub fn decode(decoder: &Decoder) -> Shader {
    let text = [WORDS, &decoder.text, include_str!("decode.wgsl")].join("\n");
    Shader { name: format!("decode {}", decoder.name), text }
}

const EXPONENTIAL: &str = include_str!("exponential.wgsl");

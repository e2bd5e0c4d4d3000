//! Kernels for graphics processors, in WGSL (<https://www.w3.org/TR/WGSL/>): text, out of which a device makes what it runs. Nothing
//! here knows a device.
//!
//! A kernel that multiplies with weights, or reads them, is put together of three parts: `words.wgsl` (how bytes are read), the
//! format's own `decode8` ([`Decoder`]), and the kernel. So every format is written once, and every kernel knows all of them.

mod matmul;
mod rowwise;

pub use matmul::{TILE, Unit, matmul};
pub use rowwise::{Function, Other, elementwise, gather, halve, rms_norm, rope, scatter_add};

use crate::format::Format;

/// How a kernel gets at the weights of a format.
///
/// All planes of some rows lie in one buffer, bound as `weights: array<u32>`; the kernel declares `plane1()` and `plane2()`, the byte
/// offsets of the second and the third (the first begins at 0). The text has `fn decode8(at: u32) -> Eight`: eight weights from number
/// `at` on, a multiple of 8, counted through all the rows of the buffer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decoder {
    /// Names the text: two decoders of the same name have the same.
    pub name: String,
    /// `decode8` and what it needs.
    pub text: String,
}

const WORDS: &str = include_str!("words.wgsl");

impl Decoder {
    /// For plain floats in single precision.
    pub fn f32() -> Decoder {
        Decoder { name: "f32".to_owned(), text: include_str!("decode/f32.wgsl").to_owned() }
    }

    /// Of a format.
    pub fn of(format: &Format) -> Decoder {
        assert_eq!(format.name, "f32");
        Decoder::f32()
    }

    /// For FP8 E4M3 with a scale in `f32` for every `block` weights of a row.
    pub fn fp8(_block: u32) -> Decoder {
        Decoder::f32()
    }
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

//! [`Format`]: one row of the table of block formats.

use crate::lattice::Lattice;
use crate::shaders::Decoder;
use crate::simd::Isa;

/// How the weights of a tensor are stored: blocks of `block` weights along a row, each block taking
/// `planes[p]` bytes in plane `p`.
///
/// GGUF types have one plane. MLX's affine formats have three (codes, scales, biases), its floating-point modes two
/// (codes, scales). A row's length must be a multiple of `block`; a tensor's plane is then its blocks one after the other.
pub struct Format {
    /// The name its container's users know: `q4_k`, `bf16`, `4bit-g64`, `nvfp4`.
    pub name: &'static str,
    /// Weights per block.
    pub block: usize,
    /// Bytes per block in each plane.
    pub planes: &'static [usize],
    /// Encodes whole rows, or `None` where this project only reads the format.
    pub encode: Option<Encode>,
    /// Decodes whole blocks.
    pub decode: Decode,
    /// What codes can stand for in a block whose scales are chosen, or `None` where that is no lattice: in floats, in formats that
    /// this project only reads, and where codes are floats of eight bits.
    pub lattice: Option<&'static Lattice>,
    /// How kernels for graphics processors decode.
    pub shader: fn(format: &Format) -> Decoder,
}

/// Encodes `src` (a whole number of blocks) into one byte slice per plane.
///
/// `importance` weighs the squared error of each column: its length is the row length, `src` holds whole rows.
/// `None` means equal weight: the encoder then minimises the plain squared error.
/// Weights must be finite: the caller checks (see `stats`).
pub type Encode =
    fn(format: &Format, isa: Isa, src: &[f32], importance: Option<&[f32]>, planes: &mut [&mut [u8]]);

/// Decodes one byte slice per plane into `dst` (a whole number of blocks).
pub type Decode = fn(format: &Format, isa: Isa, planes: &[&[u8]], dst: &mut [f32]);

impl Format {
    /// Bits per weight over all planes.
    pub fn bits_per_weight(&self) -> f64 {
        self.planes.iter().sum::<usize>() as f64 * 8.0 / self.block as f64
    }

    /// Bytes that `weights` weights take in plane `plane`, or `None` if they are no whole number of blocks
    /// or the product overflows.
    pub fn plane_bytes(&self, plane: usize, weights: u64) -> Option<u64> {
        let block = self.block as u64;
        if !weights.is_multiple_of(block) {
            return None;
        }
        (weights / block).checked_mul(self.planes[plane] as u64)
    }

    /// Whether a row of `columns` weights is a whole number of blocks.
    pub fn holds_row(&self, columns: u64) -> bool {
        columns.is_multiple_of(self.block as u64)
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Format {}

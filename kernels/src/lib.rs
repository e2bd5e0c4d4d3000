//! The ground floor: block formats of quantized weights, their encoders and decoders.
//!
//! A [`Format`] is one row of a table: what a block holds, how many bytes it takes, and the functions that
//! encode and decode it. Every kernel is written once, generic over [`simd::Simd`] (16 lanes of `f32`), so that
//! scalar, AVX2, AVX-512 and NEON give the same bits. This crate does no I/O and knows no file.

#[cfg(target_endian = "big")]
compile_error!("every file format here is little-endian, and so are the kernels that read and write them");

pub mod activations;
mod affine;
mod affine_search;
mod asymmetric;
pub mod attention;
mod codebook;
pub mod delta;
pub mod divergence;
mod exponential;
pub mod factor;
pub mod feedback;
pub mod fixed;
pub mod float;
pub mod format;
pub mod fp8;
pub mod gemm;
pub mod gram;
mod grid;
mod grids;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod iquants;
pub mod lanes;
pub mod lattice;
pub mod matrix;
mod microscale;
mod minifloat;
pub mod mlx_affine;
pub mod moves;
pub mod mxfp4;
pub mod mxfp8;
mod nibbles;
pub mod norm;
pub mod nvfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
pub mod rope;
mod scales;
pub mod shaders;
mod signed;
pub mod simd;
pub mod softmax;
pub mod stats;
mod stored;
mod superblock;
mod symmetric;
pub mod table;
pub mod ternary;
mod tile;
pub mod w4a16;
pub mod w4a16_asym;
mod walk;

pub use format::Format;
pub use simd::Isa;

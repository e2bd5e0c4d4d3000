//! MLX's `mxfp8`: groups of 32 E4M3 codes under an E8M0 scale, 8.25 bits per weight; planes of codes and scales.

use crate::format::Format;
use crate::fp8::e4m3;
use crate::lanes::scatter;
use crate::microscale::{E8M0, Encode, Groups, Pack, Scale};
use crate::minifloat::{self, E4M3};
use crate::simd::{Kernel, LANES, Simd};

/// Weights per scale.
const GROUP: usize = 32;

/// MLX's `mxfp8`.
pub static MLX_MXFP8: Format = Format {
    name: "mxfp8",
    block: GROUP,
    planes: &[32, 1],
    encode: Some(|_, isa, src, importance, planes| {
        let [codes, scales] = planes else { unreachable!("two planes") };
        isa.run(Encode::<E4M3, E8M0, _, GROUP>::new(src, importance, Bytes { codes, scales }))
    }),
    decode: |_, isa, planes, dst| {
        isa.run(Decode { codes: planes[0].as_chunks().0, scales: planes[1], dst: dst.as_chunks_mut().0 })
    },
    lattice: None,
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/mlx_fp8.wgsl")),
};

struct Bytes<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Pack<GROUP> for Bytes<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize) {
        self.scales[first..first + lanes].copy_from_slice(&groups.scales[..lanes]);
        let mut rows = [[0; LANES]; GROUP];
        for (codes, row) in groups.codes.iter().zip(&mut rows) {
            s.store_u8(s.load_i(codes), row);
        }
        scatter(s, &rows, lanes, GROUP, &mut self.codes[GROUP * first..]);
    }
}

struct Decode<'a> {
    codes: &'a [[u8; GROUP]],
    scales: &'a [u8],
    dst: &'a mut [[f32; GROUP]],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((codes, &scale), out) in self.codes.iter().zip(self.scales).zip(self.dst) {
            let scale = s.splat(E8M0::decode(scale));
            for (codes, out) in codes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                s.store(s.mul(e4m3(s, s.load_u8(codes)), scale), out);
            }
        }
    }
}

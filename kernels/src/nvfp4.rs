//! NVFP4: groups of 16 E2M1 codes under an E4M3 scale, 4.5 bits per weight, as GGUF, MLX and compressed-tensors store them. GGUF and MLX
//! store no scale of the whole tensor in the type itself.

use crate::format::Format;
use crate::fp8::e4m3_to_f32;
use crate::lanes::scatter;
use crate::lattice::{Lattice, Levels};
use crate::microscale::{Encode, Groups, Pack, Ue4m3};
use crate::minifloat::{self, E2M1, E2M1_GGUF, E2M1_LEVELS, e2m1_codes};
use crate::mxfp4::{DecodePairs, Pairs, steps, store_pairs};
use crate::nibbles::fold;
use crate::shaders::Decoder;
use crate::simd::{Kernel, LANES, Simd};

/// Weights per scale.
const GROUP: usize = 16;

/// GGUF's NVFP4. A block (ggml's `block_nvfp4`) is four scales, then for each of the four groups 8 bytes with weights 0–7 in the low
/// nibbles and 8–15 in the high ones.
pub static NVFP4: Format = Format {
    name: "nvfp4",
    block: 64,
    planes: &[36],
    encode: Some(|_, isa, src, importance, planes| {
        isa.run(Encode::<E2M1, Ue4m3, _, GROUP>::new(src, importance, Blocks(planes[0])))
    }),
    decode: |_, isa, planes, dst| isa.run(Decode { blocks: planes[0].as_chunks().0, dst }),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: |planes, scales, offsets| {
            for (scale, &code) in scales.iter_mut().zip(planes[0]) {
                *scale = unsigned(code);
            }
            offsets.fill(0.0);
        },
        store: |indices, planes| fold::<GROUP>(&e2m1_codes::<64>(indices), &mut planes[0][4..]),
        rescale: None,
        moves: None,
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/nvfp4.wgsl")),
};

/// MLX's `nvfp4`: codes, the first in the lowest bits; scales.
pub static MLX_NVFP4: Format = Format {
    name: "nvfp4",
    block: GROUP,
    planes: &[8, 1],
    encode: Some(|_, isa, src, importance, planes| {
        let [codes, scales] = planes else { unreachable!("two planes") };
        isa.run(Encode::<E2M1, Ue4m3, _, GROUP>::new(src, importance, Pairs { codes, scales }))
    }),
    decode: |_, isa, planes, dst| isa.run(DecodePairs::<Ue4m3, GROUP>::new(planes[0], planes[1], dst)),
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: steps::<Ue4m3>,
        store: store_pairs::<GROUP>,
        rescale: None,
        moves: None,
    }),
    shader: |format| minifloat::shader(format, include_str!("shaders/decode/mlx_fp4.wgsl")),
};

/// compressed-tensors' `nvfp4-pack-quantized`, whose scales are divided by one of the whole tensor (`weight_global_scale`): always
/// [`GLOBAL_SCALE`] here.
///
/// A weight beyond 10.5 makes its group's scale no number, which whoever decodes it finds.
pub static COMPRESSED_NVFP4: Format = Format {
    name: "nvfp4",
    block: GROUP,
    planes: &[8, 1],
    encode: Some(|format, isa, src, importance, planes| {
        let scaled: Vec<f32> = src.iter().map(|weight| weight * GLOBAL_SCALE).collect();
        if let Some(encode) = MLX_NVFP4.encode {
            encode(format, isa, &scaled, importance, planes);
        }
        for (scale, group) in planes[1].iter_mut().zip(scaled.chunks_exact(GROUP)) {
            if group.iter().any(|weight| weight.abs() > LARGEST) {
                *scale = NAN;
            }
        }
    }),
    decode: |format, isa, planes, dst| {
        (MLX_NVFP4.decode)(format, isa, planes, dst);
        dst.iter_mut().for_each(|weight| *weight /= GLOBAL_SCALE);
    },
    lattice: Some(&Lattice {
        group: GROUP,
        levels: Levels::Values(&E2M1_LEVELS),
        steps: |planes, scales, offsets| {
            steps::<Ue4m3>(planes, scales, offsets);
            scales[0] /= GLOBAL_SCALE;
        },
        store: store_pairs::<GROUP>,
        rescale: None,
        moves: None,
    }),
    shader: |format| {
        let divided = minifloat::shader(format, include_str!("shaders/decode/compressed_nvfp4.wgsl"));
        Decoder { name: "compressed-tensors nvfp4".to_owned(), ..divided }
    },
};

/// What compressed-tensors' scales are divided by. Its own tools take 448 · 6 / the largest weight, so that this one's group has the
/// largest scale. E4M3 is as precise in all of its normal numbers: a power of two that is the same for all tensors, as loaders that
/// fuse linears want it, loses nothing where the largest weight of a group is between 0.0004 and 10.5.
pub const GLOBAL_SCALE: f32 = 256.0;

/// The largest number: E2M1's times E4M3's.
const LARGEST: f32 = 6.0 * 448.0;

/// E4M3's code for no number.
const NAN: u8 = 0x7f;

struct Blocks<'a>(&'a mut [u8]);

impl Pack<GROUP> for Blocks<'_> {
    #[inline(always)]
    fn pack<S: Simd>(&mut self, s: S, groups: &Groups<GROUP>, first: usize, lanes: usize) {
        let mut rows = [[0; LANES]; 8];
        for (j, row) in rows.iter_mut().enumerate() {
            let high = s.shl_i::<4>(s.load_i(&groups.codes[j + 8]));
            s.store_u8(s.or_i(s.load_i(&groups.codes[j]), high), row);
        }
        let mut codes = [0; 8 * LANES];
        scatter(s, &rows, LANES, 8, &mut codes);
        let blocks = &mut self.0[36 * (first / 4)..][..36 * (lanes / 4)];
        let parts = groups.scales.as_chunks::<4>().0.iter().zip(codes.as_chunks::<32>().0);
        for (block, (scales, codes)) in blocks.as_chunks_mut::<36>().0.iter_mut().zip(parts) {
            block[..4].copy_from_slice(scales);
            block[4..].copy_from_slice(codes);
        }
    }
}

struct Decode<'a> {
    blocks: &'a [[u8; 36]],
    dst: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, out) in self.blocks.iter().zip(self.dst.as_chunks_mut::<64>().0) {
            let (scales, codes) = block.split_at(4);
            let groups = codes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<GROUP>().0);
            for ((bytes, out), &scale) in groups.zip(scales) {
                let mut codes = [0; LANES];
                for (j, byte) in bytes.iter().enumerate() {
                    (codes[j], codes[j + 8]) = (byte & 15, byte >> 4);
                }
                let scale = s.splat(unsigned(scale));
                s.store(s.mul(scale, s.lookup(&E2M1_GGUF, s.load_u8(&codes))), out);
            }
        }
    }
}

/// The scale as ggml reads it: the sign bit is ignored, NaN without sign is zero and with it 480.
#[inline(always)]
fn unsigned(code: u8) -> f32 {
    match code {
        0x7f => 0.0,
        0xff => 480.0,
        _ => e4m3_to_f32(code & 0x7f),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Isa;

    fn coded(src: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut scales) = (vec![0; src.len() / 2], vec![0; src.len() / GROUP]);
        let encode = COMPRESSED_NVFP4.encode.expect("an encoder");
        encode(&COMPRESSED_NVFP4, Isa::detect(), src, None, &mut [&mut codes, &mut scales]);
        let mut out = vec![0.0; src.len()];
        (COMPRESSED_NVFP4.decode)(&COMPRESSED_NVFP4, Isa::detect(), &[&codes, &scales], &mut out);
        (scales, out)
    }

    #[test]
    fn scales_are_divided_by_the_global_one() {
        // 0.75 / 6 = 0.125, of which 256 times are 32: E4M3 exponent 12, no fraction.
        let src: Vec<f32> = (0..32).map(|i| [0.75, -0.5, 0.0625, 0.0][i % 4]).collect();
        let (scales, decoded) = coded(&src);
        assert_eq!(scales, [12 << 3; 2]);
        assert_eq!(decoded, src);
    }

    #[test]
    fn a_weight_too_large_is_found_and_the_other_groups_are_not_harmed() {
        let mut src = vec![0.02; 48];
        src[20] = 10.6;
        let (_, decoded) = coded(&src);
        assert!(decoded[16..32].iter().all(|weight| weight.is_nan()));
        assert!(decoded[..16].iter().chain(&decoded[32..]).all(|weight| (weight - 0.02).abs() < 0.002));
        src[20] = 10.5;
        assert_eq!(coded(&src).1[20], 10.5);
    }
}

//! GGUF's simple types against their definitions, and against the encoder everybody starts with.

use half::f16;
use halfbyte_kernels::mxfp4::{MLX_MXFP4, MXFP4};
use halfbyte_kernels::{Format, Isa, q4_0, q4_1, q8_0};

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Weight `j` of a block as ggml-common.h's comments define it.
fn weight(format: &Format, block: &[u8], j: usize) -> f32 {
    let five = |word: usize| u32::from(block[word + j / 8] >> (j % 8) & 1) << 4;
    let four = |bytes: usize| u32::from(block[bytes + j % 16] >> (4 * (j / 16)) & 15);
    let d = half_at(block, 0);
    match format.name {
        "q4_0" => d * (four(2) as f32 - 8.0),
        "q5_0" => d * ((four(6) | five(2)) as f32 - 16.0),
        "q4_1" => d * four(4) as f32 + half_at(block, 2),
        "q5_1" => d * (four(8) | five(4)) as f32 + half_at(block, 2),
        "q8_0" => d * f32::from(block[2 + j] as i8),
        other => panic!("no definition of {other}"),
    }
}

const FORMATS: [&Format; 5] = [&q4_0::Q4_0, &q4_1::Q4_1, &q4_0::Q5_0, &q4_1::Q5_1, &q8_0::Q8_0];

#[test]
fn blocks_decode_as_defined() {
    for format in FORMATS {
        let bytes = format.planes[0];
        let mut plane: Vec<u8> = (0..37 * bytes).map(|i| (i * 151 + i / 7) as u8).collect();
        for block in plane.chunks_mut(bytes) {
            // Scales that are finite.
            block[1] &= 0x3f;
            block[3] &= 0x3f;
        }
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; 37 * 32];
            (format.decode)(format, isa, &[&plane], &mut out);
            for (i, got) in out.iter().enumerate() {
                let want = weight(format, &plane[i / 32 * bytes..][..bytes], i % 32);
                assert_eq!(got.to_bits(), want.to_bits(), "{format:?} {} weight {i}", isa.name());
            }
        }
    }
}

/// The stored scale and minimum of the largest weight, or the range, put on the ends of the codes: what ggml's
/// `quantize_row_*_ref` do. The codes are then the nearest.
fn rounded(format: &Format, x: &[f32]) -> Vec<f32> {
    let round16 = |x: f32| f16::from_f32(x).to_f32();
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let peak = if high > -low { high } else { low };
    let (d, m, codes) = match format.name {
        "q4_0" => (peak / -8.0, 0.0, -8.0..=7.0),
        "q5_0" => (peak / -16.0, 0.0, -16.0..=15.0),
        "q4_1" => ((high - low) / 15.0, low, 0.0..=15.0),
        "q5_1" => ((high - low) / 31.0, low, 0.0..=31.0),
        "q8_0" => (peak.abs() / 127.0, 0.0, -127.0..=127.0),
        other => panic!("no definition of {other}"),
    };
    let (d, m) = (round16(d), round16(m));
    let code =
        |x: f32| if d == 0.0 { 0.0 } else { ((x - m) / d).round().clamp(*codes.start(), *codes.end()) };
    x.iter().map(|&x| code(x) * d + m).collect()
}

fn error(x: &[f32], y: &[f32], w: impl Fn(usize) -> f32) -> f64 {
    x.iter().zip(y).enumerate().map(|(i, (x, y))| f64::from(w(i)) * f64::from(x - y).powi(2)).sum()
}

fn noise(n: usize) -> Vec<f32> {
    let mut state = 5u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| uniform() + uniform() + uniform() + 0.1).collect()
}

#[test]
fn no_block_is_worse_than_plain_rounding_and_together_they_are_better() {
    let x = noise(32 * 500);
    let importance: Vec<f32> = (0..320).map(|i| ((i * 37 % 64) as f32 / 10.0).exp()).collect();
    for format in FORMATS {
        // Mean squared errors well below those of plain rounding, or the search is broken.
        for (importance, ratio) in [(None, 0.92), (Some(&importance[..]), 0.75)] {
            let mut plane = vec![0; x.len() / 32 * format.planes[0]];
            let encode = format.encode.expect("these formats have encoders");
            encode(format, Isa::detect(), &x, importance, &mut [&mut plane]);
            let mut y = vec![0.0; x.len()];
            (format.decode)(format, Isa::detect(), &[&plane], &mut y);
            let (mut ours, mut plain) = (0.0, 0.0);
            for (b, (x, y)) in x.chunks(32).zip(y.chunks(32)).enumerate() {
                let w = |i| importance.map_or(1.0, |w: &[f32]| w[(b * 32 + i) % w.len()]);
                let (got, reference) = (error(x, y, w), error(x, &rounded(format, x), w));
                // Sums in f32 there, in f64 here.
                assert!(got <= reference * (1.0 + 1e-5), "{format:?} block {b}: {got} {reference}");
                ours += got;
                plain += reference;
            }
            assert!(ours < ratio * plain, "{format:?}: {} of plain rounding", ours / plain);
        }
    }
}

#[test]
fn weights_on_the_grid_are_kept() {
    for (format, levels) in FORMATS.into_iter().zip([16, 16, 32, 32]) {
        let code = |i: usize| (i * 7 % levels) as f32 - levels as f32 / 2.0;
        let x: Vec<f32> = (0..320).map(|i| 0.25 * code(i)).collect();
        let mut plane = vec![0; x.len() / 32 * format.planes[0]];
        let encode = format.encode.expect("these formats have encoders");
        encode(format, Isa::detect(), &x, None, &mut [&mut plane]);
        let mut y = vec![0.0; x.len()];
        (format.decode)(format, Isa::detect(), &[&plane], &mut y);
        assert_eq!(x, y, "{format:?}");
    }
}

/// What is in MXFP4 already is exact in it again, whichever codes a group uses: a checkpoint's weights lose nothing on their way
/// from one container's layout to the other's.
#[test]
fn mxfp4_of_mxfp4_is_exact() {
    let isa = Isa::detect();
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for largest in 0..8 {
        let codes: Vec<u8> = (0..64 * 16)
            .map(|_| {
                let mut code = || {
                    let (sign, value) = (random() & 8, random() % (largest + 1));
                    sign | value
                };
                code() | (code() << 4)
            })
            .collect();
        let scales: Vec<u8> = (0..64).map(|_| 100 + random() % 50).collect();
        let mut weights = vec![0.0; 64 * 32];
        (MLX_MXFP4.decode)(&MLX_MXFP4, isa, &[&codes, &scales], &mut weights);
        for format in [&MXFP4, &MLX_MXFP4] {
            let mut planes: Vec<Vec<u8>> = format.planes.iter().map(|bytes| vec![0; bytes * 64]).collect();
            let mut slices: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
            format.encode.expect("writable")(format, isa, &weights, None, &mut slices);
            let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            let mut back = vec![0.0; 64 * 32];
            (format.decode)(format, isa, &slices, &mut back);
            assert_eq!(back, weights, "codes up to {largest}");
        }
    }
}

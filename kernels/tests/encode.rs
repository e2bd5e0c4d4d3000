//! What every encoder of the small-float and affine formats must hold to: the same bytes on every instruction set and however a
//! tensor is cut, no error larger than the plain rule's or an exhaustive search's, and sense at the edges.

use halfbyte_kernels::mlx_affine::{self, affine, scales_of, with_scales};
use halfbyte_kernels::mxfp4::{MLX_MXFP4, MXFP4};
use halfbyte_kernels::mxfp8::MLX_MXFP8;
use halfbyte_kernels::nvfp4::{MLX_NVFP4, NVFP4};
use halfbyte_kernels::{Format, Isa, float};

const COLUMNS: usize = 384;

fn formats() -> impl Iterator<Item = &'static Format> {
    let small_floats = [&MXFP4, &MLX_MXFP4, &MLX_MXFP8, &NVFP4, &MLX_NVFP4];
    let affine = [&mlx_affine::BF16, &mlx_affine::F16, &mlx_affine::F32];
    small_floats.into_iter().chain(affine.into_iter().flatten())
}

/// Bell-shaped weights with some outliers, within ±0.5.
fn weights(rows: usize) -> Vec<f32> {
    let mut state = 7_u64;
    let mut random = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut weight = move || {
        let x = (random() + random() + random()) * 0.05;
        if random() > 0.49 { x * 6.0 } else { x }
    };
    (0..rows * COLUMNS).map(|_| weight()).collect()
}

fn importance() -> Vec<f32> {
    (0..COLUMNS).map(|i| if i % 50 == 7 { 0.0 } else { (i * 37 % 64) as f32 + 0.25 }).collect()
}

fn encode(format: &Format, isa: Isa, src: &[f32], importance: Option<&[f32]>) -> Vec<Vec<u8>> {
    let size = |p: usize| format.plane_bytes(p, src.len() as u64).expect("whole blocks") as usize;
    let mut planes: Vec<Vec<u8>> = (0..format.planes.len()).map(|p| vec![0xee; size(p)]).collect();
    let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    format.encode.expect("an encoder")(format, isa, src, importance, &mut out);
    planes
}

fn decode(format: &Format, planes: &[Vec<u8>]) -> Vec<f32> {
    let mut out = vec![f32::NAN; planes[0].len() / format.planes[0] * format.block];
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    (format.decode)(format, Isa::detect(), &planes, &mut out);
    out
}

fn decoded(format: &Format, src: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    decode(format, &encode(format, Isa::detect(), src, importance))
}

fn error(src: &[f32], decoded: &[f32]) -> f64 {
    src.iter().zip(decoded).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

fn energy(src: &[f32]) -> f64 {
    error(src, &vec![0.0; src.len()])
}

/// Inputs at the edges of what may come, of whole rows.
fn edges() -> Vec<(&'static str, Vec<f32>)> {
    let ramp = |scale: f32| (0..COLUMNS).map(|i| (i as f32 - 191.5) / 192.0 * scale).collect::<Vec<_>>();
    let mut outlier = ramp(0.01);
    outlier[77] = -30.0;
    vec![
        ("zeros", vec![0.0; COLUMNS]),
        ("negative zeros", vec![-0.0; COLUMNS]),
        ("a constant", vec![0.3; COLUMNS]),
        ("a negative constant", vec![-0.3; COLUMNS]),
        ("ones and zeros", (0..COLUMNS).map(|i| (i % 2) as f32).collect()),
        ("one outlier", outlier),
        ("tiny", ramp(1e-25)),
        ("small", ramp(1e-6)),
        ("large", ramp(1e4)),
        ("a zero half", [vec![0.0; COLUMNS / 3 * 2], ramp(1.0)[COLUMNS / 3 * 2..].to_vec()].concat()),
    ]
}

#[test]
fn every_instruction_set_gives_the_same_bytes() {
    let (weights, importance) = (weights(7), importance());
    for format in formats() {
        for given in [None, Some(&importance[..])] {
            let all: Vec<_> =
                Isa::available().into_iter().map(|isa| encode(format, isa, &weights, given)).collect();
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{format:?}");
        }
        for (what, src) in edges() {
            let all: Vec<_> =
                Isa::available().into_iter().map(|isa| encode(format, isa, &src, None)).collect();
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{format:?} of {what}");
        }
    }
}

#[test]
fn rows_can_be_encoded_apart() {
    let (weights, importance) = (weights(7), importance());
    for format in formats() {
        let whole = encode(format, Isa::detect(), &weights, Some(&importance));
        for (p, whole) in whole.iter().enumerate() {
            let apart: Vec<u8> = weights
                .chunks(COLUMNS)
                .flat_map(|row| encode(format, Isa::detect(), row, Some(&importance)).swap_remove(p))
                .collect();
            assert!(*whole == apart, "{format:?}, plane {p}");
        }
    }
}

#[test]
fn edges_keep_their_values() {
    for format in formats() {
        for (what, src) in edges() {
            let none = vec![0.0; COLUMNS];
            for given in [None, Some(&none[..])] {
                let decoded = decoded(format, &src, given);
                assert!(decoded.iter().all(|y| y.is_finite()), "{format:?} of {what}");
                let lost = error(&src, &decoded);
                assert!(lost <= energy(&src), "{format:?} of {what}: {lost:e} of {:e}", energy(&src));
                if ["a constant", "a negative constant", "ones and zeros", "one outlier"].contains(&what) {
                    // NVFP4 and MXFP4 miss a value by at most a quarter.
                    assert!(lost <= 0.07 * energy(&src), "{format:?} of {what}: {lost:e}");
                }
            }
        }
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let (weights, importance) = (weights(40), importance());
    let weighted = |decoded: &[f32]| {
        let terms = weights.iter().zip(decoded).enumerate();
        terms.map(|(i, (x, y))| f64::from(importance[i % COLUMNS]) * f64::from(x - y).powi(2)).sum::<f64>()
    };
    for format in formats() {
        let plain = weighted(&decoded(format, &weights, None));
        let given = weighted(&decoded(format, &weights, Some(&importance)));
        // Eight-bit floats err alike under any scale that holds the group.
        let same = *format == MLX_MXFP8 && given == plain;
        assert!(given < plain || same, "{format:?}: {given:e}, {plain:e} without");
    }
}

/// Scale and bias by `mx.quantize`'s rule, as stored in BF16.
fn mlx_rule(group: &[f32], most: f32) -> (f32, f32) {
    let low = group.iter().copied().fold(f32::INFINITY, f32::min);
    let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let size = ((high - low) / most).max(1e-7);
    let (mut scale, edge) = if low.abs() > high.abs() { (size, low) } else { (-size, high) };
    let at_zero = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if at_zero != 0.0 {
        (scale, bias) = (edge / at_zero, edge);
    }
    (half::bf16::from_f32(scale).to_f32(), half::bf16::from_f32(bias).to_f32())
}

/// The error that the search minimises: of the dequantized weights (rounded to BF16) and of the unrounded line.
fn affine_error(x: f32, code: f32, scale: f32, bias: f32) -> f64 {
    let round = |x: f32| half::bf16::from_f32(x).to_f32();
    let rounded = round(round(code * scale) + bias);
    let exact = f64::from(code) * f64::from(scale) + f64::from(bias);
    (f64::from(x) - f64::from(rounded)).powi(2) + (f64::from(x) - exact).powi(2)
}

#[test]
fn no_affine_group_is_worse_than_by_mlx_rule() {
    let weights = weights(20);
    for format in &mlx_affine::BF16 {
        let most = ((1 << (format.planes[0] * 8 / format.block)) - 1) as f32;
        let planes = encode(format, Isa::detect(), &weights, None);
        let half_at =
            |p: usize, i: usize| half::bf16::from_le_bytes([planes[p][2 * i], planes[p][2 * i + 1]]).to_f32();
        let (mut ours, mut theirs) = (0.0, 0.0);
        for (i, group) in weights.chunks(format.block).enumerate() {
            let nearest = |x: f32, (scale, bias): (f32, f32)| {
                let code = (f64::from(x) - f64::from(bias)) / f64::from(scale);
                affine_error(x, code.round_ties_even().clamp(0.0, f64::from(most)) as f32, scale, bias)
            };
            let line = (half_at(1, i), half_at(2, i));
            let rule = mlx_rule(group, most);
            let our: f64 = group.iter().map(|&x| nearest(x, line)).sum();
            let their: f64 = group.iter().map(|&x| nearest(x, rule)).sum();
            // Sums in f32 against sums in f64, and ties between codes.
            assert!(our <= their * (1.0 + 1e-3), "{format:?}, group {i}: {our:e} > {their:e}");
            (ours, theirs) = (ours + our, theirs + their);
        }
        assert!(ours < 0.9 * theirs, "{format:?}: {ours:e} of {theirs:e}");
    }
}

#[test]
fn codes_of_8_bits_err_less_than_the_nearest() {
    let weights = weights(20);
    let format = affine(8, 64, &float::BF16).expect("a format of MLX");
    let planes = encode(format, Isa::detect(), &weights, None);
    let half_at =
        |p: usize, i: usize| half::bf16::from_le_bytes([planes[p][2 * i], planes[p][2 * i + 1]]).to_f32();
    let (mut ours, mut nearest) = (0.0, 0.0);
    for (i, (group, codes)) in weights.chunks(64).zip(planes[0].chunks(64)).enumerate() {
        let (scale, bias) = (half_at(1, i), half_at(2, i));
        for (&x, &code) in group.iter().zip(codes) {
            let place = ((x - bias) / scale).clamp(0.0, 255.0);
            assert!((place - f32::from(code)).abs() <= 1.001, "group {i}: {code} for {place}");
            let our = affine_error(x, f32::from(code), scale, bias);
            let near = affine_error(x, place.round_ties_even(), scale, bias);
            // Sums in f32 against sums in f64.
            assert!(our <= near * (1.0 + 1e-3) + 1e-12, "group {i}: {our:e} > {near:e}");
            (ours, nearest) = (ours + our, nearest + near);
        }
    }
    assert!(ours < 0.98 * nearest, "{ours:e} of {nearest:e}");
}

/// The least error of a group under any scale.
fn exhaustive(group: &[f32], scales: &[f32], values: &[f32]) -> f64 {
    let nearest = |x: f32, scale: f32| {
        let distance = |v: &f32| (f64::from(x) - f64::from(*v) * f64::from(scale)).powi(2);
        values.iter().map(distance).fold(f64::INFINITY, f64::min)
    };
    let error = |scale: &f32| group.iter().map(|x| nearest(*x, *scale)).sum::<f64>();
    scales.iter().map(error).fold(f64::INFINITY, f64::min)
}

#[test]
fn scales_of_small_floats_are_the_best_there_are() {
    let weights = weights(4);
    let fp4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let fp4: Vec<f32> = fp4.into_iter().flat_map(|v| [v, -v]).collect();
    let fp8: Vec<f32> = (0..=255).map(halfbyte_kernels::fp8::e4m3_to_f32).filter(|v| !v.is_nan()).collect();
    let powers: Vec<f32> = (-30..10).map(|e| 2_f32.powi(e)).collect();
    let positive: Vec<f32> = fp8.iter().copied().filter(|v| *v > 0.0).collect();
    for (format, group, scales, values) in
        [(&MXFP4, 32, &powers, &fp4), (&MLX_MXFP8, 32, &powers, &fp8), (&NVFP4, 16, &positive, &fp4)]
    {
        let decoded = decoded(format, &weights, None);
        for (i, (src, decoded)) in weights.chunks(group).zip(decoded.chunks(group)).enumerate() {
            let (found, least) = (error(src, decoded), exhaustive(src, scales, values));
            assert!(found <= least * (1.0 + 1e-5), "{format:?}, group {i}: {found:e}, could be {least:e}");
        }
    }
}

#[test]
fn gguf_and_mlx_differ_in_packing_alone() {
    let (weights, importance) = (weights(9), importance());
    for (gguf, mlx) in [(&MXFP4, &MLX_MXFP4), (&NVFP4, &MLX_NVFP4)] {
        for given in [None, Some(&importance[..])] {
            assert_eq!(decoded(gguf, &weights, given), decoded(mlx, &weights, given));
        }
    }
}

#[test]
fn affine_formats_are_found() {
    let format = affine(4, 64, &float::BF16).expect("a format of MLX");
    assert_eq!((format.name, format.block, format.planes), ("4bit-g64", 64, &[32, 2, 2][..]));
    let wide = affine(3, 128, &float::F32).expect("a format of MLX");
    assert_eq!((wide.name, wide.block, wide.planes), ("3bit-g128-f32", 128, &[48, 4, 4][..]));
    assert_eq!(affine(7, 64, &float::BF16), None);
    assert_eq!(affine(4, 16, &float::BF16), None);
    assert_eq!(with_scales(format, &float::F16).name, "4bit-g64-f16");
    assert_eq!(scales_of(wide), Some(&float::F32));
    assert_eq!(scales_of(&MLX_MXFP4), None);
    assert_eq!(with_scales(&MLX_MXFP4, &float::F16), &MLX_MXFP4);
}

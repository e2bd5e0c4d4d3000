//! What every row of the table must keep: the same bytes and the same floats on every instruction set and however the
//! tensor is cut, and finite weights from finite ones.

use halfbyte_kernels::float::F16_MAX;
use halfbyte_kernels::nvfp4::COMPRESSED_NVFP4;
use halfbyte_kernels::{Format, Isa, table};

fn encode(format: &Format, isa: Isa, src: &[f32], importance: Option<&[f32]>) -> Option<Vec<Vec<u8>>> {
    let encode = format.encode?;
    let blocks = src.len() / format.block;
    let mut planes: Vec<Vec<u8>> = format.planes.iter().map(|bytes| vec![0xa5; blocks * bytes]).collect();
    let mut slices: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    encode(format, isa, src, importance, &mut slices);
    Some(planes)
}

fn decode(format: &Format, isa: Isa, planes: &[Vec<u8>]) -> Vec<u32> {
    let blocks = planes[0].len() / format.planes[0];
    let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let mut out = vec![f32::NAN; blocks * format.block];
    (format.decode)(format, isa, &slices, &mut out);
    out.into_iter().map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits()).collect()
}

/// A small generator of numbers in -1..1, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

const ROWS: usize = 3;

/// Blocks of a row: with [`ROWS`], less than a batch of sixteen, and two whole ones and a rest.
const BLOCKS: [usize; 3] = [1, 5, 11];

/// Weights with edges of all kinds, for `ROWS` rows.
fn inputs(columns: usize) -> Vec<(&'static str, Vec<f32>)> {
    let n = ROWS * columns;
    let mut noise = Noise(7);
    let mut make =
        |f: &mut dyn FnMut(usize, f32) -> f32| -> Vec<f32> { (0..n).map(|i| f(i, noise.next())).collect() };
    vec![
        ("noise", make(&mut |_, x| x)),
        ("long tails", make(&mut |_, x| x * x * x / (1.001 - x.abs()))),
        ("far from zero", make(&mut |_, x| 100.0 + x)),
        ("zeros", make(&mut |_, _| 0.0)),
        ("signed zeros", make(&mut |i, _| if i % 3 == 0 { -0.0 } else { 0.0 })),
        ("a constant", make(&mut |_, _| 0.37)),
        ("a negative constant", make(&mut |_, _| -1.5)),
        ("plus and minus", make(&mut |i, _| if i % 2 == 0 { 2.0 } else { -2.0 })),
        ("one outlier", make(&mut |i, x| if i % 100 == 41 { -1000.0 } else { x })),
        ("lone weights", make(&mut |i, x| if i % 100 == 41 { x } else { 0.0 })),
        ("denormals", make(&mut |_, x| x * 1e-39)),
        ("below half floats", make(&mut |_, x| x * 1e-9)),
        ("at their edge", make(&mut |_, x| x * 3e-7)),
        ("above half floats", make(&mut |_, x| x * 1e7)),
        ("squares overflow", make(&mut |_, x| x * 1e30)),
        ("large", make(&mut |_, x| if x > 0.0 { f32::MAX / 4.0 } else { -f32::MAX / 4.0 })),
        ("largest", make(&mut |_, x| if x > 0.0 { f32::MAX } else { -f32::MAX })),
        ("everything", make(&mut |i, x| x * 10f32.powi((i * 7 % 77) as i32 - 40))),
    ]
}

fn importances(columns: usize) -> Vec<(&'static str, Option<Vec<f32>>)> {
    let mut noise = Noise(3);
    let mut make = |f: &mut dyn FnMut(usize, f32) -> f32| -> Option<Vec<f32>> {
        Some((0..columns).map(|i| f(i, noise.next())).collect())
    };
    vec![
        ("none", None),
        ("even", make(&mut |_, _| 1.0)),
        ("spread", make(&mut |_, x| (4.0 * x).exp())),
        ("half of it zero", make(&mut |i, x| if i % 64 < 32 { 0.0 } else { x.abs() })),
        ("holes", make(&mut |i, x| if i % 3 == 0 { 0.0 } else { x.abs() * 1e-8 })),
        ("all zero", make(&mut |_, _| 0.0)),
    ]
}

#[test]
fn every_instruction_set_gives_the_bytes_of_scalar() {
    for format in table::all() {
        for blocks in BLOCKS {
            compare(format, blocks * format.block);
        }
    }
}

fn compare(format: &Format, columns: usize) {
    let all = Isa::available();
    for (input, src) in inputs(columns) {
        for (weighing, importance) in importances(columns) {
            let importance = importance.as_deref();
            let what = || format!("{format:?}, {columns} columns, {input}, importance {weighing}");
            let Some(planes) = encode(format, all[0], &src, importance) else { return };
            let decoded = decode(format, all[0], &planes);
            for &isa in &all[1..] {
                let same = encode(format, isa, &src, importance).as_ref() == Some(&planes);
                assert!(same, "{}, {}", what(), isa.name());
                assert!(decode(format, isa, &planes) == decoded, "decode {}, {}", what(), isa.name());
            }
            // Beyond these a half float is infinite, a scale of compressed-tensors' NVFP4 no number, and the range of a group no f32.
            let limit = match format.name {
                _ if *format == COMPRESSED_NVFP4 => 10.5,
                name if name.ends_with("f16") => F16_MAX,
                _ => f32::MAX / 4.0,
            };
            let holds = src.iter().all(|x| x.abs() <= limit);
            let finite = decoded.iter().all(|&x| f32::from_bits(x).is_finite());
            assert!(!holds || finite, "{}: not finite", what());
        }
    }
}

#[test]
fn any_bytes_decode_alike_everywhere() {
    let all = Isa::available();
    let mut state = 1u32;
    for format in table::all() {
        let planes: Vec<Vec<u8>> = format
            .planes
            .iter()
            .map(|bytes| {
                (0..37 * bytes)
                    .map(|_| {
                        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                        (state >> 24) as u8
                    })
                    .collect()
            })
            .collect();
        let decoded = decode(format, all[0], &planes);
        for &isa in &all[1..] {
            assert!(decode(format, isa, &planes) == decoded, "{format:?} {}", isa.name());
        }
    }
}

#[test]
fn a_tensor_may_be_cut_between_any_rows() {
    for format in table::all() {
        let columns = (5 * format.block).max(5);
        for (weighing, importance) in importances(columns).into_iter().step_by(2) {
            for (input, src) in inputs(columns) {
                let Some(whole) = encode(format, Isa::detect(), &src, importance.as_deref()) else {
                    continue;
                };
                let mut rows: Vec<Vec<u8>> = vec![Vec::new(); format.planes.len()];
                for row in src.chunks(columns) {
                    let planes = encode(format, Isa::detect(), row, importance.as_deref());
                    for (all, part) in rows.iter_mut().zip(planes.into_iter().flatten()) {
                        all.extend(part);
                    }
                }
                assert!(rows == whole, "{format:?}, {input}, importance {weighing}");
            }
        }
    }
}

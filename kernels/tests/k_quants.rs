//! The encoders of the K-quants and IQ4 types: errors no larger than ggml's, and sense at the edges.
//!
//! ggml's figures were made with `ggml_quantize_chunk` of the library in the PyPI package `xllamacpp`, with and without
//! importance, on [`weights`], and decoded by the PyPI package `gguf`.

use halfbyte_kernels::{Format, Isa, table};

struct Type {
    name: &'static str,
    /// ggml's RMS error on [`weights`].
    plain: f64,
    /// ggml's RMS error weighted by the importance that comes with them, which it was given.
    weighted: f64,
}

const TYPES: &[Type] = &[
    Type { name: "q2_k", plain: 1.046177e-2, weighted: 9.019761e-3 },
    Type { name: "q3_k", plain: 5.258932e-3, weighted: 4.889319e-3 },
    Type { name: "q4_k", plain: 2.516932e-3, weighted: 2.430028e-3 },
    Type { name: "q5_k", plain: 1.261925e-3, weighted: 1.205347e-3 },
    Type { name: "q6_k", plain: 6.134792e-4, weighted: 5.861770e-4 },
    Type { name: "iq4_nl", plain: 2.684650e-3, weighted: 2.574192e-3 },
    Type { name: "iq4_xs", plain: 2.704181e-3, weighted: 2.593039e-3 },
];

const ROWS: usize = 8;
/// Three super-blocks, so that pairs of them cross rows.
const COLUMNS: usize = 768;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E3779B97F4A7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        z ^ (z >> 31)
    }
}

/// Weights with a bell-shaped distribution within ±0.125, and an importance per column within 1..=256.
fn weights() -> (Vec<f32>, Vec<f32>) {
    let mut random = Random(1);
    let weights = (0..ROWS * COLUMNS)
        .map(|_| {
            let z = random.next();
            let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
            (sum as f32 - 131_070.0) / (1 << 20) as f32
        })
        .collect();
    let importance = (0..COLUMNS).map(|_| (1 + random.next() % 256) as f32).collect();
    (weights, importance)
}

fn encode(format: &Format, isa: Isa, src: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut plane = vec![0xee; format.plane_bytes(0, src.len() as u64).expect("whole blocks") as usize];
    format.encode.expect("rows with an encoder")(format, isa, src, importance, &mut [&mut plane]);
    plane
}

fn decode(format: &Format, isa: Isa, plane: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; plane.len() / format.planes[0] * format.block];
    (format.decode)(format, isa, &[plane], &mut out);
    out
}

fn rows() -> impl Iterator<Item = (&'static Type, &'static Format)> {
    TYPES.iter().map(|ty| (ty, table::gguf(ty.name).expect("a row of the table")))
}

/// Inputs at the edges of what may come, each of two rows of 256.
fn edges() -> Vec<(&'static str, Vec<f32>)> {
    let ramp = |scale: f32| (0..512).map(|i| (i as f32 - 255.5) / 256.0 * scale).collect::<Vec<_>>();
    let one_outlier = |x: f32| {
        let mut v = ramp(0.01);
        v[77] = x;
        v
    };
    vec![
        ("zeros", vec![0.0; 512]),
        ("negative zeros", vec![-0.0; 512]),
        ("a constant", vec![0.3; 512]),
        ("a negative constant", vec![-0.3; 512]),
        ("ones and zeros", (0..512).map(|i| (i % 2) as f32).collect()),
        ("subnormals", ramp(1e-40)),
        ("below f16", ramp(1e-9)),
        ("subnormal steps", ramp(1e-4)),
        ("beyond f16", ramp(1e9)),
        ("the largest", ramp(f32::MAX)),
        ("all of the largest", (0..512).map(|i| if i % 3 == 0 { f32::MAX } else { f32::MIN }).collect()),
        ("one outlier", one_outlier(100.0)),
        ("one huge outlier", one_outlier(-3e38)),
        ("one zero super-block", [vec![0.0; 256], ramp(1.0)[..256].to_vec()].concat()),
    ]
}

#[test]
fn errs_less_than_ggml() {
    let (weights, importance) = weights();
    for (ty, format) in rows() {
        for (given, peer) in [(None, ty.plain), (Some(&importance[..]), ty.weighted)] {
            let plane = encode(format, Isa::detect(), &weights, given);
            let decoded = decode(format, Isa::detect(), &plane);
            let (mut sum, mut all) = (0.0, 0.0);
            for (i, (x, y)) in weights.iter().zip(&decoded).enumerate() {
                let w = given.map_or(1.0, |w| f64::from(w[i % COLUMNS]));
                sum += w * f64::from(x - y).powi(2);
                all += w;
            }
            let rms = (sum / all).sqrt();
            assert!(rms < peer, "{} importance {}: {rms:e} > {peer:e}", ty.name, given.is_some());
        }
    }
}

#[test]
fn edges_stay_finite_and_near() {
    for (ty, format) in rows() {
        for (what, src) in edges() {
            let mut importance = vec![1.0; 256];
            importance[..128].fill(0.0);
            for given in [None, Some(&importance[..])] {
                let decoded = decode(format, Isa::detect(), &encode(format, Isa::detect(), &src, given));
                assert!(decoded.iter().all(|y| y.is_finite()), "{} of {what}", ty.name);
                let energy = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>();
                let all = energy(&mut src.iter().map(|&x| f64::from(x)));
                let lost = energy(&mut src.iter().zip(&decoded).map(|(&x, &y)| f64::from(x) - f64::from(y)));
                assert!(lost <= all, "{} of {what}: {lost:e} of {all:e}", ty.name);
                // What `f16` steps can hold keeps its values; a type's coarsest case is two bits per weight.
                if ["a constant", "ones and zeros", "subnormal steps", "one outlier"].contains(&what) {
                    assert!(lost <= 0.02 * all, "{} of {what}: {lost:e} of {all:e}", ty.name);
                }
                if all == 0.0 {
                    assert!(decoded.iter().all(|&y| y == 0.0), "{} of {what}", ty.name);
                }
            }
        }
    }
}

#[test]
fn columns_without_importance_keep_their_values() {
    let (weights, _) = weights();
    for (ty, format) in rows() {
        let none = vec![0.0; COLUMNS];
        let plain = encode(format, Isa::detect(), &weights, None);
        let zero = encode(format, Isa::detect(), &weights, Some(&none));
        let error = |plane: &[u8]| {
            let decoded = decode(format, Isa::detect(), plane);
            weights.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>()
        };
        assert!(error(&zero) <= error(&plain) * 1.001, "{}", ty.name);
    }
}

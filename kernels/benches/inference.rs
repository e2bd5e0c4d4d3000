//! What the inference core computes, on one core: operations per second of the matrix product in `f32` and in fixed point, of
//! attention and of nothing but fused multiply-adds (the share of these is the share of the machine's peak), and elements per
//! second of the rest.
//!
//! `cargo bench -p halfbyte-kernels --bench inference`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use halfbyte_kernels::Isa;
use halfbyte_kernels::activations::swiglu;
use halfbyte_kernels::attention::{Attention, attend};
use halfbyte_kernels::delta::{GatedDelta, causal_convolution, gated_delta};
use halfbyte_kernels::divergence::{State, update};
use halfbyte_kernels::fixed::{self, round_tokens, round_weights};
use halfbyte_kernels::gemm::{Panels, multiply, pack};
use halfbyte_kernels::matrix::{Matrix, MatrixMut};
use halfbyte_kernels::norm::{l2_norm, rms_norm};
use halfbyte_kernels::rope::{Pairs, rotate};
use halfbyte_kernels::simd::{Kernel, LANES, Simd};
use halfbyte_kernels::softmax::softmax;

fn main() {
    divan::main();
}

fn isas() -> impl Iterator<Item = &'static str> {
    Isa::available().into_iter().map(Isa::name).filter(|&name| name != "scalar")
}

fn named(name: &str) -> Isa {
    Isa::available().into_iter().find(|isa| isa.name() == name).expect("only available names are listed")
}

/// Independent chains, enough to hide the latency and few enough for the registers.
const CHAINS: usize = 6;
const STEPS: usize = 1 << 16;

struct Peak;

impl Kernel for Peak {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
        let mut sums = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, a, b);
            }
        }
        sums.into_iter().map(|sum| s.reduce_add(sum)).sum()
    }
}

#[divan::bench(args = isas())]
fn peak(bencher: Bencher, isa: &str) {
    let isa = named(isa);
    bencher.counter(ItemsCount::new(2 * STEPS * CHAINS * LANES)).bench_local(|| isa.run(black_box(Peak)));
}

/// Tokens, k, rows.
const SHAPES: [(usize, usize, usize); 7] = [
    (2048, 576, 512),
    (2048, 1536, 512),
    (2048, 2048, 512),
    (2048, 7168, 512),
    (12, 2048, 512),
    (4, 2048, 512),
    (1, 2048, 512),
];

fn product(bencher: Bencher, isa: Isa, (tokens, k, rows): (usize, usize, usize)) {
    let x: Vec<f32> = (0..tokens * k).map(|i| (i % 251) as f32 * 0.01 - 1.0).collect();
    let weights: Vec<f32> = (0..rows * k).map(|i| (i % 241) as f32 * 0.01 - 1.0).collect();
    let mut packed = vec![0.0; Panels::len(rows, k)];
    pack(isa, Matrix::dense(&weights, rows, k), &mut packed);
    let mut out = vec![0.0; tokens * rows];
    bencher.counter(ItemsCount::new(2 * tokens * k * rows)).bench_local(|| {
        let out = MatrixMut::dense(&mut out, tokens, rows);
        multiply(isa, Matrix::dense(black_box(&x), tokens, k), Panels::new(&packed, rows, k), out);
    });
}

#[divan::bench(args = SHAPES)]
fn best(bencher: Bencher, shape: (usize, usize, usize)) {
    product(bencher, Isa::detect(), shape);
}

#[divan::bench(args = isas())]
fn each(bencher: Bencher, isa: &str) {
    product(bencher, named(isa), (24, 2048, 512));
}

/// With the rounding of the tokens.
fn fixed_product(bencher: Bencher, isa: Isa, (tokens, k, rows): (usize, usize, usize)) {
    let x: Vec<f32> = (0..tokens * k).map(|i| (i % 251) as f32 * 0.01 - 1.0).collect();
    let values: Vec<f32> = (0..rows * k).map(|i| (i % 241) as f32 * 0.01 - 1.0).collect();
    let mut weights = vec![0; fixed::Weights::len(rows, k)];
    round_weights(isa, Matrix::dense(&values, rows, k), &mut weights);
    let mut words = vec![0; fixed::Tokens::len(tokens, k)];
    let mut out = vec![0.0; tokens * rows];
    bencher.counter(ItemsCount::new(2 * tokens * k * rows)).bench_local(|| {
        round_tokens(isa, Matrix::dense(black_box(&x), tokens, k), &mut words);
        let (x, weights) = (fixed::Tokens::new(&words, tokens, k), fixed::Weights::new(&weights, rows, k));
        fixed::multiply(isa, x, weights, MatrixMut::dense(&mut out, tokens, rows));
    });
}

#[divan::bench(args = SHAPES)]
fn fixed_best(bencher: Bencher, shape: (usize, usize, usize)) {
    fixed_product(bencher, Isa::detect(), shape);
}

#[divan::bench(args = isas())]
fn fixed_each(bencher: Bencher, isa: &str) {
    fixed_product(bencher, named(isa), (24, 2048, 512));
}

/// Tokens, width of keys, width of values, query heads.
const HEADS: [(usize, usize, usize, usize); 4] =
    [(512, 64, 64, 3), (512, 192, 128, 1), (2048, 128, 128, 4), (4096, 128, 128, 1)];

/// Operations that a causal mask leaves.
#[divan::bench(args = HEADS)]
fn attention(bencher: Bencher, (tokens, width, value_width, heads): (usize, usize, usize, usize)) {
    let values: Vec<f32> = (0..tokens * heads * width).map(|i| (i % 251) as f32 * 0.01 - 1.0).collect();
    let mut out = vec![0.0; tokens * heads * value_width];
    let mut scratch = Vec::new();
    let attention =
        Attention { heads, head_stride: width, scale: 0.1, window: None, soft_cap: None, sinks: None };
    let operations = tokens * (tokens + 1) * (width + value_width) * heads;
    bencher.counter(ItemsCount::new(operations)).bench_local(|| {
        let q = Matrix::dense(black_box(&values), tokens, heads * width);
        let k = Matrix::dense(&values[..tokens * width], tokens, width);
        let v = Matrix::dense(&values[..tokens * value_width], tokens, value_width);
        let out = MatrixMut::dense(&mut out, tokens, heads * value_width);
        attend(Isa::detect(), &attention, q, k, v, out, &mut scratch);
    });
}

/// Logits of two models.
#[divan::bench]
fn divergence(bencher: Bencher) {
    let reference: Vec<f32> = (0..4096).map(|i| (i % 251) as f32 * 0.05).collect();
    let model: Vec<f32> = (0..4096).map(|i| (i % 241) as f32 * 0.05).collect();
    bencher.counter(ItemsCount::new(reference.len())).bench_local(|| {
        let mut state = State::default();
        update(Isa::detect(), Some(black_box(&reference)), &model, 0, 77, &mut state);
        state.finish()
    });
}

#[divan::bench]
fn activation(bencher: Bencher) {
    let up: Vec<f32> = (0..4096).map(|i| (i % 251) as f32 * 0.05 - 5.0).collect();
    bencher.counter(ItemsCount::new(up.len())).with_inputs(|| up.clone()).bench_local_refs(|gate| {
        swiglu(Isa::detect(), black_box(gate), &up);
    });
}

#[divan::bench]
fn packing(bencher: Bencher) {
    let (rows, k) = (512, 2048);
    let weights: Vec<f32> = (0..rows * k).map(|i| (i % 241) as f32).collect();
    let mut packed = vec![0.0; Panels::len(rows, k)];
    bencher.counter(ItemsCount::new(rows * k)).bench_local(|| {
        pack(Isa::detect(), Matrix::dense(black_box(&weights), rows, k), &mut packed);
    });
}

#[divan::bench]
fn fixed_packing(bencher: Bencher) {
    let (rows, k) = (512, 2048);
    let weights: Vec<f32> = (0..rows * k).map(|i| (i % 241) as f32).collect();
    let mut words = vec![0; fixed::Weights::len(rows, k)];
    bencher.counter(ItemsCount::new(rows * k)).bench_local(|| {
        round_weights(Isa::detect(), Matrix::dense(black_box(&weights), rows, k), &mut words);
    });
}

/// Rows of 4096 activations.
const ACTIVATIONS: (usize, usize) = (16, 4096);

fn activations() -> Vec<f32> {
    (0..ACTIVATIONS.0 * ACTIVATIONS.1).map(|i| (i % 251) as f32 * 0.01 - 1.0).collect()
}

/// 4 operations and 24 bytes an element: it is copied, read for the squares, and read and written for the product, with 4 bytes
/// of gain.
#[divan::bench]
fn norm(bencher: Bencher) {
    let (rows, columns) = ACTIVATIONS;
    let (x, gain, mut out) = (activations(), vec![1.1; columns], vec![0.0; rows * columns]);
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let x = Matrix::dense(black_box(&x), rows, columns);
        rms_norm(Isa::detect(), x, columns, Some(&gain), 1e-5, MatrixMut::dense(&mut out, rows, columns));
    });
}

/// Heads of 128, in place. 3 operations and 12 bytes an element.
#[divan::bench]
fn norm_l2(bencher: Bencher) {
    let (rows, columns) = ACTIVATIONS;
    let mut x = activations();
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        l2_norm(Isa::detect(), MatrixMut::dense(black_box(&mut x), rows, columns), 128, 1e-5);
    });
}

/// Heads of 128, turned in place. 3 operations and 8 bytes an element; cosines and sines are those of all heads.
#[divan::bench(args = ["halves", "neighbours"])]
fn rope(bencher: Bencher, pairs: &str) {
    let (rows, columns) = ACTIVATIONS;
    let mut x = activations();
    let angles = || (0..rows * 64).map(|i| i as f32 * 0.01);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles().map(|a| (a.cos(), a.sin())).unzip();
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let pairs = if pairs == "halves" { Pairs::Halves } else { Pairs::Neighbours };
        let (cos, sin) = (Matrix::dense(&cos, rows, 64), Matrix::dense(&sin, rows, 64));
        rotate(Isa::detect(), pairs, MatrixMut::dense(black_box(&mut x), rows, columns), 128, cos, sin);
    });
}

/// Some 20 operations (most of them the exponential's) and 20 bytes an element: read for the largest, read and written for the
/// exponential and for the quotient.
#[divan::bench]
fn softmax_rows(bencher: Bencher) {
    let (rows, columns) = ACTIVATIONS;
    let mut x = activations();
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        softmax(Isa::detect(), MatrixMut::dense(black_box(&mut x), rows, columns));
    });
}

/// Operations: 7 for each of a token's 128 x 128 elements of the state, which is read and written twice (16 bytes an element, in the
/// first-level cache for sixteen columns).
#[divan::bench]
fn delta(bencher: Bencher) {
    let (tokens, width) = (256, 128);
    let x: Vec<f32> = (0..tokens * width).map(|i| (i % 251) as f32 * 0.001 - 0.1).collect();
    let (decay, rate) = (vec![0.97; tokens], vec![0.5; tokens]);
    let mut out = vec![0.0; tokens * width];
    bencher.counter(ItemsCount::new(7 * tokens * width * width)).bench_local(|| {
        let x = Matrix::dense(black_box(&x), tokens, width);
        let head = GatedDelta { q: x, k: x, v: x, decay: &decay, rate: &rate };
        gated_delta(Isa::detect(), head, MatrixMut::dense(&mut out, tokens, width));
    });
}

/// Four taps: 8 operations and, from the cache, 20 bytes an element.
#[divan::bench]
fn convolution(bencher: Bencher) {
    let (rows, columns) = ACTIVATIONS;
    let (x, taps, mut out) = (activations(), vec![0.25; 4 * columns], vec![0.0; rows * columns]);
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let (x, taps) = (Matrix::dense(black_box(&x), rows, columns), Matrix::dense(&taps, 4, columns));
        causal_convolution(Isa::detect(), x, taps, MatrixMut::dense(&mut out, rows, columns));
    });
}

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
use halfbyte_kernels::divergence::{State, update};
use halfbyte_kernels::fixed::{self, round_tokens, round_weights};
use halfbyte_kernels::gemm::{Panels, multiply, pack};
use halfbyte_kernels::matrix::{Matrix, MatrixMut};
use halfbyte_kernels::simd::{Kernel, LANES, Simd};

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

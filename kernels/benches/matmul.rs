//! Floating-point operations per second, on one core, of the matrix product and of nothing but fused multiply-adds: the
//! first as a share of the second is the share of the machine's peak.
//!
//! `cargo bench -p halfbyte-kernels --bench matmul`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use halfbyte_kernels::Isa;
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
    product(bencher, named(isa), (240, 2048, 512));
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

//! Weights per second, on one core, of every format on every instruction set of this machine.
//!
//! `cargo bench -p halfbyte-kernels`, with a part of a name (`q4_0`, `decode`, `avx2`) to run less. `encode_memory` and `copy` give
//! bytes per second, read and written, of the fastest encoders and of a plain copy, both of buffers that no cache holds.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use halfbyte_kernels::fp8::{e4m3_from_f32, widen_block_scaled};
use halfbyte_kernels::stats::{damage, summarize};
use halfbyte_kernels::{Format, Isa, table};

fn main() {
    divan::main();
}

const COLUMNS: usize = 4096;
const ROWS: usize = 16;

/// One line of the report.
struct Case {
    format: &'static Format,
    isa: Isa,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let container = if table::MLX.contains(&self.format) && self.format.block > 1 { "mlx/" } else { "" };
        write!(f, "{container}{} {}", self.format.name, self.isa.name())
    }
}

fn cases() -> impl Iterator<Item = Case> {
    table::all().flat_map(|format| {
        let isas = Isa::available().into_iter().filter(|isa| isa.name() != "scalar");
        isas.map(move |isa| Case { format, isa })
    })
}

fn encoders() -> impl Iterator<Item = Case> {
    cases().filter(|case| case.format.encode.is_some())
}

/// Sums of uniform numbers: near enough to a normal distribution.
fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..ROWS * COLUMNS).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.03).collect()
}

fn planes(format: &Format) -> Vec<Vec<u8>> {
    format.planes.iter().map(|bytes| vec![0; ROWS * COLUMNS / format.block * bytes]).collect()
}

fn encode_with(bencher: Bencher, case: &Case, importance: Option<&[f32]>) {
    let src = weights();
    let mut planes = planes(case.format);
    let mut planes: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    let encode = case.format.encode.expect("only formats with an encoder are listed");
    bencher.counter(ItemsCount::new(src.len())).bench_local(|| {
        encode(case.format, case.isa, black_box(&src), importance, &mut planes);
    });
}

#[divan::bench(args = encoders())]
fn encode(bencher: Bencher, case: &Case) {
    encode_with(bencher, case, None);
}

#[divan::bench(args = encoders())]
fn encode_importance(bencher: Bencher, case: &Case) {
    let importance: Vec<f32> = (0..COLUMNS).map(|i| 0.1 + (i * 37 % 101) as f32).collect();
    encode_with(bencher, case, Some(&importance));
}

#[divan::bench(args = cases())]
fn decode(bencher: Bencher, case: &Case) {
    let mut out = vec![0.0; ROWS * COLUMNS];
    let mut planes = planes(case.format);
    if let Some(encode) = case.format.encode {
        let mut planes: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        encode(case.format, case.isa, &weights(), None, &mut planes);
    }
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    bencher.counter(ItemsCount::new(out.len())).bench_local(|| {
        (case.format.decode)(case.format, case.isa, black_box(&planes), &mut out);
    });
}

/// DeepSeek's FP8 with a scale for every 128 x 128: 5 bytes and one product a weight.
#[divan::bench(args = isas())]
fn widen_fp8(bencher: Bencher, isa: &str) {
    let codes: Vec<u8> = weights().into_iter().map(|x| e4m3_from_f32(1000.0 * x)).collect();
    let scales = vec![1e-3; ROWS.div_ceil(128) * COLUMNS / 128];
    let mut out = vec![0.0; codes.len()];
    bencher.counter(ItemsCount::new(codes.len())).bench_local(|| {
        widen_block_scaled(named(isa), black_box(&codes), COLUMNS, 0, &scales, (128, 128), &mut out);
    });
}

/// The check for NaN and the largest magnitude: 4 bytes a weight.
#[divan::bench(args = isas())]
fn summary(bencher: Bencher, isa: &str) {
    let src = weights();
    bencher.counter(ItemsCount::new(src.len())).bench_local(|| summarize(named(isa), black_box(&src)));
}

/// What encoding cost: 8 bytes and 5 operations a weight.
#[divan::bench(args = isas())]
fn compare(bencher: Bencher, isa: &str) {
    let src = weights();
    let decoded: Vec<f32> = src.iter().map(|x| (x * 100.0).round() / 100.0).collect();
    bencher
        .counter(ItemsCount::new(src.len()))
        .bench_local(|| damage(named(isa), black_box(&src), black_box(&decoded)));
}

fn isas() -> impl Iterator<Item = &'static str> {
    Isa::available().into_iter().map(Isa::name).filter(|&name| name != "scalar")
}

fn named(name: &str) -> Isa {
    Isa::available().into_iter().find(|isa| isa.name() == name).expect("only available names are listed")
}

/// Weights outside all caches: 256 MB.
const MANY: usize = 64 << 20;

/// Formats whose encoders the memory might limit.
fn light() -> impl Iterator<Item = Case> {
    let format = |case: &Case| ["q4_0", "q8_0", "mxfp4"].contains(&case.format.name);
    encoders().filter(move |case| table::GGUF.contains(&case.format) && format(case))
}

/// Bytes read and written by an encoder of [`MANY`] weights.
fn traffic(format: &Format) -> usize {
    size_of::<f32>() * MANY + MANY / format.block * format.planes[0]
}

#[divan::bench(args = light(), sample_count = 8, sample_size = 1)]
fn encode_memory(bencher: Bencher, case: &Case) {
    let src: Vec<f32> = weights().into_iter().cycle().take(MANY).collect();
    let mut plane = vec![1; MANY / case.format.block * case.format.planes[0]];
    let encode = case.format.encode.expect("only formats with an encoder are listed");
    bencher.counter(BytesCount::new(traffic(case.format))).bench_local(|| {
        encode(case.format, case.isa, black_box(&src), None, &mut [&mut plane]);
    });
}

/// A copy that moves as many bytes as `q4_0`'s encoder, half of them in and half of them out.
#[divan::bench(sample_count = 8, sample_size = 1)]
fn copy(bencher: Bencher) {
    let bytes = traffic(&halfbyte_kernels::q4_0::Q4_0);
    let src = vec![1u8; bytes / 2];
    let mut dst = vec![2u8; bytes / 2];
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| black_box(&mut dst).copy_from_slice(black_box(&src)));
}

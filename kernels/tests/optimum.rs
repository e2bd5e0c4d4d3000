//! How far each encoder is from the least squared error that its format can hold: a table for `docs/benchmarks.md`.
//!
//! `cargo test -p halfbyte-kernels --test optimum -- --ignored --nocapture`

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};
use halfbyte_kernels::fp8::{e4m3_to_f32, e8m0_to_f32};
use halfbyte_kernels::{Format, Isa, float, mlx_affine, table};

/// What rounding may take off our error against that of a search: of sums, and of ties between codes.
const ROUNDING: f64 = 1e-4;

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Uniform, above 0 and below 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E3779B97F4A7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        ((z ^ (z >> 31)) >> 12) as f64 / (1_u64 << 52) as f64 + f64::EPSILON
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.next().ln()).sqrt() * (std::f64::consts::TAU * self.next()).cos()
    }

    /// Student's t with four degrees of freedom.
    fn long_tailed(&mut self) -> f64 {
        let squares = -2.0 * (self.next() * self.next()).ln();
        self.normal() / (squares / 4.0).sqrt()
    }
}

/// Weights as large as those of language models: normal, and with long tails.
fn samples(weights: usize) -> [Vec<f32>; 2] {
    let mut random = Random(11);
    let normal = (0..weights).map(|_| (0.02 * random.normal()) as f32).collect();
    [normal, (0..weights).map(|_| (0.02 * random.long_tailed()) as f32).collect()]
}

/// An encoded block.
struct Block<'a> {
    weights: &'a [f32],
    /// Its part of the first plane.
    bytes: &'a [u8],
    /// Our squared error.
    error: f64,
}

/// Sums of squared errors, ours and the optimum's, and the largest ratio of a block's.
#[derive(Clone, Copy, Default)]
struct Sums {
    ours: f64,
    optimum: f64,
    worst: f64,
}

/// Encodes a sample and compares each block with what `optimum` says of it: `N` figures to compare with.
fn compare<const N: usize>(
    format: &Format,
    sample: &[f32],
    optimum: &(impl Fn(&Block) -> [f64; N] + Sync),
) -> [Sums; N] {
    let blocks = sample.len() / format.block;
    let mut planes: Vec<Vec<u8>> = format.planes.iter().map(|bytes| vec![0; blocks * bytes]).collect();
    let mut slices: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    format.encode.expect("an encoder")(format, Isa::detect(), sample, None, &mut slices);
    let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let mut decoded = vec![f32::NAN; sample.len()];
    (format.decode)(format, Isa::detect(), &slices, &mut decoded);

    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![(0.0, [0.0; N]); blocks]);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= blocks {
                break;
            }
            let part = i * format.block..(i + 1) * format.block;
            let (weights, decoded) = (&sample[part.clone()], &decoded[part]);
            let error =
                weights.iter().zip(decoded).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            let bytes = &planes[0][i * format.planes[0]..][..format.planes[0]];
            let least = optimum(&Block { weights, bytes, error });
            found.lock().expect("no thread panicked")[i] = (error, least);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut sums = [Sums::default(); N];
    for (ours, least) in found.into_inner().expect("no thread panicked") {
        for (sums, least) in sums.iter_mut().zip(least) {
            assert!(ours >= least * (1.0 - ROUNDING), "{format:?}: {ours:e} is below the optimum {least:e}");
            sums.ours += ours;
            sums.optimum += least;
            sums.worst = sums.worst.max(ours / least);
        }
    }
    sums
}

/// Prints a line of the table for each figure compared with, and holds the encoder to `most` times the first.
fn report<const N: usize>(
    format: &Format,
    blocks: usize,
    against: [&str; N],
    most: f64,
    optimum: impl Fn(&Block) -> [f64; N] + Sync,
) {
    let sums = samples(blocks * format.block).map(|sample| compare(format, &sample, &optimum));
    let container = if table::GGUF.contains(&format) { "GGUF" } else { "MLX" };
    for (i, against) in against.iter().enumerate() {
        print!("| {container} | {} | {against} |", format.name);
        for Sums { ours, optimum, worst } in sums.map(|sums| sums[i]) {
            print!(" {:.3} | {worst:.3} |", ours / optimum);
        }
        println!();
    }
    for Sums { ours, optimum, .. } in sums.map(|sums| sums[0]) {
        assert!(ours <= most * optimum, "{format:?}: {ours:e} is more than {most} times {optimum:e}");
    }
}

/// Every half float above zero.
fn halves() -> Vec<f64> {
    (1..0x7c00).map(|bits| f16::from_bits(bits).to_f64()).collect()
}

/// The values of a code, which a scale multiplies.
struct Grid {
    values: Vec<f64>,
    halfway: Vec<f64>,
}

impl Grid {
    fn new(mut values: Vec<f64>) -> Grid {
        values.sort_by(f64::total_cmp);
        values.dedup();
        let halfway = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        Grid { values, halfway }
    }

    fn nearest(&self, x: f64) -> f64 {
        self.values[self.halfway.partition_point(|&h| h < x)]
    }

    /// The squared error under a scale, or more than `limit` if it is more than that.
    fn error(&self, x: &[f32], scale: f64, limit: f64) -> f64 {
        let mut error = 0.0;
        for &x in x {
            let x = f64::from(x);
            error += (x - scale * self.nearest(x / scale)).powi(2);
            if error > limit {
                break;
            }
        }
        error
    }
}

fn integers(range: std::ops::RangeInclusive<i32>) -> Grid {
    Grid::new(range.map(f64::from).collect())
}

fn iq4() -> Grid {
    let values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    Grid::new(values.map(f64::from).to_vec())
}

fn squares(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum()
}

/// The least error of a group under any of `scales`, or under zero.
fn best_scale(grid: &Grid, x: &[f32], scales: &[f64]) -> f64 {
    scales.iter().fold(squares(x), |least, &scale| least.min(grid.error(x, scale, least)))
}

/// Scales of one sign under which no weight's code changes: (least, greatest), Σ x v, Σ v².
type Piece = ((f64, f64), f64, f64);

fn pieces(grid: &Grid, x: &[f32], sign: f64) -> Vec<Piece> {
    let ratios = x.iter().flat_map(|&x| grid.halfway.iter().map(move |h| sign * f64::from(x) / h));
    let mut ends: Vec<f64> = ratios.filter(|&t| t > 0.0 && t.is_finite()).chain([0.0]).collect();
    ends.sort_by(f64::total_cmp);
    // Beyond the last end, codes stay what they are.
    ends.push(1e3 * ends[ends.len() - 1]);
    let of = |pair: &[f64]| {
        let scale = sign * (pair[0] + pair[1]) / 2.0;
        let values = x.iter().map(|&x| (f64::from(x), grid.nearest(f64::from(x) / scale)));
        let (xv, vv) = values.fold((0.0, 0.0), |(xv, vv), (x, v)| (xv + sign * x * v, vv + v * v));
        ((pair[0], pair[1]), xv, vv)
    };
    ends.windows(2).map(of).collect()
}

/// The least error within a piece.
fn least(squares: f64, ((from, to), xv, vv): Piece) -> f64 {
    let scale = (xv / vv.max(f64::MIN_POSITIVE)).clamp(from, to);
    squares - 2.0 * scale * xv + scale * scale * vv
}

/// Groups of a super-block whose scales are d · sub-scale, from −`limit` to `limit` − 1: the least error over every half float d, and
/// over real scales of the groups. Which sub-scales can matter follows from the latter: a group's error is at most what the
/// super-block has left when all others have their least.
fn best_step(grid: &Grid, block: &Block, group: usize, limit: f64, halves: &[f64]) -> [f64; 2] {
    let groups: Vec<&[f32]> = block.weights.chunks(group).collect();
    let signed: Vec<[Vec<Piece>; 2]> =
        groups.iter().map(|x| [1.0, -1.0].map(|sign| pieces(grid, x, sign))).collect();
    let floor = |(x, signed): (&&[f32], &[Vec<Piece>; 2])| {
        let least = signed.iter().flatten().map(|&piece| least(squares(x), piece));
        least.fold(f64::INFINITY, f64::min)
    };
    let floors: Vec<f64> = groups.iter().zip(&signed).map(floor).collect();
    let bound: f64 = floors.iter().sum();
    let slack = block.error * (1.0 + ROUNDING) - bound;
    // The scales of each sign under which a group errs no more than that.
    let mut reach = Vec::new();
    for ((x, signed), floor) in groups.iter().zip(&signed).zip(&floors) {
        reach.push(signed.each_ref().map(|pieces| {
            let may = pieces.iter().filter(|&&piece| least(squares(x), piece) <= floor + slack);
            may.fold((f64::INFINITY, 0.0), |(a, b), &((from, to), ..)| (from.min(a), to.max(b)))
        }));
    }
    let mut best = f64::INFINITY;
    for d in halves.iter().flat_map(|&d| [d, -d]) {
        let mut total = bound;
        for ((x, reach), floor) in groups.iter().zip(&reach).zip(&floors) {
            let mut error = squares(x);
            for (sign, (from, to)) in [1.0, -1.0].into_iter().zip(reach) {
                let (near, far) = (sign * from / d, sign * to / d);
                let first = near.min(far).ceil().max(-limit);
                let last = near.max(far).floor().min(limit - 1.0);
                let mut sub_scale = first;
                while sub_scale <= last {
                    if sub_scale != 0.0 {
                        error = error.min(grid.error(x, d * sub_scale, error));
                    }
                    sub_scale += 1.0;
                }
            }
            total += error - floor;
            if total > bound + slack || total >= best {
                total = f64::INFINITY;
                break;
            }
        }
        best = best.min(total);
    }
    [best, bound]
}

/// Weights with the extremes first: what a bad line misses shows early.
fn extremes_first(x: &[f32]) -> (Vec<f32>, f32, f32) {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut x = x.to_vec();
    x.sort_by(|a, b| (b - (low + high) / 2.0).abs().total_cmp(&(a - (low + high) / 2.0).abs()));
    (x, low, high)
}

/// To the nearest BF16.
fn brain(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// `x` rounded to an integer, for magnitudes below 2²².
fn rounded(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The squared error of scale · code + bias, code 0..=`most`, or more than `limit` if it is more than that. With a `REACH` weights
/// are rounded to BF16 after product and sum; then a code so far from the nearest may be the better one.
fn line_error<const REACH: i32>(x: &[f32], most: f32, (scale, bias): (f32, f32), limit: f32) -> f32 {
    let inverse = 1.0 / scale;
    let mut error = 0.0;
    for x in x.chunks(8) {
        for &x in x {
            let place = rounded((x - bias) * inverse);
            let mut least = f32::INFINITY;
            for off in -REACH..=REACH {
                let code = (place + off as f32).max(0.0).min(most);
                let y = if REACH == 0 { code * scale + bias } else { brain(brain(code * scale) + bias) };
                least = ((x - y) * (x - y)).min(least);
            }
            error += least;
        }
        if error > limit {
            break;
        }
    }
    error
}

/// The scales worth a look, as shares of the one that maps a group's range to all codes: few codes pay for a finer grid in the
/// middle with the extremes.
fn share(most: f32) -> (f32, f32) {
    match most as u32 {
        0..=3 => (0.1, 1.6),
        4..=7 => (0.25, 1.4),
        _ => (0.5, 1.3),
    }
}

/// The least error of a group over all pairs of a scale of either sign and a bias in a window: scales as [`share`] says, and the
/// line's range of codes lies within the group's range or around it, but for a step and a half at each end. Biases below 2⁻¹² of
/// a scale count as zero. `storable` are the values above zero in rising order.
fn best_pair<const REACH: i32>(block: &Block, most: f32, storable: &[f32]) -> f64 {
    let (x, low, high) = extremes_first(block.weights);
    let full = (high - low) / most;
    let (least, greatest) = (full * share(most).0, full * share(most).1);
    let between = |from: f32, to: f32| {
        let end = storable.partition_point(|&v| v <= to);
        &storable[storable.partition_point(|&v| v < from).min(end)..end]
    };
    let mut best = (block.error * (1.0 + ROUNDING)) as f32;
    let mut at = None;
    for &size in between(least, greatest) {
        let (outer, inner) = (low.min(high - most * size), low.max(high - most * size));
        for sign in [1.0, -1.0] {
            // Code 0 is at the bottom of a rising line, at the top of a falling one.
            let top = if sign > 0.0 { 0.0 } else { most * size };
            let (from, to) = (outer - 1.5 * size + top, inner + 1.5 * size + top);
            let floor = size / 4096.0;
            let below = between((-to).max(floor), -from).iter().map(|&b| -b);
            let above = between(from.max(floor), to).iter().copied();
            for bias in below.chain([0.0]).chain(above) {
                let error = line_error::<REACH>(&x, most, (sign * size, bias), best);
                if error <= best {
                    best = error;
                    at = Some((size, bias - top, outer, inner));
                }
            }
        }
    }
    let (size, bias, outer, inner) = at.expect("our own pair is within the window");
    assert!(least * 1.02 < size && size < greatest / 1.02, "the scale is on the border");
    assert!(
        outer - 1.4 * size < bias && bias < inner + 1.4 * size,
        "the bias is on the border: {bias} of {outer}..{inner}"
    );
    f64::from(best)
}

/// The least error of a group under real scale and minimum: the regression on the codes of each line of a fine raster.
fn best_line(x: &[f32], most: f32) -> f64 {
    let (x, low, high) = extremes_first(x);
    let (least, greatest) = share(most);
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let squares: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    let mut gain = 0.0_f32;
    for i in 0..=240 {
        let size = (high - low) / most * (least + (greatest - least) * i as f32 / 240.0);
        let (outer, inner) = (low.min(high - most * size), low.max(high - most * size));
        let (from, to) = (outer - 1.5 * size, inner + 1.5 * size);
        let steps = ((to - from) / size * 25.0).ceil() as i32;
        for j in 0..=steps {
            let bias = from + (to - from) * j as f32 / steps as f32;
            let inverse = 1.0 / size;
            let (mut q1, mut qq, mut qx) = (0.0, 0.0, 0.0);
            for &x in &x {
                let code = rounded((x - bias) * inverse).max(0.0).min(most);
                (q1, qq, qx) = (q1 + code, qq + code * code, qx + code * (x - mean));
            }
            let variance = qq - q1 * q1 / x.len() as f32;
            if variance > 0.0 {
                gain = gain.max(qx * qx / variance);
            }
        }
    }
    f64::from(squares - gain)
}

/// Groups of a super-block whose scales are d · sub-scale and minima dmin · sub-minimum, both 0..=`limit`: the least error with d and
/// dmin on a raster of half floats around ours, which are at byte `steps`, and each group's best of all pairs; and the sum of
/// the groups' [`best_line`].
fn best_steps(block: &Block, group: usize, most: f32, limit: usize, steps: usize) -> [f64; 2] {
    let groups: Vec<Vec<f32>> = block.weights.chunks(group).map(|x| extremes_first(x).0).collect();
    let floors: Vec<f64> = groups.iter().map(|x| best_line(x, most)).collect();
    let bound: f64 = floors.iter().sum();
    let near = |at: usize| {
        let bits = i32::from(u16::from_le_bytes([block.bytes[at], block.bytes[at + 1]]));
        // One to two percent apart in normal numbers, in the order of their distance.
        let offsets = (0..=RASTER).flat_map(|k| [k, -k]).skip(1).map(move |k| bits + 16 * k);
        offsets.filter(|bits| (1..0x7c00).contains(bits)).map(|bits| f16::from_bits(bits as u16).to_f32())
    };
    let mut best = block.error * (1.0 + ROUNDING);
    let mut found = f64::INFINITY;
    for d in near(steps) {
        for dmin in near(steps + 2) {
            let mut left = best - 0.999 * bound;
            for (x, floor) in groups.iter().zip(&floors) {
                let allowed = 0.999 * floor + left;
                let mut error = f32::INFINITY;
                for scale in 1..=limit {
                    for min in 0..=limit {
                        let line = (d * scale as f32, -dmin * min as f32);
                        error = error.min(line_error::<0>(x, most, line, error.min(allowed as f32)));
                    }
                }
                left = allowed - f64::from(error);
                if left < 0.0 {
                    break;
                }
            }
            if left >= 0.0 {
                best -= left;
                found = best;
            }
        }
    }
    [found, bound]
}

/// Half floats to either side of ours that [`best_steps`] tries, sixteen places apart.
const RASTER: i32 = 12;

#[test]
#[ignore = "an exhaustive search, which takes more than a minute"]
fn errors_against_the_optimum() {
    println!("| | format | against | normal: all | worst block | Student's t: all | worst block |");
    println!("|---|---|---|---|---|---|---|");
    let gguf = |name| table::gguf(name).expect("a type of GGUF");
    let halves = halves();

    let signed: Vec<f64> = halves.iter().flat_map(|&d| [d, -d]).collect();
    let powers: Vec<f64> = (0..=254).map(|code| f64::from(e8m0_to_f32(code))).collect();
    let small: Vec<f64> = (1..=126).map(|code| f64::from(e4m3_to_f32(code))).collect();
    let fp4 =
        || Grid::new([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].into_iter().flat_map(|v| [v, -v]).collect());
    let fp8 = (0..=255).map(e4m3_to_f32).filter(|v| !v.is_nan()).map(f64::from).collect();
    let mlx = |name| table::mlx(name).expect("a mode of MLX");
    for (format, group, grid, scales, most) in [
        (gguf("q4_0"), 32, integers(-8..=7), &signed, 1.2),
        (gguf("q5_0"), 32, integers(-16..=15), &signed, 1.2),
        (gguf("q8_0"), 32, integers(-127..=127), &signed, 1.2),
        (gguf("iq4_nl"), 32, iq4(), &signed, 1.05),
        (gguf("mxfp4"), 32, fp4(), &powers, 1.0 + ROUNDING),
        (gguf("nvfp4"), 16, fp4(), &small, 1.0 + ROUNDING),
        (mlx("mxfp4"), 32, fp4(), &powers, 1.0 + ROUNDING),
        (mlx("mxfp8"), 32, Grid::new(fp8), &powers, 1.0 + ROUNDING),
        (mlx("nvfp4"), 16, fp4(), &small, 1.0 + ROUNDING),
    ] {
        report(format, 64, ["every scale"], most, |block| {
            [block.weights.chunks(group).map(|x| best_scale(&grid, x, scales)).sum()]
        });
    }

    for (name, group, grid, limit) in [
        ("q3_k", 16, integers(-4..=3), 32.0),
        ("q6_k", 16, integers(-32..=31), 128.0),
        ("iq4_xs", 32, iq4(), 32.0),
    ] {
        report(gguf(name), 16, ["every d and sub-scale", "bound"], 1.1, |block| {
            best_step(&grid, block, group, limit, &halves)
        });
    }

    let of_half: Vec<f32> = halves.iter().map(|&d| d as f32).collect();
    for (name, most) in [("q4_1", 15.0), ("q5_1", 31.0)] {
        report(gguf(name), 16, ["every pair"], 1.2, |block| [best_pair::<0>(block, most, &of_half)]);
    }

    let of_brain: Vec<f32> = (0x80..0x7f80).map(|bits| bf16::from_bits(bits).to_f32()).collect();
    for bits in [2, 3, 4, 5, 6, 8] {
        let most = ((1 << bits) - 1) as f32;
        for group in [32, 64, 128] {
            let format = mlx_affine::affine(bits, group, &float::BF16).expect("a mode of MLX");
            // The encoder of 8 bits weighs the unrounded line's error as much as the one measured here.
            let factor = if bits == 8 { 2.0 } else { 1.3 };
            report(format, 16, ["every pair"], factor, |block| {
                [if bits == 8 {
                    best_pair::<2>(block, most, &of_brain)
                } else {
                    best_pair::<1>(block, most, &of_brain)
                }]
            });
        }
    }

    for (name, group, most, limit, steps) in
        [("q2_k", 16, 3.0, 15, 80), ("q4_k", 32, 15.0, 63, 0), ("q5_k", 32, 31.0, 63, 0)]
    {
        report(gguf(name), 16, ["d and dmin near ours", "bound"], 1.15, |block| {
            best_steps(block, group, most, limit, steps)
        });
    }
}

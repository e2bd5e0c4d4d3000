//! Matrix product `out = x · wᵀ` in block fixed point: twice the products per instruction of `f32`, and less noise than half
//! floats make.
//!
//! A row is cut into blocks of [`BLOCK`] columns. The elements of a block are 16-bit integers that share an `f32` scale; the
//! sum of a block's products is exact in 32 bits, and the blocks' sums are added in `f32`, in rising order, each by one fused
//! multiply-add with the product of the two scales. So every output's bits depend on nothing but its row of `x` and its row of
//! `w`. A block in which a value is NaN or infinite makes NaN of every product.
//!
//! No sum overflows: the integers of a token's block are at most [`TOKEN_LARGEST`], and those of a weight's block sum up, in
//! magnitude, to at most `i32::MAX / TOKEN_LARGEST`. The first sets the tokens' scale, max |x| / `TOKEN_LARGEST`; the second the
//! weights', Σ |w| / [`WEIGHTS_SUM`], in which [`ROUNDING`] is left for the rounding to integers. (Weights' integers have 16 bits
//! too, so a block of one large weight is scaled by max |w| / `i16::MAX` if that is more.)
//!
//! Rounding to integers adds noise of √⅟₁₂ of the scale to every element. Of normal values, that is 4.6e-5 of the tokens' and
//! 1.1e-4 of the weights' root mean square; to half floats it is 2.1e-4.

use crate::gemm::load_part;
use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};
pub use crate::tile::GROUP;
use crate::tile::{Operand, PANEL, Tile};

/// Columns that share a scale.
const BLOCK: usize = 64;

/// Lines of a block: its scales, and pairs of columns.
const LINES: usize = 1 + BLOCK / 2;

/// Blocks taken at a time: their part of a group (12 KiB) stays in the first-level cache.
const BLOCKS: usize = 8;

/// Panels taken at a time: with [`BLOCKS`], 512 KiB that stay in the second-level cache for all tokens.
const PANEL_BLOCK: usize = 16;

/// The largest integer of a token's block. One bit more for tokens is one less for weights: this is best for activations as
/// language models have them, some of which are far larger than the others.
const TOKEN_LARGEST: i32 = (1 << 14) - 1;

/// What the magnitudes of a weight's block sum up to before they are rounded to integers.
const WEIGHTS_SUM: i32 = i32::MAX / TOKEN_LARGEST - ROUNDING;

/// What rounding may add to that sum: a half for each column, and less than one for the rounding of sum, scale and quotients in
/// `f32` (2⁻²⁴ for each of the sum's 64 additions and the three operations after it, of a sum below 2¹⁷).
const ROUNDING: i32 = BLOCK as i32 / 2 + 1;

/// Rows `[rows][k]` in fixed point as [`round`] leaves them, [`PANEL`] rows of weights or [`GROUP`] tokens at a time:
/// `[rows / PITCH rounded up][line][PITCH]`. The lines of a block are one of scales (the bits of an `f32`) and one for each pair
/// of columns: the first in the low half of a word, the second in the high half.
#[derive(Clone, Copy)]
pub struct Rounded<'a, const PITCH: usize> {
    words: &'a [i32],
    rows: usize,
    k: usize,
}

/// Weights in fixed point.
pub type Weights<'a> = Rounded<'a, PANEL>;
/// Activations in fixed point.
pub type Tokens<'a> = Rounded<'a, GROUP>;

fn lines(k: usize) -> usize {
    k.div_ceil(BLOCK) + k.div_ceil(2)
}

impl<'a, const PITCH: usize> Rounded<'a, PITCH> {
    /// Words that [`round`] writes for rows `[rows][k]`.
    pub fn len(rows: usize, k: usize) -> usize {
        rows.div_ceil(PITCH) * lines(k) * PITCH
    }

    /// What [`round`] wrote for rows `[rows][k]`.
    pub fn new(words: &'a [i32], rows: usize, k: usize) -> Rounded<'a, PITCH> {
        assert_eq!(words.len(), Self::len(rows, k));
        Rounded { words, rows, k }
    }
}

/// Rounds `weights` `[rows][k]` to `out`, which has [`Weights::len`] words.
pub fn round_weights(isa: Isa, weights: Matrix, out: &mut [i32]) {
    assert_eq!(out.len(), Weights::len(weights.rows, weights.columns));
    isa.run(Round::<PANEL> { rows: weights, weights: true, out });
}

/// Rounds `tokens` `[rows][k]` to `out`, which has [`Tokens::len`] words.
pub fn round_tokens(isa: Isa, tokens: Matrix, out: &mut [i32]) {
    assert_eq!(out.len(), Tokens::len(tokens.rows, tokens.columns));
    isa.run(Round::<GROUP> { rows: tokens, weights: false, out });
}

struct Round<'a, const PITCH: usize> {
    rows: Matrix<'a>,
    weights: bool,
    out: &'a mut [i32],
}

impl<const PITCH: usize> Kernel for Round<'_, PITCH> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.rows.columns;
        if k == 0 {
            return;
        }
        let mut columns = [s.splat(0.0); BLOCK];
        for (index, out) in self.out.chunks_exact_mut(lines(k) * PITCH).enumerate() {
            for start in (0..PITCH).step_by(LANES) {
                let first = (index * PITCH + start).min(self.rows.rows);
                let rows = self.rows.part(first, (self.rows.rows - first).min(LANES.min(PITCH - start)));
                for (block, out) in out.chunks_mut(LINES * PITCH).enumerate() {
                    let first = block * BLOCK;
                    let width = (k - first).min(BLOCK);
                    load_columns(s, rows, first, &mut columns[..width.next_multiple_of(LANES)]);
                    let columns = &columns[..width.next_multiple_of(2)];
                    round_block::<S, PITCH>(s, columns, self.weights, &mut out[start..]);
                }
            }
        }
    }
}

/// Columns of up to sixteen rows from `first` on, zero where there is none.
#[inline(always)]
fn load_columns<S: Simd>(s: S, rows: Matrix, first: usize, out: &mut [S::F32]) {
    for (k, square) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        *square = [s.splat(0.0); LANES];
        for (r, v) in square.iter_mut().enumerate().take(rows.rows) {
            let row = &rows.row(r)[first + k * LANES..];
            *v = match row.first_chunk() {
                Some(lanes) => s.load(lanes),
                None => load_part(s, row),
            };
        }
        s.transpose(square);
    }
}

/// Rounds a block of up to sixteen rows, whose columns are given, to lines that are `PITCH` apart.
#[inline(always)]
fn round_block<S: Simd, const PITCH: usize>(s: S, columns: &[S::F32], weights: bool, out: &mut [i32]) {
    let (mut largest, mut sum) = (s.splat(0.0), s.splat(0.0));
    for &column in columns {
        let magnitude = s.abs(column);
        largest = s.max(magnitude, largest);
        sum = s.add(sum, magnitude);
    }
    let scale = if weights {
        let by_sum = s.div(sum, s.splat(WEIGHTS_SUM as f32));
        s.max(by_sum, s.div(largest, s.splat(f32::from(i16::MAX))))
    } else {
        s.div(largest, s.splat(TOKEN_LARGEST as f32))
    };
    let scale = s.max(scale, s.splat(f32::MIN_POSITIVE));
    let finite = s.lt(sum, s.splat(f32::INFINITY));
    let inverse = s.div(s.splat(1.0), scale);
    store(s, s.bits(s.select(finite, scale, s.splat(f32::NAN))), 0, PITCH, out);
    let low = s.splat_i(0xffff);
    for (line, pair) in columns.as_chunks::<2>().0.iter().enumerate() {
        let a = s.to_i32(s.select(finite, s.mul(pair[0], inverse), s.splat(0.0)));
        let b = s.to_i32(s.select(finite, s.mul(pair[1], inverse), s.splat(0.0)));
        store(s, s.or_i(s.and_i(a, low), s.shl_i::<16>(b)), line + 1, PITCH, out);
    }
}

/// Stores to the beginning of a line as many lanes as there is room for: what goes beyond a line, the next one overwrites.
#[inline(always)]
fn store<S: Simd>(s: S, v: S::I32, line: usize, pitch: usize, out: &mut [i32]) {
    let out = &mut out[line * pitch..];
    match out.first_chunk_mut() {
        Some(lanes) => s.store_i(v, lanes),
        None => {
            let mut lanes = [0; LANES];
            s.store_i(v, &mut lanes);
            let room = out.len();
            out.copy_from_slice(&lanes[..room]);
        }
    }
}

/// `out[t][n] = Σ x[t][k] · w[n][k]` for `x` `[tokens][k]`, weights `[rows][k]` and `out` `[tokens][rows]`.
pub fn multiply(isa: Isa, x: Tokens, weights: Weights, out: MatrixMut) {
    assert_eq!(x.k, weights.k);
    assert_eq!(x.rows, out.rows);
    assert_eq!(out.columns, weights.rows);
    isa.run(Multiply { x, weights, out });
}

struct Multiply<'a> {
    x: Tokens<'a>,
    weights: Weights<'a>,
    out: MatrixMut<'a>,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (x, weights) = (self.x, self.weights);
        let lines = lines(x.k);
        if lines == 0 {
            for t in 0..x.rows {
                self.out.row(t).fill(0.0);
            }
        }
        let panels = weights.words.as_chunks::<PANEL>().0;
        let groups = x.words.as_chunks::<GROUP>().0;
        let count = weights.rows.div_ceil(PANEL);
        for first_panel in (0..count).step_by(PANEL_BLOCK) {
            for first_line in (0..lines).step_by(BLOCKS * LINES) {
                let some = first_line..lines.min(first_line + BLOCKS * LINES);
                for token in (0..x.rows).step_by(GROUP) {
                    let tokens = (x.rows - token).min(GROUP);
                    let group = &groups[token / GROUP * lines..][..lines][some.clone()];
                    for panel in first_panel..count.min(first_panel + PANEL_BLOCK) {
                        let rows = &panels[panel * lines..][..lines][some.clone()];
                        for part in 0..PANEL / LANES / S::TILE_VECTORS {
                            let row = panel * PANEL + part * S::TILE_VECTORS * LANES;
                            if row >= weights.rows {
                                break;
                            }
                            for t in (0..tokens).step_by(S::TILE_TOKENS) {
                                let tile = Tile {
                                    x: group,
                                    first: t,
                                    weights: rows,
                                    part,
                                    resume: first_line > 0,
                                    out: &mut self.out.values[(token + t) * self.out.stride + row..],
                                    stride: self.out.stride,
                                    rows: (weights.rows - row).min(S::TILE_VECTORS * LANES),
                                };
                                tile.dispatch(s, (tokens - t).min(S::TILE_TOKENS));
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Operand for i32 {
    #[inline(always)]
    fn accumulate<S: Simd, const TOKENS: usize, const VECTORS: usize>(
        s: S,
        tile: &Tile<i32>,
        sums: &mut [[S::F32; VECTORS]; TOKENS],
    ) {
        for (x, weights) in tile.x.chunks(LINES).zip(tile.weights.chunks(LINES)) {
            let mut dots = [[s.splat_i(0); VECTORS]; TOKENS];
            for (x, weights) in x[1..].iter().zip(&weights[1..]) {
                let weights = &weights.as_chunks().0[tile.part * VECTORS..][..VECTORS];
                let weights: [S::I32; VECTORS] = std::array::from_fn(|v| s.load_i(&weights[v]));
                for (t, dots) in dots.iter_mut().enumerate() {
                    let x = s.splat_i(x[tile.first + t]);
                    for (dot, w) in dots.iter_mut().zip(weights) {
                        *dot = s.dot_i16(x, w, *dot);
                    }
                }
            }
            let scales = &weights[0].as_chunks().0[tile.part * VECTORS..][..VECTORS];
            let scales: [S::F32; VECTORS] = std::array::from_fn(|v| s.from_bits(s.load_i(&scales[v])));
            for (t, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                let x = s.splat(f32::from_bits(x[0][tile.first + t] as u32));
                for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(scales) {
                    *sum = s.mul_add(s.to_f32(dot), s.mul(x, scale), *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::noise;

    fn product(isa: Isa, x: Matrix, w: Matrix) -> Vec<f32> {
        let mut weights = vec![-1; Weights::len(w.rows, w.columns)];
        round_weights(isa, w, &mut weights);
        let mut tokens = vec![-1; Tokens::len(x.rows, x.columns)];
        round_tokens(isa, x, &mut tokens);
        let mut out = vec![f32::NAN; x.rows * w.rows];
        multiply(
            isa,
            Tokens::new(&tokens, x.rows, x.columns),
            Weights::new(&weights, w.rows, w.columns),
            MatrixMut::dense(&mut out, x.rows, w.rows),
        );
        out
    }

    /// A block of a row in fixed point, by the definition.
    fn block(values: &[f32], weights: bool) -> (f32, Vec<i64>) {
        let largest = values.iter().fold(0f32, |max, x| max.max(x.abs()));
        let by_largest = largest / if weights { 32767.0 } else { 16383.0 };
        let sum = values.iter().fold(0f32, |sum, x| sum + x.abs());
        let scale = if weights { by_largest.max(sum / 131_047.0) } else { by_largest };
        let scale = scale.max(f32::MIN_POSITIVE);
        let inverse = 1.0 / scale;
        (scale, values.iter().map(|x| (x * inverse).round_ties_even() as i64).collect())
    }

    /// The product of two rows by the definition, and how far it may be from the exact one: half a scale for every element, times
    /// what it is multiplied with.
    fn dot(x: &[f32], w: &[f32]) -> (f32, f64) {
        let (mut sum, mut bound) = (0f32, 0f64);
        for (x, w) in x.chunks(64).zip(w.chunks(64)) {
            let ((x_scale, xi), (w_scale, wi)) = (block(x, false), block(w, true));
            let dot =
                i32::try_from(xi.iter().zip(&wi).map(|(x, w)| x * w).sum::<i64>()).expect("no overflow");
            // No partial sum overflows either, whatever the signs.
            let worst: i64 = wi.iter().map(|w| i64::from(TOKEN_LARGEST) * w.abs()).sum();
            assert!(worst <= i64::from(i32::MAX) && wi.iter().all(|w| w.abs() <= 32767), "{worst}");
            sum = (dot as f32).mul_add(x_scale * w_scale, sum);
            let (x_half, w_half) = (f64::from(x_scale) * 0.5001, f64::from(w_scale) * 0.5001);
            for (&x, &w) in x.iter().zip(w) {
                let (x, w) = (f64::from(x.abs()), f64::from(w.abs()));
                bound += x_half * w + w_half * x + x_half * w_half + 1e-6 * x * w;
            }
        }
        (sum, bound)
    }

    fn check(x: &[f32], w: &[f32], tokens: usize, k: usize, rows: usize, what: &str) {
        let mut want = vec![0f32; tokens * rows];
        for (at, want) in want.iter_mut().enumerate() {
            let (x, w) = (&x[at / rows * k..][..k], &w[at % rows * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            let (sum, bound) = dot(x, w);
            assert!((f64::from(sum) - exact).abs() <= bound, "{what}: {sum} {exact} {bound}");
            *want = sum;
        }
        for isa in Isa::available() {
            let got = product(isa, Matrix::dense(x, tokens, k), Matrix::dense(w, rows, k));
            assert!(
                got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{}: {what}, {tokens} tokens, k {k}, {rows} rows",
                isa.name()
            );
        }
    }

    #[test]
    fn every_element_is_what_the_definition_says_on_every_instruction_set() {
        // Token counts around the tiles, k around the blocks, rows around panels and blocks of panels.
        let shapes = [
            (1, 1, 1),
            (2, 16, 31),
            (3, 63, 32),
            (5, 64, 8),
            (7, 65, 64),
            (11, 30, 40),
            (12, 513, 32),
            (13, 40, 530),
            (25, 127, 1),
            (26, 1100, 65),
        ];
        for (tokens, k, rows) in shapes {
            check(&noise(tokens * k, 1), &noise(rows * k, 2), tokens, k, rows, "noise");
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let k = 130;
        let rows: Vec<Vec<f32>> = vec![
            vec![1.0; k],
            vec![-1.0; k],
            (0..k).map(|i| if i % 2 == 0 { 3.0 } else { -3.0 }).collect(),
            // Halves of a step, all rounded up: the least and the most that a sum can gain.
            (0..k).map(|i| if i % 64 == 0 { 100.0 } else { 1e-4 }).collect(),
            (0..k).map(|i| if i % 64 == 0 { 131_047.0 - 31.5 } else { 0.5000001 }).collect(),
            (0..k).map(|i| if i % 64 == 0 { -7e18 } else { 0.0 }).collect(),
            vec![0.0; k],
            vec![-0.0; k],
            vec![f32::from_bits(1); k],
            vec![f32::from_bits(0x007f_ffff); k],
            vec![f32::MIN_POSITIVE; k],
            noise(k, 3).iter().map(|x| x * 1e-38).collect(),
            noise(k, 4).iter().map(|x| x.powi(9) * 1e4).collect(),
        ];
        let rows: Vec<f32> = rows.concat();
        let count = rows.len() / k;
        check(&rows, &rows, count, k, count, "extremes");
    }

    #[test]
    fn noise_is_less_than_that_of_half_floats() {
        // Sums of uniform numbers are almost normal. Every 64th column is thirty times the others.
        let (tokens, k, rows) = (24, 1536, 64);
        let normal = |n: usize, seed| -> Vec<f32> {
            noise(12 * n, seed).as_chunks::<12>().0.iter().map(|x| x.iter().sum()).collect()
        };
        let w: Vec<f32> = normal(rows * k, 5).iter().map(|&w| half::f16::from_f32(w).to_f32()).collect();
        for (outlier, limit) in [(1.0, 1.4e-4), (30.0, 2.0e-4)] {
            let mut x = normal(tokens * k, 6);
            x.iter_mut().step_by(64).for_each(|x| *x *= outlier);
            let got = product(Isa::detect(), Matrix::dense(&x, tokens, k), Matrix::dense(&w, rows, k));
            let (mut error, mut half_error, mut energy) = (0.0, 0.0, 0.0);
            for (at, &got) in got.iter().enumerate() {
                let pairs = || x[at / rows * k..][..k].iter().zip(&w[at % rows * k..][..k]);
                let exact: f64 = pairs().map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let halves: f64 =
                    pairs().map(|(&x, &w)| half::f16::from_f32(x).to_f64() * f64::from(w)).sum();
                error += (f64::from(got) - exact).powi(2);
                half_error += (halves - exact).powi(2);
                energy += exact * exact;
            }
            let (error, half_error) = ((error / energy).sqrt(), (half_error / energy).sqrt());
            assert!(
                error < limit && error < half_error,
                "{outlier}: {error:.2e}, half floats {half_error:.2e}"
            );
        }
    }

    #[test]
    fn what_is_no_number_is_not_hidden() {
        let (tokens, k, rows) = (14, 100, 33);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut w) = (noise(tokens * k, 7), noise(rows * k, 8));
            x[13 * k + 70] = bad;
            w[32 * k + 99] = bad;
            for isa in Isa::available() {
                let got = product(isa, Matrix::dense(&x, tokens, k), Matrix::dense(&w, rows, k));
                for (at, got) in got.into_iter().enumerate() {
                    let spoilt = at / rows == 13 || at % rows == 32;
                    assert_eq!(got.is_nan(), spoilt, "{} {bad} {at}: {got}", isa.name());
                }
            }
        }
    }

    #[test]
    fn reads_and_writes_parts_of_wider_matrices() {
        let (tokens, k, rows) = (14, 70, 35);
        let (x_stride, out_stride, x_offset, out_offset) = (77, 50, 5, 9);
        let (wide, w) = (noise(tokens * x_stride, 9), noise(rows * k, 10));
        let dense: Vec<f32> =
            (0..tokens).flat_map(|t| wide[t * x_stride + x_offset..][..k].to_vec()).collect();
        let isa = Isa::detect();
        let want = product(isa, Matrix::dense(&dense, tokens, k), Matrix::dense(&w, rows, k));
        let x = Matrix { values: &wide[x_offset..], rows: tokens, columns: k, stride: x_stride };
        let mut words = [vec![0; Tokens::len(tokens, k)], vec![0; Weights::len(rows, k)]];
        round_tokens(isa, x, &mut words[0]);
        round_weights(isa, Matrix::dense(&w, rows, k), &mut words[1]);
        let (x, w) = (Tokens::new(&words[0], tokens, k), Weights::new(&words[1], rows, k));
        let mut out = vec![7.0; tokens * out_stride];
        multiply(
            isa,
            x,
            w,
            MatrixMut { values: &mut out[out_offset..], rows: tokens, columns: rows, stride: out_stride },
        );
        for (at, &got) in out.iter().enumerate() {
            let (t, n) = (at / out_stride, (at % out_stride).wrapping_sub(out_offset));
            assert_eq!(got, if n < rows { want[t * rows + n] } else { 7.0 });
        }
    }

    #[test]
    fn an_empty_sum_is_zero_and_no_tokens_are_no_work() {
        let isa = Isa::detect();
        let mut out = [5.0; 6];
        multiply(isa, Tokens::new(&[], 2, 0), Weights::new(&[], 3, 0), MatrixMut::dense(&mut out, 2, 3));
        assert_eq!(out, [0.0; 6]);
        let words = [0; 64];
        multiply(isa, Tokens::new(&[], 0, 2), Weights::new(&words, 3, 2), MatrixMut::dense(&mut [], 0, 3));
    }
}

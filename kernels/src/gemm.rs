//! Matrix product `out = x · wᵀ` of activations and weights, in `f32`.
//!
//! Weights are packed once into panels of [`PANEL`] rows, so that the innermost loop reads them in order; a tile of tokens
//! by one panel stays in registers while k runs (Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication", 2008). Every output element is one chain of fused multiply-adds over k in rising order, beginning at
//! zero: its bits depend on nothing but its row of `x` and its row of `w`.

use std::cell::Cell;

use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};
pub use crate::tile::PANEL;
use crate::tile::{GROUP, Operand, Tile};

/// Tokens taken at a time: interleaved, with [`K_BLOCK`] columns 216 KiB of the second-level cache.
const TOKEN_BLOCK: usize = 8 * GROUP;

/// Columns taken at a time, at most: an interleaved group (27 KiB) stays in the first-level cache.
const K_BLOCK: usize = 576;

/// Bytes of panels taken at a time: they stay in the second-level cache for all tokens.
const PANELS_BLOCK: usize = 512 << 10;

/// Weights `[rows][k]` as [`pack`] leaves them: `[rows / 32 rounded up][k][32]`, rows beyond the last zero.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    values: &'a [f32],
    rows: usize,
    k: usize,
    /// Elements from the beginning of one panel to that of the next.
    stride: usize,
}

impl<'a> Panels<'a> {
    /// Elements that [`pack`] writes for weights `[rows][k]`.
    pub fn len(rows: usize, k: usize) -> usize {
        rows.div_ceil(PANEL) * k * PANEL
    }

    /// What [`pack`] wrote for weights `[rows][k]`.
    pub fn new(values: &'a [f32], rows: usize, k: usize) -> Panels<'a> {
        assert_eq!(values.len(), Panels::len(rows, k));
        Panels { values, rows, k, stride: k * PANEL }
    }

    /// Rows `first .. first + rows`; `first` begins a panel.
    pub(crate) fn rows(self, first: usize, rows: usize) -> Panels<'a> {
        assert!(first.is_multiple_of(PANEL) && first + rows <= self.rows);
        Panels { values: &self.values[first / PANEL * self.stride..], rows, ..self }
    }

    /// Columns `first .. first + k`.
    pub(crate) fn columns(self, first: usize, k: usize) -> Panels<'a> {
        assert!(first + k <= self.k);
        Panels { values: &self.values[first * PANEL..], k, ..self }
    }
}

/// Packs `weights` `[rows][k]` into `packed`, which has [`Panels::len`] elements.
pub fn pack(isa: Isa, weights: Matrix, packed: &mut [f32]) {
    assert_eq!(packed.len(), Panels::len(weights.rows, weights.columns));
    isa.run(Pack { weights, packed });
}

struct Pack<'a> {
    weights: Matrix<'a>,
    packed: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let k = self.weights.columns;
        if k == 0 {
            return;
        }
        for (index, panel) in self.packed.chunks_exact_mut(k * PANEL).enumerate() {
            for half in 0..PANEL / LANES {
                let first = (index * PANEL + half * LANES).min(self.weights.rows);
                let rows = self.weights.part(first, (self.weights.rows - first).min(LANES));
                interleave::<S, PANEL>(s, rows, 0, &mut panel[half * LANES..]);
            }
        }
    }
}

/// Writes columns of up to sixteen rows to runs of [`LANES`] elements, `PITCH` apart: `out[k * PITCH + r]` is column
/// `first + k` of row `r`, zero where there is no row. As many columns as `out` has runs, the last of which may end early.
#[inline(always)]
fn interleave<S: Simd, const PITCH: usize>(s: S, rows: Matrix, first: usize, out: &mut [f32]) {
    let columns = (out.len().saturating_sub(LANES)) / PITCH + 1;
    for k in (0..columns).step_by(LANES) {
        let here = (columns - k).min(LANES);
        let mut square = [s.splat(0.0); LANES];
        for (r, v) in square.iter_mut().enumerate().take(rows.rows) {
            let row = &rows.row(r)[first + k..];
            *v = match row.first_chunk() {
                Some(lanes) => s.load(lanes),
                None => load_part(s, row),
            };
        }
        s.transpose(&mut square);
        for (i, v) in square.into_iter().enumerate().take(here) {
            if let Some(lanes) = out[(k + i) * PITCH..].first_chunk_mut() {
                s.store(v, lanes);
            }
        }
    }
}

/// Fewer than sixteen elements, and zeros.
#[inline(always)]
pub(crate) fn load_part<S: Simd>(s: S, values: &[f32]) -> S::F32 {
    let mut padded = [0.0; LANES];
    padded[..values.len()].copy_from_slice(values);
    s.load(&padded)
}

thread_local! {
    /// Memory for interleaved tokens.
    static INTERLEAVED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `out[t][n] = Σ x[t][k] · w[n][k]` for `x` `[tokens][k]`, packed weights `[rows][k]` and `out` `[tokens][rows]`.
pub fn multiply(isa: Isa, x: Matrix, weights: Panels, out: MatrixMut) {
    assert_eq!(x.columns, weights.k);
    assert_eq!(x.rows, out.rows);
    assert_eq!(out.columns, weights.rows);
    let mut interleaved = INTERLEAVED.take();
    let groups = x.rows.min(TOKEN_BLOCK).div_ceil(GROUP);
    let needed = groups * group_len(x.columns.min(K_BLOCK));
    if interleaved.len() < needed {
        interleaved.resize(needed, 0.0);
    }
    isa.run(Multiply { x, weights, out, interleaved: &mut interleaved });
    INTERLEAVED.set(interleaved);
}

/// Elements of an interleaved group of so many columns; the last column is stored as a whole vector too.
const fn group_len(columns: usize) -> usize {
    columns * GROUP + LANES - GROUP
}

struct Multiply<'a> {
    x: Matrix<'a>,
    weights: Panels<'a>,
    out: MatrixMut<'a>,
    interleaved: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (x, k) = (self.x, self.weights.k);
        if k == 0 {
            for t in 0..x.rows {
                self.out.row(t).fill(0.0);
            }
            return;
        }
        // Blocks of k as even as can be.
        let block = k.div_ceil(k.div_ceil(K_BLOCK));
        for token in (0..x.rows).step_by(TOKEN_BLOCK) {
            let tokens = x.part(token, (x.rows - token).min(TOKEN_BLOCK));
            for first_k in (0..k).step_by(block) {
                self.block(s, token, tokens, first_k, (k - first_k).min(block));
            }
        }
    }
}

impl Multiply<'_> {
    /// Some tokens, of which the first is `token`, by all panels, over one block of k.
    #[inline(always)]
    fn block<S: Simd>(&mut self, s: S, token: usize, tokens: Matrix, first_k: usize, columns: usize) {
        let group_len = group_len(columns);
        for (group, out) in self.interleaved.chunks_exact_mut(group_len).enumerate() {
            let first = group * GROUP;
            if first >= tokens.rows {
                break;
            }
            let group = tokens.part(first, (tokens.rows - first).min(GROUP));
            interleave::<S, GROUP>(s, group, first_k, out);
        }
        let weights = self.weights;
        let panels = weights.rows.div_ceil(PANEL);
        let some = (PANELS_BLOCK / (columns * PANEL * size_of::<f32>())).max(1);
        for first_panel in (0..panels).step_by(some) {
            for (group, x) in self.interleaved.chunks_exact(group_len).enumerate() {
                let first = group * GROUP;
                if first >= tokens.rows {
                    break;
                }
                let count = (tokens.rows - first).min(GROUP);
                for panel in first_panel..panels.min(first_panel + some) {
                    let rows = &weights.values[panel * weights.stride + first_k * PANEL..];
                    let rows = rows[..columns * PANEL].as_chunks().0;
                    for part in 0..PANEL / LANES / S::TILE_VECTORS {
                        let row = panel * PANEL + part * S::TILE_VECTORS * LANES;
                        if row >= weights.rows {
                            break;
                        }
                        for t in (0..count).step_by(S::TILE_TOKENS) {
                            let tile = Tile {
                                x: &x.as_chunks().0[..columns],
                                first: t,
                                weights: rows,
                                part,
                                resume: first_k > 0,
                                out: &mut self.out.values[(token + first + t) * self.out.stride + row..],
                                stride: self.out.stride,
                                rows: (weights.rows - row).min(S::TILE_VECTORS * LANES),
                            };
                            tile.dispatch(s, (count - t).min(S::TILE_TOKENS));
                        }
                    }
                }
            }
        }
    }
}

impl Operand for f32 {
    #[inline(always)]
    fn accumulate<S: Simd, const TOKENS: usize, const VECTORS: usize>(
        s: S,
        tile: &Tile<f32>,
        sums: &mut [[S::F32; VECTORS]; TOKENS],
    ) {
        for (x, weights) in tile.x.iter().zip(tile.weights) {
            let weights = &weights.as_chunks().0[tile.part * VECTORS..][..VECTORS];
            let weights: [S::F32; VECTORS] = std::array::from_fn(|v| s.load(&weights[v]));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(x[tile.first + t]);
                for (sum, w) in sums.iter_mut().zip(weights) {
                    *sum = s.mul_add(x, w, *sum);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::simd::Scalar;

    /// Uniform numbers from -1 to 1.
    pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn product(isa: Isa, x: Matrix, w: Matrix) -> Vec<f32> {
        let mut packed = vec![f32::NAN; Panels::len(w.rows, w.columns)];
        pack(isa, w, &mut packed);
        let mut out = vec![f32::NAN; x.rows * w.rows];
        multiply(isa, x, Panels::new(&packed, w.rows, w.columns), MatrixMut::dense(&mut out, x.rows, w.rows));
        out
    }

    #[test]
    fn packs_rows_into_panels_with_zeros_after_the_last() {
        let (rows, k) = (50, 37);
        let weights: Vec<f32> = (0..rows * k).map(|i| i as f32 + 1.0).collect();
        for isa in Isa::available() {
            let mut packed = vec![f32::NAN; Panels::len(rows, k)];
            assert_eq!(packed.len(), 64 * k);
            pack(isa, Matrix::dense(&weights, rows, k), &mut packed);
            for (at, &got) in packed.iter().enumerate() {
                let (row, column) = (at / (32 * k) * 32 + at % 32, at / 32 % k);
                let want = if row < rows { weights[row * k + column] } else { 0.0 };
                assert_eq!(got, want, "{} row {row} column {column}", isa.name());
            }
        }
    }

    #[test]
    fn every_element_is_one_chain_over_k_on_every_instruction_set() {
        // Token counts around the tiles, k around the blocks, rows around panels and blocks of panels.
        let shapes = [
            (1, 1, 1),
            (2, 16, 31),
            (3, 17, 32),
            (4, 575, 33),
            (5, 576, 8),
            (7, 577, 64),
            (11, 30, 40),
            (12, 1153, 32),
            (13, 600, 530),
            (25, 12, 1),
            (26, 300, 65),
            (109, 20, 50),
        ];
        for (tokens, k, rows) in shapes {
            let (x, w) = (noise(tokens * k, 1), noise(rows * k, 2));
            let mut chains = vec![0f32; tokens * rows];
            for (at, sum) in chains.iter_mut().enumerate() {
                let (x, w) = (&x[at / rows * k..][..k], &w[at % rows * k..][..k]);
                let mut exact = 0f64;
                for (&x, &w) in x.iter().zip(w) {
                    *sum = x.mul_add(w, *sum);
                    exact += f64::from(x) * f64::from(w);
                }
                assert!((f64::from(*sum) - exact).abs() < 1e-6 * k as f64);
            }
            for isa in Isa::available() {
                let got = product(isa, Matrix::dense(&x, tokens, k), Matrix::dense(&w, rows, k));
                assert!(
                    got.iter().zip(&chains).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{} {tokens} tokens, k {k}, {rows} rows",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn reads_and_writes_parts_of_wider_matrices() {
        let (tokens, k, rows) = (14, 20, 35);
        let (x_stride, out_stride, x_offset, out_offset) = (27, 50, 5, 9);
        let (wide, w) = (noise(tokens * x_stride, 3), noise(rows * k, 4));
        let dense: Vec<f32> =
            (0..tokens).flat_map(|t| wide[t * x_stride + x_offset..][..k].to_vec()).collect();
        let want = product(Isa::Scalar(Scalar), Matrix::dense(&dense, tokens, k), Matrix::dense(&w, rows, k));
        for isa in Isa::available() {
            let mut packed = vec![0.0; Panels::len(rows, k)];
            pack(isa, Matrix::dense(&w, rows, k), &mut packed);
            let mut out = vec![7.0; tokens * out_stride];
            multiply(
                isa,
                Matrix { values: &wide[x_offset..], rows: tokens, columns: k, stride: x_stride },
                Panels::new(&packed, rows, k),
                MatrixMut { values: &mut out[out_offset..], rows: tokens, columns: rows, stride: out_stride },
            );
            for (at, &got) in out.iter().enumerate() {
                let (t, n) = (at / out_stride, (at % out_stride).wrapping_sub(out_offset));
                assert_eq!(got, if n < rows { want[t * rows + n] } else { 7.0 });
            }
        }
    }

    #[test]
    fn an_empty_sum_is_zero_and_no_tokens_are_no_work() {
        let isa = Isa::detect();
        let mut out = [5.0; 6];
        multiply(isa, Matrix::dense(&[], 2, 0), Panels::new(&[], 3, 0), MatrixMut::dense(&mut out, 2, 3));
        assert_eq!(out, [0.0; 6]);
        let packed = [1.0; 64];
        multiply(isa, Matrix::dense(&[], 0, 2), Panels::new(&packed, 3, 2), MatrixMut::dense(&mut [], 0, 3));
    }
}

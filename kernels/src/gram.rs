//! Second moments of activations, `H = Xᵀ X`: what rounding with importance (the diagonal) or with error feedback (all of it,
//! [`crate::factor`]) minimises its error under.
//!
//! Every element is one chain of fused multiply-adds over tokens in rising order, so it does not depend on how tokens are cut
//! into calls nor rows into stripes. As the sum runs over rows of `X`, both operands of the product's [`Tile`] are packed by
//! plain copies.

use std::ops::Range;

use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::tile::{GROUP, PANEL, Tile};

/// Tokens taken at a time: a packed panel (72 KiB) stays in the second-level cache.
const TOKENS: usize = 576;

/// Adds `xᵀ x` of `x` `[tokens][k]` to rows `rows` of the lower triangle of a matrix `[k][k]`: `out` is those rows, each of `k`
/// elements, of which those beyond the diagonal mean nothing.
///
/// Stripes of rows are independent; a stripe should not be much narrower than a hundred rows.
pub fn accumulate(isa: Isa, x: Matrix, rows: Range<usize>, out: &mut [f32]) {
    assert!(rows.start <= rows.end && rows.end <= x.columns);
    assert_eq!(out.len(), rows.len() * x.columns);
    let out = MatrixMut { values: out, rows: rows.len(), columns: rows.end, stride: x.columns };
    isa.run(Accumulate { x, rows, out });
}

struct Accumulate<'a> {
    x: Matrix<'a>,
    rows: Range<usize>,
    out: MatrixMut<'a>,
}

impl Kernel for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let columns = 0..self.rows.end;
        products::<S, false>(s, self.x, self.rows, columns, &mut self.out, &mut Vec::new());
    }
}

/// Adds the products of columns `rows` of `x` with its columns `columns`, summed over the rows of `x`, to `out`
/// `[rows][columns]`; or subtracts them. Blocks of products that lie wholly beyond the diagonal are left out. `packed` is memory
/// to work in.
#[inline(always)]
pub(crate) fn products<S: Simd, const SUBTRACT: bool>(
    s: S,
    x: Matrix,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut MatrixMut,
    packed: &mut Vec<f32>,
) {
    let groups = rows.len().div_ceil(GROUP);
    packed.resize(TOKENS * (groups * GROUP + PANEL), 0.0);
    for token in (0..x.rows).step_by(TOKENS) {
        let x = x.part(token, (x.rows - token).min(TOKENS));
        let (left, panel) = packed.split_at_mut(TOKENS * groups * GROUP);
        for (group, left) in left.chunks_exact_mut(TOKENS * GROUP).enumerate() {
            pack::<GROUP, SUBTRACT>(x, rows.start + group * GROUP..rows.end, left);
        }
        for column in columns.clone().step_by(PANEL) {
            pack::<PANEL, false>(x, column..columns.end, panel);
            for (group, left) in left.chunks_exact(TOKENS * GROUP).enumerate() {
                let first = group * GROUP;
                let count = (rows.len() - first).min(GROUP);
                if rows.start + first + count <= column {
                    continue;
                }
                for part in 0..PANEL / LANES / S::TILE_VECTORS {
                    let at = column - columns.start + part * S::TILE_VECTORS * LANES;
                    if at >= columns.len() {
                        break;
                    }
                    for t in (0..count).step_by(S::TILE_TOKENS) {
                        let tile = Tile {
                            x: &left.as_chunks().0[..x.rows],
                            first: t,
                            weights: &panel.as_chunks().0[..x.rows],
                            part,
                            resume: true,
                            out: &mut out.values[(first + t) * out.stride + at..],
                            stride: out.stride,
                            rows: (columns.len() - at).min(S::TILE_VECTORS * LANES),
                        };
                        tile.dispatch(s, (count - t).min(S::TILE_TOKENS));
                    }
                }
            }
        }
    }
}

/// Copies up to `WIDTH` columns of `x` to runs of `WIDTH` elements, one for each row, zeros where there is no column.
#[inline(always)]
fn pack<const WIDTH: usize, const NEGATE: bool>(x: Matrix, columns: Range<usize>, packed: &mut [f32]) {
    let width = columns.len().min(WIDTH);
    for (row, packed) in packed.as_chunks_mut::<WIDTH>().0.iter_mut().take(x.rows).enumerate() {
        let row = &x.row(row)[columns.start..];
        match row.first_chunk() {
            Some(whole) if width == WIDTH => *packed = *whole,
            _ => {
                *packed = [0.0; WIDTH];
                packed[..width].copy_from_slice(&row[..width]);
            }
        }
        if NEGATE {
            for x in packed {
                *x = -*x;
            }
        }
    }
}

/// Adds the squares of each column of `x` `[tokens][k]` to `out` `[k]`: the diagonal of [`accumulate`], to the bit.
pub fn accumulate_diagonal(isa: Isa, x: Matrix, out: &mut [f32]) {
    assert_eq!(out.len(), x.columns);
    isa.run(Diagonal { x, out });
}

struct Diagonal<'a> {
    x: Matrix<'a>,
    out: &'a mut [f32],
}

impl Kernel for Diagonal<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for token in 0..self.x.rows {
            let (x, x_rest) = self.x.row(token).as_chunks::<LANES>();
            let (out, out_rest) = self.out.as_chunks_mut::<LANES>();
            for (x, out) in x.iter().zip(out) {
                let x = s.load(x);
                s.store(s.mul_add(x, x, s.load(out)), out);
            }
            for (x, out) in x_rest.iter().zip(out_rest) {
                *out = x.mul_add(*x, *out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::noise;

    #[test]
    fn every_element_is_one_chain_over_tokens_however_rows_and_tokens_are_cut() {
        for (tokens, k, stripe) in [(1, 1, 1), (5, 33, 7), (40, 50, 12), (600, 70, 33), (577, 101, 101)] {
            let x = noise(tokens * k, 5);
            let chain = |i: usize, j: usize| {
                x.chunks_exact(k).fold(0f32, |sum, row| row[i].mul_add(row[j], sum)).to_bits()
            };
            for isa in Isa::available() {
                let mut h = vec![0.0; k * k];
                let mut diagonal = vec![0.0; k];
                // In two calls, of which the second goes on with the sums of the first.
                for (first, count) in [(0, tokens / 3), (tokens / 3, tokens - tokens / 3)] {
                    let x = Matrix::dense(&x, tokens, k).part(first, count);
                    for (at, out) in h.chunks_mut(stripe * k).enumerate() {
                        let first = at * stripe;
                        accumulate(isa, x, first..first + out.len() / k, out);
                    }
                    accumulate_diagonal(isa, x, &mut diagonal);
                }
                for i in 0..k {
                    for j in 0..=i {
                        assert_eq!(h[i * k + j].to_bits(), chain(i, j), "{} {i} {j}", isa.name());
                    }
                    assert_eq!(diagonal[i].to_bits(), h[i * k + i].to_bits());
                }
            }
        }
    }
}

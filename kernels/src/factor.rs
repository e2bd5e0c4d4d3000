//! The factor of a layer's Hessian that rounding with error feedback ([`crate::feedback`]) works with.
//!
//! Rounding a row of weights by `δ = w − ŵ` changes its outputs by `δᵀ H δ`, where `H = Xᵀ X` ([`crate::gram`]). With `H = Lᵀ L`, `L`
//! lower triangular, that is `‖L δ‖² = Σ_j (L_jj δ_j + Σ_{i<j} L_ji δ_i)²`: once columns before `j` are rounded, the sum over them is
//! known, and column `j` makes up for it as well as its grid allows. That is GPTQ (Frantar et al., "GPTQ: Accurate
//! Post-Training Quantization for Generative Pre-trained Transformers", 2022), whose triangle is the inverse of this one, and
//! Babai's nearest plane in the lattice of `L`.

use crate::gram::products;
use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Rows that are eliminated together, whole vectors: a square of them stays near the first-level cache.
const BLOCK: usize = 96;

/// `H + damping · mean(diagonal) · 1 = Lᵀ L` of a symmetric matrix `H` `[k][k]` whose rows and columns were put in an order.
pub struct Factor {
    /// `[k][k]`: below and on the diagonal `L`, beyond it `H`.
    values: Vec<f32>,
    order: Vec<u32>,
    damping: f32,
}

/// A matrix that has no factor however it is damped: its diagonal has a negative, infinite or undefined element, or its other
/// elements are not those of second moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indefinite;

impl std::fmt::Display for Indefinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "no matrix of second moments: not positive definite even when damped by its diagonal's mean",
        )
    }
}

impl std::error::Error for Indefinite {}

/// The order in which to round columns: blocks of `block` columns by falling sum of `diagonal` (a column's second moment), within
/// each its columns by falling second moment. What is rounded early finds most columns still free to make up for it.
///
/// `diagonal` must be whole blocks.
pub fn order(diagonal: &[f32], block: usize) -> Vec<u32> {
    assert!(diagonal.len().is_multiple_of(block) && u32::try_from(diagonal.len()).is_ok());
    let mut blocks: Vec<(f64, Vec<u32>)> = Vec::with_capacity(diagonal.len() / block);
    for (at, part) in diagonal.chunks_exact(block).enumerate() {
        let mut columns: Vec<u32> = (0..block).map(|i| (at * block + i) as u32).collect();
        columns.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
        blocks.push((part.iter().map(|&x| f64::from(x)).sum(), columns));
    }
    blocks.sort_by(|a, b| b.0.total_cmp(&a.0));
    blocks.into_iter().flat_map(|(_, columns)| columns).collect()
}

impl Factor {
    /// Factors `hessian` `[k][k]`, of which the lower triangle is read, in its place. `order` says which row (and column) of it
    /// comes at each place; it must hold each of `0..k` once.
    ///
    /// `damping` is what is added to the diagonal, in units of its mean (of one, if that is zero). Where rounding errors make a pivot
    /// vanish nevertheless, it is raised tenfold, up to 1.
    ///
    /// # Errors
    /// [`Indefinite`] if that is not enough.
    pub fn new(isa: Isa, mut hessian: Vec<f32>, order: Vec<u32>, damping: f32) -> Result<Factor, Indefinite> {
        let k = order.len();
        assert_eq!(hessian.len(), k * k);
        let diagonal: Vec<f32> = order.iter().map(|&at| hessian[at as usize * (k + 1)]).collect();
        if !diagonal.iter().all(|&x| x >= 0.0 && x.is_finite()) {
            return Err(Indefinite);
        }
        let mean = diagonal.iter().map(|&x| f64::from(x)).sum::<f64>() / k.max(1) as f64;
        let unit = if mean > 0.0 { mean as f32 } else { 1.0 };
        mirror(&mut hessian, k, |values, lower, upper| values[upper] = values[lower]);
        permute(&mut hessian, &order);
        let mut factor = Factor { values: hessian, order, damping };
        loop {
            for (j, x) in diagonal.iter().enumerate() {
                factor.values[j * (k + 1)] = factor.damping.mul_add(unit, *x);
            }
            if isa.run(Eliminate { values: &mut factor.values, k }) {
                return Ok(factor);
            }
            if factor.damping >= 1.0 {
                return Err(Indefinite);
            }
            factor.damping = (factor.damping * 10.0).clamp(1e-6, 1.0);
            mirror(&mut factor.values, k, |values, lower, upper| values[lower] = values[upper]);
        }
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.order.len()
    }

    /// Which column comes at each place.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The damping it took.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// The row of `L` at place `j`: `j + 1` elements.
    #[inline(always)]
    pub fn row(&self, j: usize) -> &[f32] {
        &self.values[j * self.k()..][..=j]
    }
}

/// Calls `copy` for each pair of places that the diagonal mirrors, with the lower one first; in squares, so that neither side
/// strides through memory.
#[inline(always)]
fn mirror(values: &mut [f32], k: usize, copy: impl Fn(&mut [f32], usize, usize)) {
    for i0 in (0..k).step_by(LANES) {
        for j0 in (0..=i0).step_by(LANES) {
            for i in i0..k.min(i0 + LANES) {
                for j in j0..i.min(j0 + LANES) {
                    copy(values, i * k + j, j * k + i);
                }
            }
        }
    }
}

/// Row and column `order[at]` of a square matrix go to place `at`.
fn permute(values: &mut [f32], order: &[u32]) {
    let k = order.len();
    let mut saved = vec![0.0; k];
    for row in values.chunks_exact_mut(k.max(1)) {
        saved.copy_from_slice(row);
        for (x, &from) in row.iter_mut().zip(order) {
            *x = saved[from as usize];
        }
    }
    // Rows along the cycles of the permutation: each is filled from the next, the last from the first, which was saved.
    let mut done = vec![false; k];
    for first in 0..k {
        if done[first] {
            continue;
        }
        saved.copy_from_slice(&values[first * k..][..k]);
        let mut at = first;
        loop {
            done[at] = true;
            let from = order[at] as usize;
            if from == first {
                break;
            }
            assert!(!done[from], "an order holds each column once");
            values.copy_within(from * k..(from + 1) * k, at * k);
            at = from;
        }
        values[at * k..][..k].copy_from_slice(&saved);
    }
}

/// Turns the lower triangle of `values` `[k][k]` into its factor; whether every pivot was positive.
///
/// Row `m` of `L` is row `m` of `H` less the later rows of `L`, each times its element in column `m`, over the root of what that leaves
/// on the diagonal. The rows of a block come from the last up: first less all rows below the block (a matrix product), then
/// less each other.
struct Eliminate<'a> {
    values: &'a mut [f32],
    k: usize,
}

impl Kernel for Eliminate<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let k = self.k;
        let mut packed = Vec::new();
        let mut square = vec![[[0.0; LANES]; BLOCK / LANES]; BLOCK];
        let mut inverses = [0.0; BLOCK];
        for first in (0..k).step_by(BLOCK).rev() {
            let rows = first..k.min(first + BLOCK);
            let (above, below) = self.values.split_at_mut(rows.end * k);
            let below = Matrix { values: below, rows: k - rows.end, columns: rows.end, stride: k };
            let block = &mut above[first * k..];

            for (row, square) in block.chunks_exact(k).zip(&mut square) {
                square.as_flattened_mut()[..rows.len()].copy_from_slice(&row[rows.clone()]);
            }
            let mut out = MatrixMut {
                values: square.as_flattened_mut().as_flattened_mut(),
                rows: rows.len(),
                columns: rows.len(),
                stride: BLOCK,
            };
            products::<S, true>(s, below, rows.clone(), rows.clone(), &mut out, &mut packed);
            if !pivots(s, &mut square[..rows.len()], &mut inverses) {
                return false;
            }
            for (r, (row, square)) in block.chunks_exact_mut(k).zip(&square).enumerate() {
                row[first..=first + r].copy_from_slice(&square.as_flattened()[..=r]);
            }

            let mut out = MatrixMut { values: &mut *block, rows: rows.len(), columns: first, stride: k };
            products::<S, true>(s, below, rows.clone(), 0..first, &mut out, &mut packed);
            for column in (0..first).step_by(BLOCK) {
                solve(s, &square[..rows.len()], &inverses, &mut block[column..], k);
            }
        }
        true
    }
}

/// A block's own square: its factor, and the inverses of the diagonal. What lies beyond the diagonal is left in disorder.
#[inline(always)]
fn pivots<S: Simd>(s: S, square: &mut [[[f32; LANES]; BLOCK / LANES]], inverses: &mut [f32; BLOCK]) -> bool {
    for m in (0..square.len()).rev() {
        let (rows, later) = square.split_at_mut(m + 1);
        let row = &mut rows[m];
        let mut sums: [S::F32; BLOCK / LANES] = std::array::from_fn(|v| s.load(&row[v]));
        for later in later.iter().rev() {
            let factor = s.splat(later.as_flattened()[m]);
            for (sum, later) in sums.iter_mut().zip(later) {
                *sum = s.neg_mul_add(factor, s.load(later), *sum);
            }
        }
        for (sum, row) in sums.iter().zip(row.iter_mut()) {
            s.store(*sum, row);
        }
        let pivot = row.as_flattened()[m];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let root = pivot.sqrt();
        inverses[m] = 1.0 / root;
        for (sum, row) in sums.iter().zip(row.iter_mut()) {
            s.store(s.mul(*sum, s.splat(inverses[m])), row);
        }
        row.as_flattened_mut()[m] = root;
    }
    true
}

/// [`BLOCK`] columns left of a block's square, in rows `stride` apart.
#[inline(always)]
fn solve<S: Simd>(
    s: S,
    square: &[[[f32; LANES]; BLOCK / LANES]],
    inverses: &[f32; BLOCK],
    columns: &mut [f32],
    stride: usize,
) {
    const VECTORS: usize = BLOCK / LANES;
    for m in (0..square.len()).rev() {
        let here = &mut columns[m * stride..];
        let (row, later) = here.split_at_mut(stride.min(here.len()));
        let row: &mut [[f32; LANES]] = &mut row.as_chunks_mut().0[..VECTORS];
        let mut sums: [S::F32; VECTORS] = std::array::from_fn(|v| s.load(&row[v]));
        for (above, square) in square[m + 1..].iter().enumerate().rev() {
            let factor = s.splat(square.as_flattened()[m]);
            let later: &[[f32; LANES]] = &later[above * stride..].as_chunks().0[..VECTORS];
            for (sum, later) in sums.iter_mut().zip(later) {
                *sum = s.neg_mul_add(factor, s.load(later), *sum);
            }
        }
        for (sum, row) in sums.into_iter().zip(row) {
            s.store(s.mul(sum, s.splat(inverses[m])), row);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::gemm::tests::noise;
    use crate::gram::accumulate;

    /// Second moments of activations that vary together, `[k][k]`, the lower triangle: neighbours correlate, some columns are
    /// large, those that `dead` names are always zero.
    pub(crate) fn moments(k: usize, dead: &[usize]) -> Vec<f32> {
        let tokens = 3 * k;
        let mut x = noise(tokens * k, 7);
        for row in x.chunks_exact_mut(k) {
            for i in 1..k {
                row[i] += 0.8 * row[i - 1];
            }
            for i in 0..k {
                row[i] *= [1.0, 0.3, 4.0, 0.6, 1.1][i * 7 % 5];
            }
            dead.iter().for_each(|&i| row[i] = 0.0);
        }
        let mut h = vec![0.0; k * k];
        accumulate(Isa::detect(), Matrix::dense(&x, tokens, k), 0..k, &mut h);
        h
    }

    pub(crate) fn diagonal(h: &[f32], k: usize) -> Vec<f32> {
        (0..k).map(|i| h[i * k + i]).collect()
    }

    #[test]
    fn the_factor_times_itself_is_the_damped_matrix_in_the_order_asked_for() {
        for k in [5, 96, 97, 200, 320] {
            let h = moments(k, &[3]);
            let mut order: Vec<u32> = (0..k as u32).collect();
            order.reverse();
            order.rotate_left(k / 3);
            let damping = 0.01;
            let mean = diagonal(&h, k).iter().sum::<f32>() / k as f32;
            let mut bits: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let factor = Factor::new(isa, h.clone(), order.clone(), damping).unwrap();
                assert_eq!(factor.damping(), damping);
                for a in 0..k {
                    for b in 0..=a {
                        let got: f64 =
                            (a..k).map(|m| f64::from(factor.row(m)[a]) * f64::from(factor.row(m)[b])).sum();
                        let (i, j) = (order[a] as usize, order[b] as usize);
                        let mut want = h[i.max(j) * k + i.min(j)];
                        if a == b {
                            want += damping * mean;
                        }
                        assert!((got - f64::from(want)).abs() < 1e-5 * f64::from(mean) * 16.0, "{k} {a} {b}");
                    }
                }
                let these = (0..k).flat_map(|j| factor.row(j)).map(|x| x.to_bits()).collect();
                assert_eq!(*bits.get_or_insert_with(|| Vec::clone(&these)), these, "{}", isa.name());
            }
        }
    }

    #[test]
    fn a_singular_matrix_is_damped_until_it_has_a_factor() {
        let k = 40;
        let isa = Isa::detect();
        let order: Vec<u32> = (0..k as u32).collect();
        // One token only: rank one.
        let mut h = vec![0.0; k * k];
        accumulate(isa, Matrix::dense(&noise(k, 3), 1, k), 0..k, &mut h);
        let factor = Factor::new(isa, h.clone(), order.clone(), 0.0).unwrap();
        assert!(factor.damping() > 0.0 && factor.damping() < 1e-3);
        let zeros = Factor::new(isa, vec![0.0; k * k], order.clone(), 0.01).unwrap();
        assert!((0..k).all(|j| zeros.row(j)[j] == 0.1 && zeros.row(j)[..j].iter().all(|&x| x == 0.0)));

        h[k + 1] = f32::NAN;
        assert_eq!(Factor::new(isa, h.clone(), order.clone(), 0.01).err(), Some(Indefinite));
        h[k + 1] = 1.0;
        h[5 * k] = f32::NAN;
        assert_eq!(Factor::new(isa, h, order, 0.01).err(), Some(Indefinite));
    }

    #[test]
    fn large_columns_come_first_within_blocks_that_do() {
        let diagonal = [1.0, 2.0, 2.0, 0.0, 9.0, 8.0, 0.0, 0.0, 3.0, 4.0, 5.0, 5.0];
        assert_eq!(order(&diagonal, 4), [4, 5, 6, 7, 10, 11, 9, 8, 1, 2, 0, 3]);
    }
}

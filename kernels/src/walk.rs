//! The inner loops of rounding with error feedback ([`crate::feedback`]): a row of weights to a lane, a place in the factor's order
//! to a line.

use std::ops::Range;

use crate::factor::Factor;
use crate::float;
use crate::format::Format;
use crate::grid::nearest_code;
use crate::lattice::Levels;
use crate::mlx_affine::{self, dequantized};
use crate::scales::divisor;
use crate::simd::{Kernel, LANES, Simd};
use crate::stored::{Bf16, Half, Single, Stored};
use crate::w4a16;

/// Vectors of rows that are rounded side by side.
pub(crate) const VECTORS: usize = 2;

/// One place of sixteen rows.
pub(crate) type Lanes = [f32; LANES];

/// One place of all rows.
pub(crate) type Rows = [Lanes; VECTORS];

/// Places whose errors are taken at a time (32 KiB).
const ERRORS: usize = 256;

/// Adds `Σ_{i ∈ before} L_ji · errors[i]` to the sum of each place `j`. Ranges are whole vectors.
pub(crate) struct Project<'a> {
    pub factor: &'a Factor,
    pub places: Range<usize>,
    pub before: Range<usize>,
    /// Of all places.
    pub errors: &'a [Rows],
    /// Of `places`.
    pub sums: &'a mut [Rows],
}

impl Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in self.before.clone().step_by(ERRORS) {
            let before = first..self.before.end.min(first + ERRORS);
            let errors = &self.errors[before.clone()];
            for (at, sums) in self.sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let j = self.places.start + at * 8;
                let row = |r: usize| self.factor.row(j + r)[before.clone()].as_chunks().0;
                if S::TILE_VECTORS == 2 {
                    project::<S, 8, 2>(s, std::array::from_fn(row), errors, 0, sums);
                } else {
                    for (half, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        let rows = std::array::from_fn(|r| row(4 * half + r));
                        for v in 0..VECTORS {
                            project::<S, 4, 1>(s, rows, errors, v, sums);
                        }
                    }
                }
            }
        }
    }
}

/// The sums of some places and of some vectors, from the `first` on, stay in registers.
#[inline(always)]
fn project<S: Simd, const PLACES: usize, const WIDTH: usize>(
    s: S,
    rows: [&[Lanes]; PLACES],
    errors: &[Rows],
    first: usize,
    sums: &mut [Rows; PLACES],
) {
    let mut totals: [[S::F32; WIDTH]; PLACES] =
        std::array::from_fn(|r| std::array::from_fn(|v| s.load(&sums[r][first + v])));
    for (at, errors) in errors.as_chunks::<LANES>().0.iter().enumerate() {
        let rows: [&Lanes; PLACES] = std::array::from_fn(|r| &rows[r][at]);
        for (i, errors) in errors.iter().enumerate() {
            let errors: [S::F32; WIDTH] = std::array::from_fn(|v| s.load(&errors[first + v]));
            for (totals, row) in totals.iter_mut().zip(rows) {
                let factor = s.splat(row[i]);
                for (total, error) in totals.iter_mut().zip(errors) {
                    *total = s.mul_add(factor, error, *total);
                }
            }
        }
    }
    for (sums, totals) in sums.iter_mut().zip(totals) {
        for (v, total) in totals.into_iter().enumerate() {
            s.store(total, &mut sums[first + v]);
        }
    }
}

/// `out[j] = sums[j] + Σ_{i ≤ j} L_ji · values[i]` within a block whose first place is `first`.
pub(crate) struct Triangle<'a> {
    pub factor: &'a Factor,
    pub first: usize,
    pub sums: &'a [Rows],
    pub values: &'a [Rows],
    pub out: &'a mut [Rows],
}

impl Kernel for Triangle<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (j, (sums, out)) in self.sums.iter().zip(self.out).enumerate() {
            let row = &self.factor.row(self.first + j)[self.first..];
            let mut totals: [S::F32; VECTORS] = std::array::from_fn(|v| s.load(&sums[v]));
            for (factor, values) in row.iter().zip(self.values) {
                for (total, value) in totals.iter_mut().zip(values) {
                    *total = s.mul_add(s.splat(*factor), s.load(value), *total);
                }
            }
            for (total, out) in totals.into_iter().zip(out) {
                s.store(total, out);
            }
        }
    }
}

/// Scales for one block of each of sixteen rows, and what came of them.
#[derive(Clone)]
pub(crate) struct Candidate {
    /// The blocks as stored, one after the other in each plane.
    pub planes: Vec<Vec<u8>>,
    /// Of each group.
    pub scales: Vec<Lanes>,
    /// Of each group.
    pub offsets: Vec<Lanes>,
    /// The index of each place's level.
    pub indices: Vec<[u8; LANES]>,
    /// `L_jj` times how far each place was rounded from where it should be.
    pub residuals: Vec<Lanes>,
    /// The sum of their squares.
    pub loss: Lanes,
    /// What was rounded off each weight itself.
    pub errors: Vec<Lanes>,
}

impl Candidate {
    pub fn new(planes: &[usize], block: usize, groups: usize) -> Candidate {
        Candidate {
            planes: planes.iter().map(|bytes| vec![0; bytes * LANES]).collect(),
            scales: vec![[0.0; LANES]; groups],
            offsets: vec![[0.0; LANES]; groups],
            indices: vec![[0; LANES]; block],
            residuals: vec![[0.0; LANES]; block],
            loss: [0.0; LANES],
            errors: vec![[0.0; LANES]; block],
        }
    }
}

/// The float type in which a format is decoded: those of MLX's affine formats and of compressed-tensors in that of their scales.
#[derive(Clone, Copy)]
pub(crate) enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    pub fn of(format: &Format) -> Precision {
        match mlx_affine::scales_of(format).or_else(|| w4a16::scales_of(format)) {
            Some(scales) if *scales == float::BF16 => Precision::Bf16,
            Some(scales) if *scales == float::F16 => Precision::F16,
            _ => Precision::F32,
        }
    }
}

/// Candidates that are walked at a time: each waits for its last sum, together they keep the machine busy.
pub(crate) const TOGETHER: usize = 4;

/// Rounds the places of a block one after the other, each to the level nearest to where the errors before it leave it.
pub(crate) struct Walk<'a> {
    pub factor: &'a Factor,
    pub first: usize,
    pub levels: Levels,
    /// What decoded weights are rounded to.
    pub precision: Precision,
    /// The group of each place.
    pub groups: &'a [usize],
    pub weights: &'a [Rows],
    /// The sums over the errors before the block.
    pub sums: &'a [Rows],
    /// Which vector of rows.
    pub vector: usize,
    pub candidates: &'a mut [Candidate; TOGETHER],
}

impl Kernel for Walk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.levels, self.precision) {
            (Levels::Integers(least, most), Precision::F32) => {
                self.walk::<S, Single>(s, Integers { least, most });
            }
            (Levels::Integers(least, most), Precision::F16) => {
                self.walk::<S, Half>(s, Integers { least, most });
            }
            (Levels::Integers(least, most), Precision::Bf16) => {
                self.walk::<S, Bf16>(s, Integers { least, most });
            }
            (Levels::Values(values), _) => self.walk::<S, Single>(s, Values::new(values)),
        }
    }
}

impl Walk<'_> {
    #[inline(always)]
    fn walk<S: Simd, T: Stored>(self, s: S, levels: impl Nearest) {
        let zero = s.splat(0.0);
        let mut losses = [zero; TOGETHER];
        for (j, (weight, sum)) in self.weights.iter().zip(self.sums).enumerate() {
            let row = &self.factor.row(self.first + j)[self.first..];
            let mut sums = [s.load(&sum[self.vector]); TOGETHER];
            let [a, b, c, d] = &*self.candidates;
            let before = a.errors.iter().zip(&b.errors).zip(c.errors.iter().zip(&d.errors));
            for (factor, ((a, b), (c, d))) in row[..j].iter().zip(before) {
                let factor = s.splat(*factor);
                for (sum, error) in sums.iter_mut().zip([a, b, c, d]) {
                    *sum = s.mul_add(factor, s.load(error), *sum);
                }
            }
            let (pivot, inverse) = (s.splat(row[j]), s.splat(1.0 / row[j]));
            let weight = s.load(&weight[self.vector]);
            let group = self.groups[j];
            for ((sum, loss), candidate) in sums.into_iter().zip(&mut losses).zip(&mut *self.candidates) {
                let (scale, offset) = (s.load(&candidate.scales[group]), s.load(&candidate.offsets[group]));
                let wanted = s.mul_add(sum, inverse, weight);
                let mut index = levels.nearest(s, s.sub(wanted, offset), divisor(s, scale));
                let mut rounded = dequantized::<S, T>(s, levels.value(s, index), scale, offset);
                if T::DROPPED > 0 {
                    // Rounded once more, levels are not evenly spaced: the next one that way may be nearer.
                    let error = s.sub(wanted, rounded);
                    let down = s.lt(s.mul(error, scale), s.splat(0.0));
                    let next = s.add_i(index, s.select_i(down, s.splat_i(-1), s.splat_i(1)));
                    let next = s.min_i(s.max_i(next, s.splat_i(0)), s.splat_i(levels.last()));
                    let other = dequantized::<S, T>(s, levels.value(s, next), scale, offset);
                    let nearer = s.lt(s.abs(s.sub(wanted, other)), s.abs(error));
                    index = s.select_i(nearer, next, index);
                    rounded = s.select(nearer, other, rounded);
                }
                let residual = s.mul(pivot, s.sub(wanted, rounded));
                *loss = s.mul_add(residual, residual, *loss);
                s.store_u8(index, &mut candidate.indices[j]);
                s.store(residual, &mut candidate.residuals[j]);
                s.store(s.sub(weight, rounded), &mut candidate.errors[j]);
            }
        }
        for (loss, candidate) in losses.into_iter().zip(self.candidates) {
            s.store(loss, &mut candidate.loss);
        }
    }
}

/// By what factors a walked candidate's scales and offsets should be multiplied, its codes given.
///
/// A residual is `whole − A − B`, `A` what levels times scales take off it and `B` what offsets do. So factors `1 + a` and `1 + b` leave
/// `residual − a A − b B`, and least squares says which.
pub(crate) struct Refit<'a> {
    /// The residuals, were the block rounded to zeros.
    pub whole: &'a [Rows],
    /// Which vector of rows.
    pub vector: usize,
    /// What an offset of one in each group takes off each place's residual.
    pub offset_sums: &'a [f32],
    pub candidate: &'a Candidate,
}

impl Kernel for Refit<'_> {
    type Output = [Lanes; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [Lanes; 2] {
        let zero = s.splat(0.0);
        let offsets = &self.candidate.offsets;
        let (mut aa, mut ab, mut bb, mut ar, mut br) = (zero, zero, zero, zero, zero);
        let sums = self.offset_sums.chunks_exact(offsets.len());
        for ((whole, residual), sums) in self.whole.iter().zip(&self.candidate.residuals).zip(sums) {
            let mut b = zero;
            for (offset, sum) in offsets.iter().zip(sums) {
                b = s.mul_add(s.load(offset), s.splat(*sum), b);
            }
            let residual = s.load(residual);
            let a = s.sub(s.sub(s.load(&whole[self.vector]), residual), b);
            aa = s.mul_add(a, a, aa);
            ab = s.mul_add(a, b, ab);
            bb = s.mul_add(b, b, bb);
            ar = s.mul_add(a, residual, ar);
            br = s.mul_add(b, residual, br);
        }
        // Where the two are nearly parallel, or there are no offsets, the scales alone.
        let both = s.mul(aa, bb);
        let determinant = s.neg_mul_add(ab, ab, both);
        let apart = s.lt(s.mul(both, s.splat(1e-4)), determinant);
        let a = s.div(s.neg_mul_add(br, ab, s.mul(ar, bb)), determinant);
        let b = s.div(s.neg_mul_add(ar, ab, s.mul(br, aa)), determinant);
        let a = s.select(apart, a, s.select(s.lt(zero, aa), s.div(ar, aa), zero));
        let b = s.select(apart, b, zero);
        let mut factors = [[0.0; LANES]; 2];
        for (factor, change) in factors.iter_mut().zip([a, b]) {
            // A scale may shrink or grow a little only: what fits best far away fits other codes better still.
            let change = s.min(s.max(change, s.splat(-0.5)), s.splat(0.5));
            s.store(s.add(change, s.splat(1.0)), factor);
        }
        factors
    }
}

/// Levels in units of the scale.
trait Nearest: Copy {
    /// The index of the level nearest to `x · inverse`.
    fn nearest<S: Simd>(self, s: S, x: S::F32, inverse: S::F32) -> S::I32;
    /// The level of an index.
    fn value<S: Simd>(self, s: S, index: S::I32) -> S::F32;
    /// The last index.
    fn last(self) -> i32;
}

#[derive(Clone, Copy)]
struct Integers {
    least: i32,
    most: i32,
}

impl Nearest for Integers {
    #[inline(always)]
    fn nearest<S: Simd>(self, s: S, x: S::F32, inverse: S::F32) -> S::I32 {
        nearest_code(s, x, inverse, self.least, self.most)
    }

    #[inline(always)]
    fn value<S: Simd>(self, s: S, index: S::I32) -> S::F32 {
        s.to_f32(s.add_i(index, s.splat_i(self.least)))
    }

    #[inline(always)]
    fn last(self) -> i32 {
        self.most - self.least
    }
}

#[derive(Clone, Copy)]
struct Values {
    values: Lanes,
    /// Half way from each value to the next, infinite after the last.
    halves: [f32; LANES - 1],
}

impl Values {
    #[inline(always)]
    fn new(values: &[f32]) -> Values {
        let last = values[values.len() - 1];
        let padded = std::array::from_fn(|i| values.get(i).copied().unwrap_or(last));
        let half = |i: usize| values.get(i + 1).map_or(f32::INFINITY, |next| 0.5 * (values[i] + next));
        Values { values: padded, halves: std::array::from_fn(half) }
    }
}

impl Nearest for Values {
    #[inline(always)]
    fn nearest<S: Simd>(self, s: S, x: S::F32, inverse: S::F32) -> S::I32 {
        let x = s.mul(x, inverse);
        let mut index = s.splat_i(0);
        for half in self.halves {
            let above = s.lt(s.splat(half), x);
            index = s.add_i(index, s.select_i(above, s.splat_i(1), s.splat_i(0)));
        }
        index
    }

    #[inline(always)]
    fn value<S: Simd>(self, s: S, index: S::I32) -> S::F32 {
        s.lookup(&self.values, index)
    }

    #[inline(always)]
    fn last(self) -> i32 {
        LANES as i32 - 1
    }
}

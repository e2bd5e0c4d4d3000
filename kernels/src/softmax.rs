//! Softmax of rows. Exponentials are summed in a fixed order of lanes: the same bits on every machine.

use crate::exponential::exp;
use crate::matrix::MatrixMut;
use crate::simd::{Isa, Kernel, LANES, Simd};

/// `exp(x - max) / Σ exp(x - max)` of every row, in place.
pub fn softmax(isa: Isa, rows: MatrixMut) {
    isa.run(Softmax(rows));
}

struct Softmax<'a>(MatrixMut<'a>);

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.0.rows {
            let row = self.0.row(r);
            let (vectors, rest) = row.as_chunks_mut();
            let mut last = [[f32::NEG_INFINITY; LANES]];
            last[0][..rest.len()].copy_from_slice(rest);
            let max = maximum(s, vectors).max(maximum(s, &last));
            let sum = exponentials(s, vectors, max) + exponentials(s, &mut last, max);
            rest.copy_from_slice(&last[0][..rest.len()]);
            let factor = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

/// The largest element; minus infinity of none.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(s: S, row: &[[f32; LANES]]) -> f32 {
    let mut max = s.splat(f32::NEG_INFINITY);
    for lanes in row {
        max = s.max(s.load(lanes), max);
    }
    largest_lane(s, max)
}

/// The largest of the lanes.
#[inline(always)]
pub(crate) fn largest_lane<S: Simd>(s: S, max: S::F32) -> f32 {
    let mut lanes = [0.0; LANES];
    s.store(max, &mut lanes);
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces every x by `exp(x - max)` and gives the sum: by lanes in rising order, then over the lanes.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(s: S, row: &mut [[f32; LANES]], max: f32) -> f32 {
    let max = s.splat(max);
    let mut sum = s.splat(0.0);
    for lanes in row {
        let e = exp(s, s.sub(s.load(lanes), max));
        sum = s.add(sum, e);
        s.store(e, lanes);
    }
    s.reduce_add(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_becomes_its_probabilities() {
        for (rows, columns, stride) in [(3, 40, 43), (2, 16, 16), (4, 1, 3), (1, 1000, 1000)] {
            let x: Vec<f32> = (0..rows * stride).map(|i| (i as f32 * 1.7).sin() * 12.0).collect();
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut got = x.clone();
                softmax(isa, MatrixMut { values: &mut got, rows, columns, stride });
                assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{}", isa.name());
                for r in 0..rows {
                    let row = &x[r * stride..][..stride];
                    let sum: f64 = row[..columns].iter().map(|&x| f64::from(x).exp()).sum();
                    for c in 0..stride {
                        let (x, got) = (row[c], got[r * stride + c]);
                        let want = if c < columns { f64::from(x).exp() / sum } else { f64::from(x) };
                        assert!((f64::from(got) - want).abs() <= 2e-6 * want.abs(), "{got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_impossible_ones_are_zero() {
        let mut row = [1e30, 1e30, f32::NEG_INFINITY];
        softmax(Isa::detect(), MatrixMut::dense(&mut row, 1, 3));
        assert_eq!(row, [0.5, 0.5, 0.0]);
    }
}

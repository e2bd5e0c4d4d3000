//! Normalisation of rows: root mean square (Zhang and Sennrich, 2019) and Euclidean length.
//!
//! A row may hold several groups that are normalised each for itself, as the heads of queries and keys are. Squares are
//! summed in a fixed order of lanes: the same bits on every machine.

use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// `out = x / sqrt(mean(x²) + eps) * gain` for every group of `width` elements of every row; `gain` has `width` elements,
/// `None` is 1. `x` and `out` have the same shape, and `width` divides the columns.
pub fn rms_norm(isa: Isa, x: Matrix, width: usize, gain: Option<&[f32]>, eps: f32, mut out: MatrixMut) {
    assert_eq!((x.rows, x.columns), (out.rows, out.columns));
    for r in 0..x.rows {
        out.row(r).copy_from_slice(x.row(r));
    }
    rms_norm_in_place(isa, out, width, gain, eps);
}

/// [`rms_norm`] in place.
pub fn rms_norm_in_place(isa: Isa, x: MatrixMut, width: usize, gain: Option<&[f32]>, eps: f32) {
    assert!(gain.is_none_or(|gain| gain.len() == width));
    normalize(isa, x, width, gain, width as f32, eps);
}

/// `x = x / sqrt(Σ x² + eps)` for every group of `width` elements of every row, in place; `width` divides the columns.
pub fn l2_norm(isa: Isa, x: MatrixMut, width: usize, eps: f32) {
    normalize(isa, x, width, None, 1.0, eps);
}

fn normalize(isa: Isa, x: MatrixMut, width: usize, gain: Option<&[f32]>, divisor: f32, eps: f32) {
    assert!(width > 0 && x.columns.is_multiple_of(width));
    isa.run(Normalize { x, width, gain, divisor, eps });
}

struct Normalize<'a> {
    x: MatrixMut<'a>,
    width: usize,
    gain: Option<&'a [f32]>,
    /// What the sum of squares is divided by.
    divisor: f32,
    eps: f32,
}

impl Kernel for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for r in 0..self.x.rows {
            for group in self.x.row(r).chunks_exact_mut(self.width) {
                let factor = 1.0 / (sum_of_squares(s, group) / self.divisor + self.eps).sqrt();
                match self.gain {
                    None => group.iter_mut().for_each(|x| *x *= factor),
                    Some(gain) => group.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x * factor * gain),
                }
            }
        }
    }
}

/// Vector i goes to sum `i % 4`; a rest counts as a vector that ends in zeros.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (vectors, rest) = values.as_chunks::<LANES>();
    let (fours, vectors) = vectors.as_chunks::<4>();
    for four in fours {
        for (sum, lanes) in sums.iter_mut().zip(four) {
            let v = s.load(lanes);
            *sum = s.mul_add(v, v, *sum);
        }
    }
    let mut padded = [0.0; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    for (sum, lanes) in sums.iter_mut().zip(vectors.iter().chain([&padded])) {
        let v = s.load(lanes);
        *sum = s.mul_add(v, v, *sum);
    }
    s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.613).sin() * 3.0 + 0.2).collect()
    }

    fn near(got: f32, want: f64) -> bool {
        (f64::from(got) - want).abs() <= 4e-7 * want.abs()
    }

    #[test]
    fn every_group_of_every_row_has_its_own_size() {
        // Widths with and without whole vectors, and with all numbers of vectors modulo four.
        for (rows, groups, width, stride) in
            [(3, 1, 64, 64), (2, 3, 40, 130), (1, 2, 5, 10), (4, 1, 1003, 1010), (1, 1, 112, 112)]
        {
            let x = values(rows * stride);
            let gain: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            let columns = groups * width;
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut out = vec![7.0; rows * stride];
                rms_norm(
                    isa,
                    Matrix { values: &x, rows, columns, stride },
                    width,
                    Some(&gain),
                    1e-5,
                    MatrixMut { values: &mut out, rows, columns, stride },
                );
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{}", isa.name());
                for (at, &got) in out.iter().enumerate() {
                    let (r, c) = (at / stride, at % stride);
                    if c >= columns {
                        assert_eq!(got, 7.0);
                        continue;
                    }
                    let group = &x[r * stride + c / width * width..][..width];
                    let mean = group.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
                    let want = f64::from(x[at]) / (mean + 1e-5).sqrt() * f64::from(gain[c % width]);
                    assert!(near(got, want), "{got} instead of {want}");
                }
            }
        }
    }

    #[test]
    fn the_length_becomes_one() {
        for isa in Isa::available() {
            let x = values(96);
            let mut out = x.clone();
            l2_norm(isa, MatrixMut::dense(&mut out, 2, 48), 24, 1e-6);
            for (x, out) in x.chunks(24).zip(out.chunks(24)) {
                let length = (x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() + 1e-6).sqrt();
                assert!(x.iter().zip(out).all(|(&x, &out)| near(out, f64::from(x) / length)));
            }
        }
    }

    #[test]
    fn no_gain_is_a_gain_of_one() {
        let (mut a, mut b) = (values(64), values(64));
        rms_norm_in_place(Isa::detect(), MatrixMut::dense(&mut a, 1, 64), 32, None, 1e-6);
        rms_norm_in_place(Isa::detect(), MatrixMut::dense(&mut b, 1, 64), 32, Some(&[1.0; 32]), 1e-6);
        assert_eq!(a, b);
    }
}

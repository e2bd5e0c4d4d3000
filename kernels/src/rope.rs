//! Rotary position embedding (Su et al., "RoFormer", 2021).

use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, Simd};

/// Which of the first n elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// i with i + n / 2: the order of Hugging Face's checkpoints ("neox" in llama.cpp).
    Halves,
    /// 2i with 2i + 1: the order of the paper ("norm" in llama.cpp).
    Neighbours,
}

/// Turns the first n elements of every head of every row in place: `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
///
/// `x` is `[positions][heads at head_stride]`, its columns beginning with the first head's first turned element; the last
/// head may end early, after its n elements. `cos` and `sin` are `[positions][n / 2]`.
pub fn rotate(isa: Isa, pairs: Pairs, x: MatrixMut, head_stride: usize, cos: Matrix, sin: Matrix) {
    assert_eq!((cos.rows, cos.columns), (x.rows, sin.columns));
    assert_eq!(cos.rows, sin.rows);
    assert!(2 * cos.columns <= head_stride);
    isa.run(Rotate { pairs, x, head_stride, cos, sin });
}

struct Rotate<'a> {
    pairs: Pairs,
    x: MatrixMut<'a>,
    head_stride: usize,
    cos: Matrix<'a>,
    sin: Matrix<'a>,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    // Plain loops: the compiler makes vectors of them, and without fused multiply-adds all bits agree.
    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        for r in 0..self.x.rows {
            let (cos, sin) = (self.cos.row(r), self.sin.row(r));
            for head in self.x.row(r).chunks_mut(self.head_stride) {
                let head = &mut head[..2 * cos.len()];
                let turn = cos.iter().zip(sin);
                match self.pairs {
                    Pairs::Halves => {
                        let (a, b) = head.split_at_mut(cos.len());
                        for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(turn) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                    Pairs::Neighbours => {
                        for ([a, b], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(turn) {
                            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_the_first_elements_of_every_head_and_leaves_the_rest() {
        // Two heads of 11 elements in rows of 30, of which 6 turn, from column 4 on.
        let (rows, stride, offset, head_stride, n) = (3, 30, 4, 11, 6);
        let x: Vec<f32> = (0..rows * stride).map(|i| i as f32 * 0.1 - 3.0).collect();
        let angles: Vec<f32> = (0..rows * n / 2).map(|i| i as f32 * 0.7).collect();
        let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let mut want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for r in 0..rows {
                for head in 0..2 {
                    for i in 0..n / 2 {
                        let (first, second) = match pairs {
                            Pairs::Halves => (i, i + n / 2),
                            Pairs::Neighbours => (2 * i, 2 * i + 1),
                        };
                        let base = r * stride + offset + head * head_stride;
                        let (a, b) = (want[base + first], want[base + second]);
                        let (c, s) = (f64::from(cos[r * n / 2 + i]), f64::from(sin[r * n / 2 + i]));
                        want[base + first] = a * c - b * s;
                        want[base + second] = a * s + b * c;
                    }
                }
            }
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let mut got = x.clone();
                let part = &mut got[offset..];
                // The second head ends right after what turns.
                let part = MatrixMut { values: part, rows, columns: head_stride + n, stride };
                let (cos, sin) = (Matrix::dense(&cos, rows, n / 2), Matrix::dense(&sin, rows, n / 2));
                rotate(isa, pairs, part, head_stride, cos, sin);
                assert!(got.iter().zip(&want).all(|(&got, want)| (f64::from(got) - want).abs() < 2e-6));
                assert_eq!(first.get_or_insert_with(|| got.clone()), &got);
                let still = |at: usize| {
                    let c = (at % stride).wrapping_sub(offset);
                    c >= 2 * head_stride || c % head_stride >= n
                };
                assert!((0..x.len()).filter(|&at| still(at)).all(|at| got[at] == x[at]));
            }
        }
    }
}

//! Second moments of a linear's inputs: what an error in its weights does to its outputs.
//!
//! With inputs x, an error δ in a row of weights changes its output by δ·x: squared and summed over tokens that is δ H δᵀ with
//! H = Σ x xᵀ.

use kernels::matrix::{Matrix, MatrixMut};
use kernels::{Isa, gemm, gram};
use rayon::prelude::*;

/// Rows of the moments that one core computes at a time.
const STRIPE: usize = 96;

/// One piece of so many is held out, to judge by what was not fitted to.
const HELD_OUT: usize = 16;

/// Rows of errors that one core multiplies at a time.
const JUDGED_AT_ONCE: usize = 96;

/// Most tokens of a piece.
const PIECE: usize = 512;

/// Sums of the products of every two columns, over some tokens.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    /// How many tokens.
    pub tokens: usize,
    /// Number of columns.
    pub columns: usize,
    /// Row-major [columns, columns]; only the lower triangle is filled in.
    pub values: Vec<f32>,
}

impl Moments {
    /// Over no tokens.
    pub fn none(columns: usize) -> Moments {
        Moments { tokens: 0, columns, values: vec![0.0; columns * columns] }
    }

    /// Adds some tokens, row after row.
    pub fn add(&mut self, x: &[f32]) {
        let columns = self.columns;
        let x = Matrix::dense(x, x.len() / columns.max(1), columns);
        self.accumulate(&[x]);
    }

    /// Over the rows of some matrices.
    fn of(columns: usize, pieces: &[Matrix]) -> Moments {
        let mut moments = Moments::none(columns);
        moments.accumulate(pieces);
        moments
    }

    fn accumulate(&mut self, pieces: &[Matrix]) {
        let columns = self.columns;
        self.values.par_chunks_mut((STRIPE * columns).max(1)).enumerate().for_each(|(i, out)| {
            let rows = i * STRIPE..columns.min((i + 1) * STRIPE);
            for piece in pieces {
                gram::accumulate(Isa::detect(), *piece, rows.clone(), out);
            }
        });
        self.tokens += pieces.iter().map(|piece| piece.rows).sum::<usize>();
    }

    /// Adds a part of the identity, relative to the mean of the diagonal.
    pub fn blend(&mut self, part: f32) {
        let k = self.columns;
        let mean = (0..k).map(|i| self.values[i * k + i]).sum::<f32>() / k.max(1) as f32;
        (0..k).for_each(|i| self.values[i * k + i] += part * mean);
    }

    /// The mean square of each column: its importance.
    pub fn importance(&self) -> Vec<f32> {
        let per_token = 1.0 / self.tokens.max(1) as f32;
        (0..self.columns).map(|i| self.values[i * self.columns + i] * per_token).collect()
    }

    /// Adds other moments, scaled so that they count as `tokens` tokens: what is little known of is drawn towards them.
    pub fn shrink(&mut self, towards: &Moments, tokens: f32) {
        let factor = tokens / towards.tokens.max(1) as f32;
        self.values.par_iter_mut().zip(&towards.values).for_each(|(own, other)| *own += factor * other);
    }
}

/// Moments, ready to be multiplied with errors.
pub(crate) struct Judge {
    columns: usize,
    packed: Vec<f32>,
}

impl Judge {
    pub fn new(moments: &Moments) -> Judge {
        let k = moments.columns;
        let at = |at: usize| {
            let (row, column) = (at / k, at % k);
            moments.values[row.max(column) * k + row.min(column)]
        };
        let full: Vec<f32> = (0..k * k).into_par_iter().map(at).collect();
        let mut packed = vec![0.0; gemm::Panels::len(k, k)];
        gemm::pack(Isa::detect(), Matrix::dense(&full, k, k), &mut packed);
        Judge { columns: k, packed }
    }

    /// Σ δ H δᵀ over the rows of `errors` [rows, columns].
    pub fn energy(&self, errors: &[f32]) -> f64 {
        let k = self.columns;
        let panels = gemm::Panels::new(&self.packed, k, k);
        let one = |errors: &[f32]| -> f64 {
            let rows = errors.len() / k;
            let mut product = vec![0.0; errors.len()];
            let out = MatrixMut::dense(&mut product, rows, k);
            gemm::multiply(Isa::detect(), Matrix::dense(errors, rows, k), panels, out);
            errors.iter().zip(&product).map(|(e, p)| f64::from(*e) * f64::from(*p)).sum()
        };
        let sums: Vec<f64> = errors.par_chunks(JUDGED_AT_ONCE * k).map(one).collect();
        sums.iter().sum()
    }
}

/// What is known of a linear's inputs.
pub(crate) struct Inputs {
    /// To fit to.
    pub fitted: Moments,
    /// To judge by.
    pub held_out: Moments,
}

impl Inputs {
    /// From moments over tokens none of which is held out.
    pub fn without_held_out(fitted: Moments) -> Inputs {
        Inputs { held_out: Moments::none(fitted.columns), fitted }
    }

    /// From the rows of `x` [tokens, columns]: piece by piece, every sixteenth held out.
    pub fn of(x: Matrix) -> Inputs {
        let piece = x.rows.div_ceil(2 * HELD_OUT).clamp(1, PIECE);
        let pieces = (0..x.rows).step_by(piece).map(|first| x.part(first, piece.min(x.rows - first)));
        let (mut fitted, mut held_out) = (Vec::new(), Vec::new());
        for (i, piece) in pieces.enumerate() {
            if i % HELD_OUT == HELD_OUT / 2 { held_out.push(piece) } else { fitted.push(piece) }
        }
        Inputs { fitted: Moments::of(x.columns, &fitted), held_out: Moments::of(x.columns, &held_out) }
    }
}

/// A number that tells matrices apart: linears in a row often have the very same inputs.
pub(crate) fn fingerprint(x: Matrix) -> u64 {
    let words: &[u32] = bytemuck::cast_slice(x.values);
    let of = |words: &[u32]| {
        words.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &word| {
            (hash ^ u64::from(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
        })
    };
    let pieces: Vec<u64> = words.par_chunks(1 << 14).map(of).collect();
    let sizes = [x.rows as u64, x.columns as u64];
    pieces
        .iter()
        .chain(&sizes)
        .fold(0, |hash: u64, &piece| (hash ^ piece).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

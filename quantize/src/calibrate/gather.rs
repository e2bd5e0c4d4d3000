//! An importance matrix of what a calibrated pass sees.

use std::ops::Range;

use formats::OutputTensor;
use kernels::matrix::Matrix;
use rayon::prelude::*;

use super::imatrix::{Channels, Importance};

/// Columns that one core sums up at a time.
const STRIPE: usize = 64;

impl Importance {
    /// Adds the inputs `x` [tokens, columns] of some rows of a tensor: of one matrix, where it is a stack of experts'. Where a
    /// matrix is multiplied in parts, all have the same inputs: those of the first count.
    pub(crate) fn gather(&mut self, x: Matrix, tensor: &OutputTensor, rows: &Range<usize>) {
        let matrices: usize = tensor.shape.iter().rev().skip(2).map(|&count| count as usize).product();
        let per_matrix = (tensor.rows() as usize / matrices.max(1)).max(1);
        if !rows.start.is_multiple_of(per_matrix) || x.rows == 0 {
            return;
        }
        let matrix = rows.start / per_matrix;
        let columns = x.columns;
        let channels = self.tensors.entry(tensor.name.clone()).or_insert_with(|| Channels {
            columns,
            sums: vec![0.0; matrices * columns],
            counts: vec![0.0; matrices],
        });
        channels.counts[matrix] += x.rows as f32;
        let sums = &mut channels.sums[matrix * columns..][..columns];
        sums.par_chunks_mut(STRIPE).enumerate().for_each(|(stripe, sums)| {
            let mut exact = [0.0f64; STRIPE];
            for row in 0..x.rows {
                let values = &x.row(row)[stripe * STRIPE..][..sums.len()];
                exact.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value).powi(2));
            }
            sums.iter_mut().zip(exact).for_each(|(sum, exact)| *sum += exact as f32);
        });
    }
}

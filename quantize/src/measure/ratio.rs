//! The error of each type at a tensor's outputs, beside the base's.

use kernels::{
    Format, Isa,
    gemm::{self, Panels},
    matrix::{Matrix, MatrixMut},
};
use rayon::prelude::*;
use verify::weights::Weights;

use super::{BASE, probe::Inputs};
use crate::encode::round;
use crate::error::Result;

/// Weights of a tensor that are tried.
const WEIGHTS: usize = 64 * 1024;

/// Some rows of a tensor and what they are multiplied with; nothing where that is not known.
struct Sample<'a> {
    weights: Vec<f32>,
    inputs: Option<&'a [f32]>,
}

impl Sample<'_> {
    /// ‖X (Ŵ − W)ᵀ‖², or ‖Ŵ − W‖² without inputs.
    fn error(&self, format: &Format, columns: usize) -> f64 {
        let isa = Isa::detect();
        let mut change = self.weights.clone();
        round(isa, format, &mut change);
        change.iter_mut().zip(&self.weights).for_each(|(rounded, weight)| *rounded -= weight);
        let square = |values: &[f32]| values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let Some(inputs) = self.inputs else { return square(&change) };
        let (rows, tokens) = (change.len() / columns, inputs.len() / columns);
        let mut packed = vec![0.0; Panels::len(rows, columns)];
        gemm::pack(isa, Matrix::dense(&change, rows, columns), &mut packed);
        let mut out = vec![0.0; tokens * rows];
        let x = Matrix::dense(inputs, tokens, columns);
        let panels = Panels::new(&packed, rows, columns);
        gemm::multiply(isa, x, panels, MatrixMut::dense(&mut out, tokens, rows));
        square(&out)
    }
}

/// The squared error of each format at the outputs of tensor `index`, relative to the [`BASE`]'s, over some rows of it and some
/// inputs. None of a format that can't hold its rows; nothing at all if the base makes no error, as of weights that are in it already.
///
/// # Errors
/// If the weights can't be read.
pub fn ratios(
    weights: &Weights,
    index: usize,
    inputs: &[Inputs],
    formats: &[&'static Format],
) -> Result<Option<Vec<Option<f64>>>> {
    let tensor = &weights.tensors[index];
    let columns = tensor.columns() as usize;
    let whole = [(0..tensor.rows() as usize, None)];
    let products = inputs.iter().map(|inputs| (inputs.rows.clone(), Some(&inputs.values[..])));
    let products: Vec<_> = if inputs.is_empty() { whole.into() } else { products.collect() };
    let mut samples = Vec::new();
    for (rows, inputs) in &products {
        let count = (WEIGHTS / products.len() / columns.max(1)).clamp(1, rows.len().max(1));
        let mut values = vec![0.0; count * columns];
        for (at, row) in values.chunks_exact_mut(columns).enumerate() {
            let row_index = rows.start + (2 * at + 1) * rows.len() / (2 * count);
            weights.rows(index, row_index..row_index + 1, row)?;
        }
        samples.push(Sample { weights: values, inputs: *inputs });
    }
    let error = |format: &Format| samples.iter().map(|sample| sample.error(format, columns)).sum::<f64>();
    let base = error(BASE);
    if !(base.is_finite() && base > 0.0) {
        return Ok(None);
    }
    let (stored, _) = weights.stored_as(index);
    let one = |format: &&'static Format| {
        if !format.holds_row(columns as u64) || format.encode.is_none() {
            None
        } else if format.name == stored {
            Some(0.0)
        } else {
            Some(error(format) / base).filter(|ratio| ratio.is_finite())
        }
    };
    Ok(Some(formats.par_iter().with_max_len(1).map(one).collect()))
}

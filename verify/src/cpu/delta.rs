//! Gated delta networks: each head of each sequence on a core of its own.

use std::ops::Range;

use kernels::delta::{GatedDelta, causal_convolution, gated_delta};
use kernels::matrix::{Matrix, MatrixMut};
use kernels::{Isa, activations};
use rayon::prelude::*;

use super::Rows;
use crate::ops::{DeltaRule, Sequences};

/// Some rows of `columns` columns from `first` on.
fn part(x: &Rows, rows: Range<usize>, first: usize, columns: usize) -> Matrix<'_> {
    let values = &x.values[rows.start * x.columns + first..];
    Matrix { values, rows: rows.len(), columns, stride: x.columns }
}

/// See [`Ops::short_convolution`](crate::ops::Ops::short_convolution).
pub(super) fn short_convolution(x: &Rows, taps: &[f32], sequences: &Sequences) -> Rows {
    let mut out = Rows::unwritten(x.rows(), x.columns);
    let taps = Matrix::dense(taps, taps.len() / x.columns, x.columns);
    let mut rest = out.values.as_mut_slice();
    let mut work = Vec::new();
    for rows in sequences.rows() {
        let (values, more) = rest.split_at_mut(rows.len() * x.columns);
        work.push((rows, values));
        rest = more;
    }
    work.into_par_iter().for_each(|(rows, values)| {
        let count = rows.len();
        let x = part(x, rows, 0, x.columns);
        causal_convolution(Isa::detect(), x, taps, MatrixMut::dense(&mut *values, count, x.columns));
        activations::silu(Isa::detect(), values);
    });
    out
}

/// See [`Ops::delta_rule`](crate::ops::Ops::delta_rule).
pub(super) fn delta_rule(
    qkv: [&Rows; 3],
    gates: [&Rows; 2],
    rule: &DeltaRule,
    sequences: &Sequences,
) -> Rows {
    let ([q, k, v], [a, b]) = (qkv, gates);
    let &DeltaRule { key_heads, value_heads, key, value, .. } = rule;
    let work: Vec<(Range<usize>, usize)> =
        sequences.rows().flat_map(|rows| (0..value_heads).map(move |head| (rows.clone(), head))).collect();
    let heads: Vec<Vec<f32>> = work
        .par_iter()
        .map(|(rows, head)| {
            let (rows, head, isa) = (rows.clone(), *head, Isa::detect());
            let mut decay: Vec<f32> = rows.clone().map(|row| a.row(row)[head] + rule.biases[head]).collect();
            activations::softplus(isa, &mut decay);
            decay.iter_mut().for_each(|decay| *decay *= rule.rates[head]);
            activations::exp(isa, &mut decay);
            let mut rate: Vec<f32> = rows.clone().map(|row| b.row(row)[head]).collect();
            activations::sigmoid(isa, &mut rate);
            let mut out = vec![0.0; rows.len() * value];
            let input = GatedDelta {
                q: part(q, rows.clone(), head % key_heads * key, key),
                k: part(k, rows.clone(), head % key_heads * key, key),
                v: part(v, rows.clone(), head * value, value),
                decay: &decay,
                rate: &rate,
            };
            gated_delta(isa, input, MatrixMut::dense(&mut out, rows.len(), value));
            out
        })
        .collect();
    let mut out = Rows::unwritten(v.rows(), v.columns);
    for ((rows, head), values) in work.into_iter().zip(heads) {
        for (row, values) in rows.zip(values.chunks_exact(value)) {
            out.values[row * v.columns + head * value..][..value].copy_from_slice(values);
        }
    }
    out
}

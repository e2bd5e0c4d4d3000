//! Gated delta networks: each head of each sequence on a core of its own.

use kernels::delta::{GatedDelta, causal_convolution, gated_delta};
use kernels::matrix::{Matrix, MatrixMut};
use kernels::{Isa, activations};
use rayon::prelude::*;

use super::Rows;
use crate::ops::{DeltaRule, Sequences};

/// See [`Ops::short_convolution`](crate::ops::Ops::short_convolution).
pub(super) fn short_convolution(x: &Rows, taps: &[f32], sequences: &Sequences) -> Rows {
    let mut out = Rows::unwritten(x.rows(), x.columns);
    let taps = Matrix::dense(taps, taps.len() / x.columns, x.columns);
    let work: Vec<_> = sequences.rows().zip(out.by_sequence(sequences)).collect();
    work.into_par_iter().for_each(|(rows, values)| {
        let out = MatrixMut::dense(&mut *values, rows.len(), x.columns);
        causal_convolution(Isa::detect(), x.part(&rows, 0, x.columns), taps, out);
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
    Rows::from_heads(sequences, value_heads, value, |rows, head| {
        let isa = Isa::detect();
        let mut decay: Vec<f32> = rows.clone().map(|row| a.row(row)[head] + rule.biases[head]).collect();
        activations::softplus(isa, &mut decay);
        decay.iter_mut().for_each(|decay| *decay *= rule.rates[head]);
        activations::exp(isa, &mut decay);
        let mut rate: Vec<f32> = rows.clone().map(|row| b.row(row)[head]).collect();
        activations::sigmoid(isa, &mut rate);
        let mut out = vec![0.0; rows.len() * value];
        let input = GatedDelta {
            q: q.part(rows, head % key_heads * key, key),
            k: k.part(rows, head % key_heads * key, key),
            v: v.part(rows, head * value, value),
            decay: &decay,
            rate: &rate,
        };
        gated_delta(isa, input, MatrixMut::dense(&mut out, rows.len(), value));
        out
    })
}

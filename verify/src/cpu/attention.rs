//! Attention within each sequence: every key/value head of every sequence is a piece of work of its own.

use std::cell::RefCell;
use std::ops::Range;

use kernels::matrix::{Matrix, MatrixMut};
use kernels::{Isa, attention};
use rayon::prelude::*;

use super::Rows;
use crate::ops::{Attention, Sequences};

/// Some columns of some rows.
fn view<'a>(x: &'a Rows, rows: &Range<usize>, first: usize, columns: usize) -> Matrix<'a> {
    let values = &x.values[rows.start * x.columns + first..rows.end * x.columns];
    Matrix { values, rows: rows.len(), columns, stride: x.columns }
}

/// See [`Ops::attend`](crate::ops::Ops::attend).
pub(super) fn attend(q: &Rows, k: &Rows, v: &Rows, a: &Attention, sequences: &Sequences) -> Rows {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = RefCell::default();
    }
    let group = a.heads / a.kv_heads;
    let work: Vec<(Range<usize>, usize)> =
        sequences.rows().flat_map(|rows| (0..a.kv_heads).map(move |head| (rows.clone(), head))).collect();
    let attended: Vec<Vec<f32>> = work
        .par_iter()
        .map(|(rows, head)| {
            let options = attention::Attention {
                heads: group,
                head_stride: a.key,
                scale: a.scale,
                window: a.window,
                soft_cap: a.soft_cap,
                sinks: a.sinks.as_ref().map(|sinks| &sinks[head * group..(head + 1) * group]),
            };
            let mut out = vec![0.0; rows.len() * group * a.value];
            SCRATCH.with_borrow_mut(|scratch| {
                attention::attend(
                    Isa::detect(),
                    &options,
                    view(q, rows, head * group * a.key, group * a.key),
                    view(k, rows, head * a.key, a.key),
                    view(v, rows, head * a.value, a.value),
                    MatrixMut::dense(&mut out, rows.len(), group * a.value),
                    scratch,
                );
            });
            out
        })
        .collect();
    let width = group * a.value;
    let mut out = Rows::unwritten(q.rows(), a.heads * a.value);
    for ((rows, head), attended) in work.iter().zip(&attended) {
        for (row, values) in rows.clone().zip(attended.chunks_exact(width)) {
            out.values[row * a.heads * a.value + head * width..][..width].copy_from_slice(values);
        }
    }
    out
}

//! [`Ops`] on the processor: vectors of sixteen lanes, all cores.

mod attention;
mod buffers;
mod delta;
mod linear;
mod product;

use std::ops::Range;

use kernels::matrix::{Matrix, MatrixMut};
use kernels::{Isa, activations, norm, rope};
use rayon::prelude::*;

use crate::error::Result;
use crate::ops::{Activation, Attention, DeltaRule, Ops, Rotary, Sequences};
use crate::options::Precision;
use crate::store::{Space, Store};
use crate::tap::Tap;
use crate::weights::{Linear, Stack};

/// Values that one core works on at a time where every value is for itself.
const CHUNK: usize = 1 << 16;

/// The processor, and where it gets the weights that it multiplies with.
pub struct Cpu<'a> {
    weights: &'a dyn Tap,
    precision: Precision,
}

impl Cpu<'_> {
    /// For a model's graph, to multiply with its weights in this precision.
    pub fn new(weights: &dyn Tap, precision: Precision) -> Cpu<'_> {
        Cpu { weights, precision }
    }
}

/// A matrix: rows of `columns` values, one after the other.
#[derive(Debug)]
pub struct Rows {
    values: Vec<f32>,
    columns: usize,
}

impl Drop for Rows {
    fn drop(&mut self) {
        buffers::give(std::mem::take(&mut self.values));
    }
}

impl Clone for Rows {
    fn clone(&self) -> Rows {
        let mut copy = Rows::unwritten(self.rows(), self.columns);
        copy.values.par_chunks_mut(CHUNK).zip(self.values.par_chunks(CHUNK)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        copy
    }
}

impl Rows {
    /// A matrix of which every element is still to be written.
    fn unwritten(rows: usize, columns: usize) -> Rows {
        Rows { values: buffers::take(rows * columns), columns }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    /// Some rows at a time, to be worked on by one core.
    fn row_chunk(&self) -> usize {
        (CHUNK / self.columns.max(1)).max(1) * self.columns
    }

    /// A matrix whose rows `make` writes, given their number.
    fn from_rows(rows: usize, columns: usize, make: impl Fn(usize, &mut [f32]) + Sync) -> Rows {
        let mut out = Rows::unwritten(rows, columns);
        let chunk = out.row_chunk();
        out.values.par_chunks_mut(chunk.max(1)).enumerate().for_each(|(i, part)| {
            for (r, row) in part.chunks_exact_mut(columns).enumerate() {
                make(i * chunk / columns + r, row);
            }
        });
        out
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// `columns` columns of some rows, from `first` on.
    fn part(&self, rows: &Range<usize>, first: usize, columns: usize) -> Matrix<'_> {
        let values = &self.values[rows.start * self.columns + first..rows.end * self.columns];
        Matrix { values, rows: rows.len(), columns, stride: self.columns }
    }

    /// The rows of each sequence, for a core of its own to write.
    fn by_sequence(&mut self, sequences: &Sequences) -> Vec<&mut [f32]> {
        let mut rest = self.values.as_mut_slice();
        let mut parts = Vec::with_capacity(sequences.lengths.len());
        for length in &sequences.lengths {
            let (part, more) = rest.split_at_mut(length * self.columns);
            parts.push(part);
            rest = more;
        }
        parts
    }

    /// A matrix of `heads` heads of `width` columns: `make` gives the rows of one head of one sequence, each on a core of its own.
    fn from_heads(
        sequences: &Sequences,
        heads: usize,
        width: usize,
        make: impl Fn(&Range<usize>, usize) -> Vec<f32> + Sync,
    ) -> Rows {
        let work = sequences.rows().flat_map(|rows| (0..heads).map(move |head| (rows.clone(), head)));
        let work: Vec<(Range<usize>, usize)> = work.collect();
        let made = work.par_iter().with_max_len(1).map(|(rows, head)| make(rows, *head));
        let made: Vec<Vec<f32>> = made.collect();
        let mut out = Rows::unwritten(sequences.tokens(), heads * width);
        out.by_sequence(sequences).into_par_iter().zip(made.par_chunks(heads)).for_each(|(out, made)| {
            for (row, out) in out.chunks_exact_mut(heads * width).enumerate() {
                for (out, head) in out.chunks_exact_mut(width).zip(made) {
                    out.copy_from_slice(&head[row * width..][..width]);
                }
            }
        });
        out
    }
}

/// Runs `f` over both, piece by piece on all cores.
fn elementwise(x: &mut [f32], y: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync) {
    assert_eq!(x.len(), y.len());
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| f(x, y));
}

impl Ops for Cpu<'_> {
    type Tensor = Rows;
    type Bank = Store;

    fn upload(&self, values: Vec<f32>, columns: usize) -> Rows {
        Rows { values, columns }
    }

    fn download(&self, mut x: Rows) -> Result<Vec<f32>> {
        Ok(std::mem::take(&mut x.values))
    }

    fn bank(&self, space: &Space, rows: usize, width: usize) -> Result<Store> {
        space.store(rows, width)
    }

    fn put(&self, bank: &mut Store, first: usize, x: Rows) -> Result<()> {
        bank.write(first, &x.values)
    }

    fn take(&self, bank: &Store, rows: Range<usize>) -> Result<Rows> {
        let mut out = Rows::unwritten(rows.len(), bank.width);
        bank.read(rows, &mut out.values)?;
        Ok(out)
    }

    fn gather(&self, bank: &Store, rows: &[usize]) -> Result<Rows> {
        let mut out = Rows::unwritten(rows.len(), bank.width);
        bank.gather(rows, &mut out.values)?;
        Ok(out)
    }

    fn scatter_add(&self, bank: &mut Store, rows: &[usize], weights: &[f32], x: &Rows) -> Result<()> {
        bank.add(rows, weights, &x.values)
    }

    fn embed(&self, table: &Linear, tokens: &[u32]) -> Result<Rows> {
        let columns = table.columns;
        let mut out = Rows::unwritten(tokens.len(), columns);
        out.values.par_chunks_exact_mut(columns).zip(tokens).try_for_each(|(row, &token)| {
            let token = table.rows.start + token as usize;
            self.weights.rows(table.tensor, token..token + 1, row)
        })?;
        Ok(out)
    }

    fn linear(&self, x: &Rows, w: &Linear) -> Result<Rows> {
        linear::linear(self.weights, self.precision, x, w)
    }

    fn per_head(&self, x: &Rows, w: &Stack, transposed: bool) -> Result<Rows> {
        linear::per_head(self.weights, self.precision, x, w, transposed)
    }

    fn rms_norm(&self, x: &Rows, group: usize, gain: Option<&[f32]>, eps: f64) -> Rows {
        let (columns, chunk) = (x.columns, x.row_chunk());
        let mut out = Rows::unwritten(x.rows(), columns);
        out.values.par_chunks_mut(chunk).zip(x.values.par_chunks(chunk)).for_each(|(out, x)| {
            let rows = x.len() / columns;
            let (x, out) = (Matrix::dense(x, rows, columns), MatrixMut::dense(out, rows, columns));
            norm::rms_norm(Isa::detect(), x, group, gain, eps as f32, out);
        });
        out
    }

    fn rotate(&self, x: &mut Rows, rotary: &Rotary, sequences: &Sequences) {
        let n = rotary.frequencies.len();
        if n == 0 {
            return;
        }
        let longest = sequences.lengths.iter().copied().max().unwrap_or(0);
        let mut tables = [Rows::unwritten(longest, n), Rows::unwritten(longest, n)];
        let [cos, sin] = &mut tables;
        let rows = cos.values.par_chunks_exact_mut(n).zip(sin.values.par_chunks_exact_mut(n));
        rows.enumerate().for_each(|(position, (cos, sin))| {
            for (turn, (cos, sin)) in rotary.turns(position).zip(cos.iter_mut().zip(sin)) {
                [*cos, *sin] = turn;
            }
        });
        let columns = x.columns;
        let [cos, sin] = &tables;
        x.by_sequence(sequences).into_par_iter().for_each(|part| {
            let length = part.len() / columns;
            let part = MatrixMut {
                values: &mut part[rotary.offset..],
                rows: length,
                columns: columns - rotary.offset,
                stride: columns,
            };
            let [cos, sin] = [cos, sin].map(|table| Matrix::dense(&table.values[..length * n], length, n));
            rope::rotate(Isa::detect(), rotary.order, part, rotary.head, cos, sin);
        });
    }

    fn attend(&self, q: &Rows, k: &Rows, v: &Rows, attention: &Attention, sequences: &Sequences) -> Rows {
        attention::attend(q, k, v, attention, sequences)
    }

    fn short_convolution(&self, x: &Rows, taps: &[f32], sequences: &Sequences) -> Rows {
        delta::short_convolution(x, taps, sequences)
    }

    fn delta_rule(
        &self,
        q: &Rows,
        k: &Rows,
        v: &Rows,
        a: &Rows,
        b: &Rows,
        rule: &DeltaRule,
        sequences: &Sequences,
    ) -> Rows {
        delta::delta_rule([q, k, v], [a, b], rule, sequences)
    }

    fn gated(&self, mut gate: Rows, up: &Rows, activation: Activation) -> Rows {
        let isa = Isa::detect();
        elementwise(&mut gate.values, &up.values, |gate, up| match activation {
            Activation::Silu => activations::swiglu(isa, gate, up),
            Activation::GeluTanh => activations::geglu(isa, gate, up),
            Activation::Clamped { alpha, limit } => activations::clamped_swiglu(isa, gate, up, alpha, limit),
        });
        gate
    }

    fn add(&self, x: &mut Rows, y: &Rows) {
        elementwise(&mut x.values, &y.values, |x, y| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
    }

    fn scale(&self, x: &mut Rows, factor: f32) {
        x.values.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
    }

    fn scale_rows(&self, x: &mut Rows, factors: &[f32]) {
        let rows = x.values.par_chunks_mut(x.columns).zip(factors);
        rows.for_each(|(row, factor)| row.iter_mut().for_each(|x| *x *= factor));
    }

    fn soft_cap(&self, x: &mut Rows, cap: f32) {
        x.values.par_chunks_mut(CHUNK).for_each(|x| activations::soft_cap(Isa::detect(), x, cap));
    }

    fn sigmoid_gate(&self, x: &mut Rows, gate: &Rows) {
        if gate.columns == x.columns {
            elementwise(&mut x.values, &gate.values, |x, gate| {
                activations::sigmoid_gate(Isa::detect(), x, gate)
            });
            return;
        }
        let gate = Rows::from_rows(x.rows(), x.columns, |r, row| row.fill(gate.values[r]));
        self.sigmoid_gate(x, &gate);
    }

    fn columns(&self, x: &Rows, columns: Range<usize>) -> Rows {
        self.head_columns(x, 1, columns)
    }

    fn join_heads(&self, a: &Rows, b: &Rows, heads: usize, shared: bool) -> Rows {
        let first = a.columns / heads;
        let (second, step) = if shared { (b.columns, 0) } else { (b.columns / heads, b.columns / heads) };
        Rows::from_rows(a.rows(), heads * (first + second), |r, out| {
            let (a, b) = (a.row(r), b.row(r));
            for (h, out) in out.chunks_exact_mut(first + second).enumerate() {
                out[..first].copy_from_slice(&a[h * first..][..first]);
                out[first..].copy_from_slice(&b[h * step..][..second]);
            }
        })
    }

    fn head_columns(&self, x: &Rows, heads: usize, columns: Range<usize>) -> Rows {
        let (head, width) = (x.columns / heads, columns.len());
        Rows::from_rows(x.rows(), heads * width, |r, out| {
            let row = x.row(r);
            for (h, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&row[h * head..][columns.clone()]);
            }
        })
    }
}

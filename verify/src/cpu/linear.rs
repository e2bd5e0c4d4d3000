//! Products with weights, decoded on the way.
//!
//! A stretch of a weight's rows is decoded and packed on all cores, then multiplied with all tokens on all cores, then the next. So
//! every weight is decoded once for as many tokens as there are, and never more than a stretch is held in `f32`.

use std::ops::Range;

use formats::output::Map;
use formats::rows::rearrange;
use kernels::gemm::PANEL;
use kernels::matrix::{Matrix, MatrixMut};
use rayon::prelude::*;

use super::{Rows, buffers};
use crate::error::Result;
use crate::options::Precision;
use crate::tap::Tap;
use crate::weights::{Linear, Stack};

/// Decoded weights that are held at once: 8 MiB.
const STRETCH: usize = 2 << 20;

/// Tokens that one core multiplies at a time; a multiple of [`kernels::fixed::GROUP`].
const TOKENS: usize = 96;

/// Rows of a weight, decoded and packed.
fn decode(
    weights: &dyn Tap,
    precision: Precision,
    tensor: usize,
    rows: Range<usize>,
    columns: usize,
    packed: &mut [f32],
) -> Result<()> {
    let panel = precision.packed_len(PANEL, columns);
    // A few panels at a time, so that reading is in pieces that are worth a call.
    let some = (64 * 1024usize).div_ceil(panel.max(1));
    packed.par_chunks_mut(some * panel).enumerate().try_for_each_init(Vec::new, |decoded, (i, packed)| {
        let first = rows.start + i * some * PANEL;
        let rows = first..rows.end.min(first + some * PANEL);
        decoded.resize(rows.len() * columns, 0.0);
        weights.rows(tensor, rows.clone(), decoded)?;
        precision.pack(Matrix::dense(decoded, rows.len(), columns), packed);
        Ok(())
    })
}

/// Writes x · wᵀ + bias to `out` [tokens, w's rows].
pub(super) fn linear(weights: &dyn Tap, precision: Precision, x: &Rows, w: &Linear) -> Result<Rows> {
    let (k, n, tokens) = (w.columns, w.rows.len(), x.rows());
    weights.product(Matrix::dense(&x.values, tokens, k), w)?;
    let mut out = Rows::unwritten(tokens, n);
    let stretch = (STRETCH / k.max(1)).max(PANEL) / PANEL * PANEL;
    let prepared_len = precision.prepared_len(TOKENS, k);
    let mut prepared = buffers::take(precision.prepared_len(tokens, k));
    let chunks = x.values.par_chunks(TOKENS * k).zip(prepared.par_chunks_mut(prepared_len.max(1)));
    chunks.for_each(|(x, prepared)| precision.prepare(Matrix::dense(x, x.len() / k, k), prepared));
    let mut packed = buffers::take(precision.packed_len(stretch.min(n), k));
    for first in (0..n).step_by(stretch) {
        let rows = first..n.min(first + stretch);
        let packed = &mut packed[..precision.packed_len(rows.len(), k)];
        decode(weights, precision, w.tensor, w.rows.start + rows.start..w.rows.start + rows.end, k, packed)?;
        let bias = w.bias.as_deref().map(|bias| &bias[rows.clone()]);
        let tokens = x.values.par_chunks(TOKENS * k).zip(out.values.par_chunks_mut(TOKENS * n));
        // Each piece may go to another core, so that all are done at the same time.
        tokens.enumerate().with_max_len(1).for_each(|(i, (x, out))| {
            let count = x.len() / k;
            let prepared = &prepared[i * prepared_len..][..precision.prepared_len(count, k)];
            let values = &mut out[rows.start..];
            let out = MatrixMut { values, rows: count, columns: rows.len(), stride: n };
            precision.multiply(Matrix::dense(x, count, k), prepared, packed, out);
            if let Some(bias) = bias {
                for row in values.chunks_mut(n) {
                    row[..bias.len()].iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
            }
        });
    }
    buffers::give(packed);
    buffers::give(prepared);
    Ok(out)
}

/// A matrix of its own for each head; see [`Ops::per_head`](crate::ops::Ops::per_head).
pub(super) fn per_head(
    weights: &dyn Tap,
    precision: Precision,
    x: &Rows,
    w: &Stack,
    transposed: bool,
) -> Result<Rows> {
    let heads = w.count;
    let (rows, columns) = (w.one(0).rows.len(), w.one(0).columns);
    let (k, n) = if transposed { (rows, columns) } else { (columns, rows) };
    let tokens = x.rows();
    let mut out = Rows::unwritten(tokens, heads * n);
    let own = if x.columns == k { 0 } else { k };
    let mut decoded = vec![0.0; rows * columns];
    let mut turned = vec![0.0; rows * columns];
    let mut packed = vec![0.0; precision.packed_len(n, k)];
    for head in 0..heads {
        let one = w.one(head);
        weights.rows(one.tensor, one.rows.clone(), &mut decoded)?;
        let matrix = if transposed {
            rearrange(Map::Transpose, &decoded, columns, &mut turned);
            &turned
        } else {
            &decoded
        };
        precision.pack(Matrix::dense(matrix, n, k), &mut packed);
        let chunks =
            x.values.par_chunks(TOKENS * x.columns).zip(out.values.par_chunks_mut(TOKENS * heads * n));
        chunks.with_max_len(1).for_each(|(values, out)| {
            let count = values.len() / x.columns;
            let x = Matrix { values: &values[head * own..], rows: count, columns: k, stride: x.columns };
            let out = MatrixMut { values: &mut out[head * n..], rows: count, columns: n, stride: heads * n };
            let mut prepared = buffers::take(precision.prepared_len(count, k));
            precision.prepare(x, &mut prepared);
            precision.multiply(x, &prepared, &packed, out);
            buffers::give(prepared);
        });
    }
    Ok(out)
}

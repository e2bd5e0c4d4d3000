//! Columns of matrices and of their heads, copied from one to another.

use std::ops::Range;
use std::sync::Arc;

use kernels::shaders;

use super::device::Device;
use super::spans::{LARGEST_GRID, row_step};
use super::tensor::Tensor;

/// Where some heads' columns are in a matrix.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub tensor: &'a Tensor,
    /// The first row, and of the first head the first column.
    pub row: usize,
    pub column: usize,
    /// Columns from a head to the next.
    pub step: usize,
}

impl<'a> Place<'a> {
    /// Of one head.
    pub fn single(tensor: &'a Tensor, row: usize, column: usize) -> Place<'a> {
        Place { tensor, row, column, step: 0 }
    }

    /// Of several, from the first row on.
    fn new(tensor: &'a Tensor, column: usize, step: usize) -> Place<'a> {
        Place { tensor, row: 0, column, step }
    }

    /// Rows to bind for those that begin `first` rows further on, and where in them the first element is.
    fn bind(&self, first: usize, rows: usize) -> (Range<usize>, u32) {
        let (columns, first) = (self.tensor.columns, self.row + first);
        let start = first - first % row_step(columns);
        (start..first + rows, ((first - start) * columns + self.column) as u32)
    }

    /// Rows that can be bound at once, wherever they begin.
    fn most(&self, device: &Device) -> usize {
        let columns = self.tensor.columns;
        (device.binding as usize / (4 * columns)).saturating_sub(row_step(columns) - 1).max(1)
    }
}

/// Copies `width` columns of each of `heads` heads, in so many rows.
pub(super) fn copy(device: &Device, from: Place, to: Place, rows: usize, heads: usize, width: usize) {
    if rows == 0 || heads * width == 0 {
        return;
    }
    let most = from.most(device).min(to.most(device));
    for first in (0..rows).step_by(most) {
        let rows = most.min(rows - first);
        let (from_rows, from_first) = from.bind(first, rows);
        let (to_rows, to_first) = to.bind(first, rows);
        let params = [
            rows as u32,
            heads as u32,
            width as u32,
            from_first,
            from.tensor.columns as u32,
            from.step as u32,
            to_first,
            to.tensor.columns as u32,
            to.step as u32,
        ];
        let bindings = [from.tensor.read(&from_rows), to.tensor.write(&to_rows)];
        let groups = [(heads * width).div_ceil(64) as u32, rows.min(LARGEST_GRID) as u32, 1];
        device.run(&shaders::copy(), &bindings, &params, groups);
    }
}

/// Copies `width` columns of every row.
pub(super) fn copy_columns(
    device: &Device,
    from: &Tensor,
    from_column: usize,
    to: &Tensor,
    to_column: usize,
    width: usize,
) {
    copy(device, Place::single(from, 0, from_column), Place::single(to, 0, to_column), from.rows, 1, width);
}

/// See [`Ops::columns`](crate::ops::Ops::columns).
pub(super) fn columns(device: &Arc<Device>, x: &Tensor, columns: Range<usize>) -> Tensor {
    let out = Tensor::unwritten(device, x.rows, columns.len());
    copy_columns(device, x, columns.start, &out, 0, columns.len());
    out
}

/// See [`Ops::head_columns`](crate::ops::Ops::head_columns).
pub(super) fn head_columns(device: &Arc<Device>, x: &Tensor, heads: usize, columns: Range<usize>) -> Tensor {
    let width = columns.len();
    let out = Tensor::unwritten(device, x.rows, heads * width);
    let from = Place::new(x, columns.start, x.columns / heads);
    copy(device, from, Place::new(&out, 0, width), x.rows, heads, width);
    out
}

/// See [`Ops::join_heads`](crate::ops::Ops::join_heads).
pub(super) fn join_heads(device: &Arc<Device>, a: &Tensor, b: &Tensor, heads: usize, shared: bool) -> Tensor {
    let first = a.columns / heads;
    let (second, step) = if shared { (b.columns, 0) } else { (b.columns / heads, b.columns / heads) };
    let width = first + second;
    let out = Tensor::unwritten(device, a.rows, heads * width);
    copy(device, Place::new(a, 0, first), Place::new(&out, 0, width), a.rows, heads, first);
    copy(device, Place::new(b, 0, step), Place::new(&out, first, width), a.rows, heads, second);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{NoWeights, limited, noise, values};
    use crate::ops::Ops;
    use crate::{Precision, cpu::Cpu};

    #[test]
    #[ignore = "needs a graphics processor"]
    fn heads_are_taken_apart_and_put_together() {
        let cpu = Cpu::new(&NoWeights, Precision::F32);
        // The second can bind 20 rows of the widest.
        for device in [limited(u64::MAX), limited(4 * 120 * 83)] {
            for rows in [1, 63, 200] {
                let (a, b) = (noise(rows * 120, 1), noise(rows * 36, 2));
                let [x, y] = [(&a, 120), (&b, 36)].map(|(v, columns)| Tensor::with(&device, v, columns));
                let [on_cpu, other] =
                    [(&a, 120), (&b, 36)].map(|(v, columns)| cpu.upload(v.clone(), columns));
                let got = values(&columns(&device, &x, 7..90));
                assert_eq!(got, cpu.download(cpu.columns(&on_cpu, 7..90)).expect("values"));
                let got = values(&head_columns(&device, &x, 6, 3..17));
                assert_eq!(got, cpu.download(cpu.head_columns(&on_cpu, 6, 3..17)).expect("values"));
                for shared in [true, false] {
                    let got = values(&join_heads(&device, &x, &y, 6, shared));
                    assert_eq!(
                        got,
                        cpu.download(cpu.join_heads(&on_cpu, &other, 6, shared)).expect("values")
                    );
                }
            }
        }
    }
}

//! Matrices of activations on the device.

use std::ops::Range;
use std::sync::Arc;

use wgpu::Buffer;

use super::device::{Binding, Device};
use super::pool::ACTIVATIONS;

/// A matrix in `f32`: rows of `columns` values, one after the other.
pub struct Tensor {
    pub(super) device: Arc<Device>,
    buffer: Option<Buffer>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.device.pool.give(buffer, ACTIVATIONS);
        }
    }
}

impl Tensor {
    /// A matrix of which every element is still to be written.
    pub(super) fn unwritten(device: &Arc<Device>, rows: usize, columns: usize) -> Tensor {
        let bytes = 4 * (rows * columns) as u64;
        let buffer = device.pool.take(&device.device, bytes, ACTIVATIONS);
        Tensor { device: device.clone(), buffer: Some(buffer), rows, columns }
    }

    /// A matrix with these values.
    pub(super) fn with(device: &Arc<Device>, values: &[f32], columns: usize) -> Tensor {
        let tensor = Tensor::unwritten(device, values.len() / columns.max(1), columns);
        if !values.is_empty() {
            // Writes come before all commands that are handed over later, and some of those may still need the buffer as it was.
            device.flush();
            device.queue.write_buffer(tensor.buffer(), 0, bytemuck::cast_slice(values));
        }
        tensor
    }

    pub(super) fn buffer(&self) -> &Buffer {
        self.buffer.as_ref().expect("only dropped matrices have none")
    }

    /// Bytes of its values.
    pub(super) fn bytes(&self) -> u64 {
        4 * (self.rows * self.columns) as u64
    }

    fn range(&self, rows: &Range<usize>) -> Range<u64> {
        let row = 4 * self.columns as u64;
        rows.start as u64 * row..rows.end as u64 * row
    }

    /// Some rows, to be read.
    pub(super) fn read(&self, rows: &Range<usize>) -> Binding<'_> {
        Binding::Read(self.buffer(), self.range(rows))
    }

    /// Some rows, to be written.
    pub(super) fn write(&self, rows: &Range<usize>) -> Binding<'_> {
        Binding::Write(self.buffer(), self.range(rows))
    }
}

/// Rows of a matrix that can be bound at once if a row has `columns` values, at most, in ranges that begin where bindings may.
pub(super) fn row_tiles(device: &Device, rows: usize, columns: usize) -> Vec<Range<usize>> {
    // 64 rows of f32 begin at a multiple of 256 bytes, which every device allows.
    const STEP: usize = 64;
    let most = (device.binding / (4 * columns.max(1) as u64)) as usize / STEP * STEP;
    let most = most.max(STEP);
    (0..rows).step_by(most).map(|first| first..rows.min(first + most)).collect()
}

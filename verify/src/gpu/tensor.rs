//! Matrices of activations on the device.

use std::ops::Range;
use std::sync::Arc;

use kernels::shaders::TILE;
use wgpu::Buffer;

use super::commands::Binding;
use super::device::Device;
use super::pool::ACTIVATIONS;
use super::spans::LARGEST_GRID;

/// A matrix in `f32`: rows of `columns` values, one after the other.
pub struct Tensor {
    pub(super) device: Arc<Device>,
    buffer: Option<Buffer>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    epoch: u64,
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
        let bytes = 4 * (rows.next_multiple_of(TILE) * columns) as u64;
        let buffer = device.pool.take(&device.device, bytes, ACTIVATIONS);
        Tensor { device: device.clone(), buffer: Some(buffer), rows, columns, epoch: device.faults.epoch() }
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

    /// A matrix of zeros.
    pub(super) fn zeros(device: &Arc<Device>, rows: usize, columns: usize) -> Tensor {
        let tensor = Tensor::unwritten(device, rows, columns);
        device.record(|encoder| encoder.clear_buffer(tensor.buffer(), 0, None));
        tensor
    }

    /// Copies rows from `first` on to those rows of a matrix of the same columns.
    pub(super) fn copy_rows(&self, first: usize, to: &Tensor, rows: Range<usize>) {
        let (from, to_range) = (self.range(&(first..first + rows.len())), to.range(&rows));
        let len = from.end - from.start;
        if len > 0 {
            self.device.record(|encoder| {
                encoder.copy_buffer_to_buffer(self.buffer(), from.start, to.buffer(), to_range.start, len);
            });
        }
    }

    /// Whether nothing was forgotten since it was made, so that what was to write it did.
    pub(crate) fn is_whole(&self) -> bool {
        self.epoch == self.device.faults.epoch()
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

    /// Some rows, to be written in whole tiles: what lies behind the last row may be overwritten, up to a whole tile.
    pub(super) fn write_tiles(&self, rows: &Range<usize>) -> Binding<'_> {
        let end = rows.start + rows.len().next_multiple_of(TILE);
        Binding::Write(self.buffer(), self.range(&(rows.start..end)))
    }
}

/// Workgroups for `count` pieces of work, in a grid that every device allows; kernels count them along x, then y.
pub(super) fn groups_of(count: usize) -> [u32; 3] {
    let x = count.clamp(1, LARGEST_GRID);
    [x as u32, count.div_ceil(x) as u32, 1]
}

/// Rows of a matrix that can be bound at once if a row has `columns` values, at most, in ranges that begin where bindings may.
pub(super) fn row_tiles(device: &Device, rows: usize, columns: usize) -> Vec<Range<usize>> {
    row_tiles_of(device, rows, columns, usize::MAX)
}

/// The same, and no more than `most` rows, as far as that can be.
pub(super) fn row_tiles_of(device: &Device, rows: usize, columns: usize, most: usize) -> Vec<Range<usize>> {
    // 128 rows of half floats begin at a multiple of 256 bytes, which every device allows.
    const STEP: usize = 2 * TILE;
    let most = most.min((device.binding / (4 * columns.max(1) as u64)) as usize);
    let most = (most / STEP * STEP).max(STEP);
    (0..rows).step_by(most).map(|first| first..rows.min(first + most)).collect()
}

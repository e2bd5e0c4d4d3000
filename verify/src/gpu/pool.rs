//! Buffers that are no longer needed, for the next ones: a layer makes and drops dozens of the same sizes. A buffer may be given out
//! again while the device still works with it: commands run in the order in which they were recorded.

use std::sync::Mutex;

use wgpu::{Buffer, BufferUsages};

use super::device::lock;

/// What activations are made for: kernels, and copies both ways.
pub(super) const ACTIVATIONS: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

/// Buffers kept, and their bytes.
const KEPT: (usize, u64) = (24, 2 << 30);

/// Sizes are rounded up to a multiple of this, so that more of them are equal.
const GRAIN: u64 = 4096;

#[derive(Default)]
pub(super) struct Pool {
    free: Mutex<Vec<(Buffer, BufferUsages)>>,
}

impl Pool {
    /// A buffer of at least `bytes`, whatever is in it; at most twice as large.
    pub fn take(&self, device: &wgpu::Device, bytes: u64, usage: BufferUsages) -> Buffer {
        let size = bytes.max(1).next_multiple_of(GRAIN);
        let mut free = lock(&self.free);
        let fits = |buffer: &Buffer| buffer.size() >= size && buffer.size() <= 2 * size;
        let found =
            free.iter().enumerate().filter(|(_, (buffer, made_for))| *made_for == usage && fits(buffer));
        if let Some((i, _)) = found.min_by_key(|(_, (buffer, _))| buffer.size()) {
            return free.swap_remove(i).0;
        }
        drop(free);
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        device.create_buffer(&descriptor)
    }

    /// Takes a buffer back.
    pub fn give(&self, buffer: Buffer, usage: BufferUsages) {
        let mut free = lock(&self.free);
        free.push((buffer, usage));
        while free.len() > KEPT.0 || free.iter().map(|(buffer, _)| buffer.size()).sum::<u64>() > KEPT.1 {
            free.remove(0);
        }
    }

    /// Drops all that is kept.
    pub fn clear(&self) {
        lock(&self.free).clear();
    }
}

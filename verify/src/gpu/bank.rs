//! Rows of all tokens, on the device while there is room, else where the processor keeps them.

use std::ops::Range;
use std::sync::Arc;

use kernels::shaders;

use super::commands::Binding;
use super::device::Device;
use super::tensor::{Tensor, groups_of, row_tiles};
use crate::error::Result;
use crate::store::{Space, Store};

/// See [`Ops::bank`](crate::ops::Ops::bank).
pub struct Bank {
    width: usize,
    place: Place,
}

enum Place {
    /// In matrices of so many rows, the last of fewer.
    Device {
        parts: Vec<Tensor>,
        rows: usize,
    },
    Host(Store),
}

impl Bank {
    /// Zeros: on the device if they take no more than `room` bytes.
    pub(super) fn new(
        device: &Arc<Device>,
        space: &Space,
        rows: usize,
        width: usize,
        room: u64,
    ) -> Result<Bank> {
        if 4 * (rows * width) as u64 > room {
            return Ok(Bank { width, place: Place::Host(space.store(rows, width)?) });
        }
        let tiles = row_tiles(device, rows, width);
        let parts = tiles.iter().map(|rows| Tensor::zeros(device, rows.len(), width)).collect();
        Ok(Bank { width, place: Place::Device { parts, rows: tiles.first().map_or(1, Range::len) } })
    }

    pub(super) fn put(&mut self, device: &Device, first: usize, x: &Tensor) -> Result<()> {
        match &mut self.place {
            Place::Host(store) => store.write(first, &device.read(x.buffer(), x.bytes())?),
            Place::Device { parts, rows } => {
                for (part, range) in split(first..first + x.rows, *rows) {
                    let from = range.start + part * *rows - first;
                    x.copy_rows(from, &parts[part], range);
                }
                Ok(())
            }
        }
    }

    pub(super) fn take(&self, device: &Arc<Device>, wanted: Range<usize>) -> Result<Tensor> {
        match &self.place {
            Place::Host(store) => {
                let mut values = vec![0.0; wanted.len() * self.width];
                store.read(wanted, &mut values)?;
                Ok(Tensor::with(device, &values, self.width))
            }
            Place::Device { parts, rows } => {
                let out = Tensor::unwritten(device, wanted.len(), self.width);
                let first = wanted.start;
                for (part, range) in split(wanted, *rows) {
                    let to = range.start + part * rows - first;
                    parts[part].copy_rows(range.start, &out, to..to + range.len());
                }
                Ok(out)
            }
        }
    }

    pub(super) fn gather(&self, device: &Arc<Device>, wanted: &[usize]) -> Result<Tensor> {
        let (parts, rows) = match &self.place {
            Place::Host(store) => {
                let mut values = vec![0.0; wanted.len() * self.width];
                store.gather(wanted, &mut values)?;
                return Ok(Tensor::with(device, &values, self.width));
            }
            Place::Device { parts, rows } => (parts, *rows),
        };
        let out = Tensor::unwritten(device, wanted.len(), self.width);
        let shader = shaders::gather();
        for (part, range) in runs(wanted, rows) {
            // Where the run's rows go need not be a place where a binding may begin.
            let made = Tensor::unwritten(device, range.len(), self.width);
            let own: Vec<u32> = wanted[range.clone()].iter().map(|row| (row - part * rows) as u32).collect();
            let own = device.constant(bytemuck::cast_slice(&own));
            let from = &parts[part];
            let bindings = [from.read(&(0..from.rows)), Binding::read(&own), made.write(&(0..made.rows))];
            let count = made.rows * self.width;
            device.run(&shader, &bindings, &[count as u32, self.width as u32], groups_of(count.div_ceil(64)));
            if range.len() == wanted.len() {
                return Ok(made);
            }
            made.copy_rows(0, &out, range);
        }
        Ok(out)
    }

    pub(super) fn scatter_add(
        &mut self,
        device: &Arc<Device>,
        wanted: &[usize],
        weights: &[f32],
        x: &Tensor,
    ) -> Result<()> {
        let (parts, rows) = match &mut self.place {
            Place::Host(store) => return store.add(wanted, weights, &device.read(x.buffer(), x.bytes())?),
            Place::Device { parts, rows } => (parts, *rows),
        };
        let shader = shaders::scatter_add();
        for (part, range) in runs(wanted, rows) {
            let moved;
            let from = if range.len() == wanted.len() {
                x
            } else {
                moved = Tensor::unwritten(device, range.len(), self.width);
                x.copy_rows(range.start, &moved, 0..range.len());
                &moved
            };
            let own: Vec<u32> = wanted[range.clone()].iter().map(|row| (row - part * rows) as u32).collect();
            let own = device.constant(bytemuck::cast_slice(&own));
            let factors = device.constant(bytemuck::cast_slice(&weights[range]));
            let to = &parts[part];
            let bindings = [
                from.read(&(0..from.rows)),
                Binding::read(&own),
                Binding::read(&factors),
                to.write(&(0..to.rows)),
            ];
            let count = from.rows * self.width;
            device.run(&shader, &bindings, &[count as u32, self.width as u32], groups_of(count.div_ceil(64)));
        }
        Ok(())
    }
}

/// The parts of `rows` rows each that a range lies in, and which rows of each.
fn split(range: Range<usize>, rows: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    (range.start / rows..range.end.div_ceil(rows)).map(move |part| {
        let start = range.start.max(part * rows) - part * rows;
        (part, start..(range.end - part * rows).min(rows))
    })
}

/// Runs of a rising list that lie in the same part of `rows` rows: the part, and where in the list.
fn runs(list: &[usize], rows: usize) -> Vec<(usize, Range<usize>)> {
    let mut runs: Vec<(usize, Range<usize>)> = Vec::new();
    for (i, row) in list.iter().enumerate() {
        match runs.last_mut() {
            Some((part, range)) if *part == row / rows => range.end = i + 1,
            _ => runs.push((row / rows, i..i + 1)),
        }
    }
    runs
}

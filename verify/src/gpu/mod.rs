//! [`Ops`](crate::ops::Ops) on a graphics processor: Metal on a Mac, Vulkan elsewhere.

mod adapters;
mod attention;
mod bank;
pub mod check;
mod commands;
mod copy;
#[cfg(test)]
mod decode_tests;
mod delta;
mod device;
mod divergence;
mod fault;
mod linear;
mod ops;
mod pool;
mod resident;
mod rowwise;
mod spans;
mod tensor;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::OutputTensor;
use kernels::divergence::State;
use kernels::shaders::{Operands, TILE};

pub use adapters::{adapters, open, real};
pub use bank::Bank;
pub use device::Device;
pub use tensor::Tensor;

use crate::error::Result;
use crate::options::Precision;
use crate::tap::Tap;
use resident::{Resident, Wanted};

/// A graphics processor, and where it gets the weights that it multiplies with.
pub struct Gpu<'a> {
    device: Arc<Device>,
    tap: &'a dyn Tap,
    operands: Operands,
    resident: Resident,
    /// Bytes for what stays on the device.
    room: u64,
    /// How often the device failed at something.
    failures: AtomicUsize,
}

/// What stays on a device takes no more bytes, however many it may.
const MOST_ROOM: u64 = 64 << 30;

/// Failures after which a device is left alone.
const MOST_FAILURES: usize = 3;

impl<'a> Gpu<'a> {
    /// For a model's graph: [`Precision::Fixed`] means products in half precision, if the device has it. Up to `room` bytes of weights
    /// stay on the device when they were used, and as many of rows of tokens.
    pub fn new(device: &Arc<Device>, tap: &'a dyn Tap, precision: Precision, room: u64) -> Gpu<'a> {
        let halves = precision == Precision::Fixed && device.has_halves();
        let room = room.min(MOST_ROOM);
        Gpu {
            device: device.clone(),
            tap,
            operands: if halves { Operands::F16 } else { Operands::F32 },
            resident: Resident::new(room),
            room,
            failures: AtomicUsize::new(0),
        }
    }

    /// Reads a layer's weights before they are needed, but for routed experts, of which nobody knows yet which ones will be.
    pub(crate) fn read_ahead(&self, layer: usize) {
        let Some(weights) = self.tap.untouched() else { return };
        let is_needed = |tensor: &OutputTensor| {
            tensor.layer == Some(layer as u32) && tensor.shape.len() == 2 && tensor.rows() > 1
        };
        let needed = || weights.tensors.iter().enumerate().filter(|(_, tensor)| is_needed(tensor));
        // As much as would drive out what is in use would be read for nothing.
        let bytes =
            needed().map(|(index, tensor)| tensor.elements() as f64 * weights.stored_as(index).1 / 8.0);
        if bytes.sum::<f64>() > self.room as f64 / 2.0 {
            return;
        }
        for (index, tensor) in needed() {
            let (rows, columns) = (0..tensor.rows() as usize, tensor.columns() as usize);
            let wanted = Wanted { tensor: index, rows, columns, grain: TILE, transposed: false };
            // What can't be read now will be asked for again.
            let _ = self.resident.get(&self.device, weights, &wanted);
        }
    }

    /// Logits against those of a reference, or alone: see [`Forward::score`](crate::forward::Forward::score).
    pub(crate) fn divergence(
        &self,
        model: &Tensor,
        reference: Option<&Tensor>,
        first: usize,
        targets: &[u32],
        states: &mut [State],
    ) -> Result<()> {
        divergence::divergence(&self.device, model, reference, first, targets, states)
    }

    /// Whether the device is to be used.
    pub(crate) fn is_usable(&self) -> bool {
        !self.device.is_lost() && self.failures.load(Ordering::Relaxed) < MOST_FAILURES
    }

    /// Tells that the processor does what the device failed at, drops all that is there, and forgets what went wrong unless the device
    /// is gone. Less stays there from now on.
    pub(crate) fn give_up(&self, what: &str, device: &str, problem: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.device.gave_up();
        self.resident.shrink();
        self.device.recover();
        let rest = if self.is_usable() { "" } else { " and all that follows" };
        // A driver may say more than a line.
        let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
        (self.device.tell)(&format!("{device}: {problem}; {what}{rest} is computed on the processor"));
    }
}

#[cfg(test)]
mod tests {
    use kernels::shaders::{Decoder, decode};

    use super::commands::Binding;
    use super::*;

    /// The device that tests run on: the first there is, which on a machine without a graphics processor is Mesa's lavapipe.
    pub fn device() -> Arc<Device> {
        open(0, |_| ()).expect("a graphics processor, or Mesa's software one (Debian: mesa-vulkan-drivers)")
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn floats_go_there_and_back() {
        let device = device();
        let values: Vec<f32> = (0..1000).map(|i| i as f32 - 500.5).collect();
        let weights = device.constant(bytemuck::cast_slice(&values));
        let out = Tensor::unwritten(&device, 125, 8);
        let bindings = [Binding::read(&weights), out.write(&(0..125))];
        device.run(&decode(&Decoder::f32()), &bindings, &[0, 0, 125, 0], [2, 1, 1]);
        assert_eq!(device.read(out.buffer(), out.bytes()).expect("values"), values);
    }
}

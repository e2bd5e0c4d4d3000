//! What the tests of kernels share.

use std::ops::Range;
use std::sync::Arc;

use kernels::matrix::Matrix;

use super::{Device, Tensor, adapters};
use crate::error::Result;
use crate::tap::Tap;
use crate::weights::Linear;

/// For operations that need none.
pub struct NoWeights;

impl Tap for NoWeights {
    fn product(&self, _: Matrix<'_>, _: &Linear) -> Result<()> {
        unreachable!("nothing is multiplied with weights")
    }

    fn rows(&self, _: usize, _: Range<usize>, _: &mut [f32]) -> Result<()> {
        unreachable!("no weights are read")
    }
}

/// The first device, as if it could bind no more than so many bytes.
pub fn limited(binding: u64) -> Arc<Device> {
    let mut device =
        Device::open(&adapters()[0], |_| ()).expect("a graphics processor, or Mesa's software one");
    device.binding = device.binding.min(binding);
    Arc::new(device)
}

/// Nearly normal numbers, of variance one.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..12).map(|_| next()).sum()).collect()
}

/// The largest difference, relative to the largest value.
pub fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    // In this order a NaN is the worst.
    worst.fold(0.0f32, |most, x| if x <= most { most } else { x }) / largest
}

/// What is in a matrix.
pub fn values(x: &Tensor) -> Vec<f32> {
    x.device.read(x.buffer(), x.bytes()).expect("values")
}

//! [`Ops`](crate::ops::Ops) on a graphics processor: Metal on a Mac, Vulkan elsewhere.

mod adapters;
#[cfg(test)]
mod decode_tests;
mod device;
mod pool;
mod tensor;

pub use adapters::{adapters, open, real};
pub use device::Device;
pub use tensor::Tensor;

#[cfg(test)]
mod tests {
    use kernels::shaders::{Decoder, decode};

    use super::device::Binding;
    use super::*;

    /// The device that tests run on: the first there is, which on a machine without a graphics processor is Mesa's lavapipe.
    pub fn device() -> std::sync::Arc<Device> {
        open(0).expect("a graphics processor, or Mesa's software one (Debian: mesa-vulkan-drivers)")
    }

    #[test]
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

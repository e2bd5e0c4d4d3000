//! The graphics processors of this machine, and which one is meant.

use std::sync::{Arc, LazyLock};

use super::check::{all_hold, check};
use super::device::Device;
use crate::error::{Error, Result};

static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| {
    let backends = wgpu::Backends::METAL | wgpu::Backends::VULKAN;
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
});

/// All adapters: cards first, then what shares the processor's memory, software last, otherwise in the system's order. `--device gpu:N`
/// counts in this list.
pub fn adapters() -> Vec<wgpu::Adapter> {
    let mut all = pollster::block_on(INSTANCE.enumerate_adapters(wgpu::Backends::all()));
    all.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    all
}

/// Opens the adapter of that number.
///
/// # Errors
/// [`Error::Usage`] if there are not so many; [`Error::Device`] if it refuses.
pub fn open(number: usize, tell: fn(&str)) -> Result<Arc<Device>> {
    let all = adapters();
    let Some(adapter) = all.get(number) else {
        let names: Vec<String> = all
            .iter()
            .enumerate()
            .map(|(i, adapter)| format!("gpu:{i} is {}", adapter.get_info().name))
            .collect();
        let found =
            if names.is_empty() { "no graphics processor was found".to_owned() } else { names.join(", ") };
        return Err(Error::Usage(format!("there is no gpu:{number}: {found}; see `halfbyte devices`")));
    };
    Device::open(adapter, tell).map(Arc::new)
}

/// The first graphics processor that is no software and computes what the processor does, if there is one. Those that don't are told of.
pub fn real(tell: fn(&str)) -> Option<Arc<Device>> {
    let is_real = |adapter: &&wgpu::Adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu;
    let usable = |adapter: &wgpu::Adapter| {
        let device = Arc::new(Device::open(adapter, tell)?);
        all_hold(&device, &check(&device)?)?;
        Ok(device)
    };
    adapters().iter().filter(is_real).find_map(|adapter| {
        usable(adapter).map_err(|error: Error| tell(&format!("{error}; it is left alone"))).ok()
    })
}

//! The graphics processor that tests run on.

use std::sync::LazyLock;

use halfbyte_verify::{Processor, gpu};

/// The first there is, or Mesa's software one; nothing may go wrong on it.
pub static GPU: LazyLock<Processor> = LazyLock::new(|| {
    let device = gpu::open(0, |line| panic!("{line}"));
    Processor::Gpu(
        device.expect("a graphics processor, or Mesa's software one (Debian: mesa-vulkan-drivers)"),
    )
});

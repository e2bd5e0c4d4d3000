//! What the core runs on, and how a user says it.

use std::fmt;
use std::str::FromStr;
#[cfg(feature = "gpu")]
use std::sync::Arc;

#[cfg(not(feature = "gpu"))]
use crate::error::Error;
use crate::error::Result;
#[cfg(feature = "gpu")]
use crate::gpu;

/// What is asked for: `auto`, `cpu`, `gpu` or `gpu:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A graphics processor that is no software, if there is one; else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The graphics processor of that number, real ones first.
    Gpu(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = |n: &str| n.parse().map_err(|_| format!("`{n}` is no number of a graphics processor"));
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "gpu" => Ok(Device::Gpu(0)),
            Some(("gpu", n)) => number(n).map(Device::Gpu),
            _ => Err("give auto, cpu, gpu or gpu:N".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(number) => write!(f, "gpu:{number}"),
        }
    }
}

/// What computes.
#[derive(Clone, Debug, Default)]
pub enum Processor {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics processor; what it can't do goes to the processor.
    #[cfg(feature = "gpu")]
    Gpu(Arc<gpu::Device>),
}

impl Processor {
    /// Opens what is asked for. `tell` gets a line whenever the processor has to step in.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) if there is no such device, or this program was built without; [`Error::Device`](crate::Error::Device) if it can't be used. A device
    /// that was not asked for by name is left alone then.
    pub fn open(device: Device, tell: fn(&str)) -> Result<Processor> {
        match device {
            Device::Cpu => Ok(Processor::Cpu),
            #[cfg(feature = "gpu")]
            Device::Auto => Ok(gpu::real(tell).map_or(Processor::Cpu, Processor::Gpu)),
            #[cfg(feature = "gpu")]
            Device::Gpu(number) => gpu::open(number, tell).map(Processor::Gpu),
            #[cfg(not(feature = "gpu"))]
            Device::Auto => Ok(Processor::Cpu),
            #[cfg(not(feature = "gpu"))]
            Device::Gpu(_) => {
                let _ = tell;
                Err(Error::Usage(
                    "this halfbyte was built without its feature `gpu`; use --device cpu".into(),
                ))
            }
        }
    }

    /// The name of the graphics processor, if it is one.
    pub fn gpu_name(&self) -> Option<String> {
        match self {
            Processor::Cpu => None,
            #[cfg(feature = "gpu")]
            Processor::Gpu(device) => Some(device.info.name.clone()),
        }
    }
}

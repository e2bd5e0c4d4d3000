//! [`Device`]: a graphics processor, and what it can do.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wgpu::Features;

use super::commands::Commands;
use super::fault::Faults;
use super::pool::Pool;
use crate::error::{Error, Result};

/// What every kernel needs of an adapter.
const NEEDED: Features = Features::IMMEDIATES;

/// What kernels make use of where it is.
const WELCOME: Features = Features::SHADER_F16
    .union(Features::SUBGROUP)
    .union(Features::MAPPABLE_PRIMARY_BUFFERS)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// Bytes of parameters that kernels take.
pub(super) const IMMEDIATES: u32 = 128;

/// No binding is larger, whatever the adapter says: beyond, indices miscompute silently
/// (<https://github.com/gfx-rs/wgpu/issues/10305>).
const LARGEST_BINDING: u64 = (4 << 30) - (1 << 20);

/// A graphics processor.
pub struct Device {
    /// Its name, and how it is driven.
    pub info: wgpu::AdapterInfo,
    /// What it has of what kernels make use of.
    pub features: Features,
    /// The largest binding, in bytes.
    pub binding: u64,
    /// Which products it can do with cooperative matrices.
    pub(super) cooperative: Cooperative,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pool: Pool,
    pub(super) commands: Commands,
    pub(super) faults: Faults,
    /// Formats that it met, and whether it decodes them rightly.
    pub(super) formats: Mutex<HashMap<String, bool>>,
    /// Gets a line for the user.
    pub(super) tell: fn(&str),
    /// Whether the processor had to step in.
    gave_up: AtomicBool,
}

/// Cooperative matrices of 8 × 8 elements that sum in `f32`, by the type of what is multiplied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cooperative {
    pub f32: bool,
    pub f16: bool,
}

impl Cooperative {
    fn of(adapter: &wgpu::Adapter) -> Cooperative {
        use wgpu::CooperativeScalarType::{F16, F32};
        if !adapter.features().contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SUBGROUP)) {
            return Cooperative::default();
        }
        let all = adapter.cooperative_matrix_properties();
        let has = |of| {
            let sizes = |m: u32, n: u32, k: u32| (m, n, k) == (8, 8, 8);
            all.iter().any(|p| sizes(p.m_size, p.n_size, p.k_size) && (p.ab_type, p.cr_type) == (of, F32))
        };
        Cooperative { f32: has(F32), f16: has(F16) }
    }
}

/// A mutex whose holder panicked holds what it held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.info.name, self.info.backend)
    }
}

impl Device {
    /// Opens an adapter. `tell` gets a line for the user whenever something is done otherwise than was asked for.
    ///
    /// # Errors
    /// [`Error::Device`] if it lacks what kernels need, or refuses.
    pub fn open(adapter: &wgpu::Adapter, tell: fn(&str)) -> Result<Device> {
        let info = adapter.get_info();
        let refused = |problem: String| Error::Device { device: info.name.clone(), problem };
        if !adapter.features().contains(NEEDED) {
            return Err(refused(format!("has no {NEEDED:?}, which every kernel needs")));
        }
        let features = NEEDED | (adapter.features() & WELCOME);
        let theirs = adapter.limits();
        let binding = theirs.max_storage_buffer_binding_size.min(theirs.max_buffer_size).min(LARGEST_BINDING);
        let limits = wgpu::Limits { max_immediate_size: IMMEDIATES, ..theirs };
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits,
            // SAFETY: cooperative matrices are used as their documentation says: 8×8, loaded, multiplied and stored by whole subgroups.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| refused(error.to_string()))?;
        let faults = Faults::of(&device);
        let commands = Commands::new(&device);
        Ok(Device {
            info,
            features,
            binding,
            cooperative: Cooperative::of(adapter),
            device,
            queue,
            pool: Pool::default(),
            commands,
            faults,
            formats: Mutex::default(),
            tell,
            gave_up: AtomicBool::new(false),
        })
    }

    /// Whether its memory is the processor's.
    pub fn is_unified(&self) -> bool {
        matches!(self.info.device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu)
    }

    /// Whether it is a program on the processor.
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// An error of this device.
    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Device { device: self.info.name.clone(), problem: problem.into() }
    }

    /// Takes note that the processor had to step in.
    pub(super) fn gave_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    /// Whether the processor had to step in.
    pub fn was_helped(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
    }

    /// Whether it multiplies with cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        self.cooperative.f32 || self.cooperative.f16
    }

    /// Whether kernels can compute in half precision.
    pub fn has_halves(&self) -> bool {
        self.features.contains(Features::SHADER_F16)
    }
}

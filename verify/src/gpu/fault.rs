//! What goes wrong on a device, which it tells when it pleases.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::device::{Device, lock};
use crate::error::Result;

/// What went wrong.
struct Fault {
    problem: String,
    /// Whether the device is gone.
    lost: bool,
}

/// The first thing that went wrong and was not forgotten yet.
#[derive(Default)]
pub(super) struct Faults {
    first: Arc<Mutex<Option<Fault>>>,
    /// How often something was forgotten: what was on the device before may never have been written.
    epoch: AtomicU64,
}

impl Faults {
    /// Listens to a device.
    pub fn of(device: &wgpu::Device) -> Faults {
        let faults = Faults::default();
        let first = faults.first.clone();
        device.on_uncaptured_error(Arc::new(move |found: wgpu::Error| {
            lock(&first).get_or_insert(Fault { problem: found.to_string(), lost: false });
        }));
        let first = faults.first.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&first) = Some(Fault { problem: format!("lost ({reason:?}) {message}"), lost: true });
        });
        faults
    }

    /// The time between two that something was forgotten.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }
}

impl Device {
    /// Whether all went well so far.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) with the first thing that did not.
    pub(super) fn check(&self) -> Result<()> {
        match &*lock(&self.faults.first) {
            Some(fault) => Err(self.error(fault.problem.clone())),
            None => Ok(()),
        }
    }

    /// Takes note of what went wrong where it can't be said at once.
    pub(crate) fn fail(&self, problem: impl Into<String>) {
        lock(&self.faults.first).get_or_insert(Fault { problem: problem.into(), lost: false });
    }

    /// Has the driver take the device away.
    #[cfg(test)]
    pub(crate) fn destroy(&self) {
        self.device.destroy();
    }

    /// Takes note that the device is gone.
    pub(super) fn lose(&self, problem: impl Into<String>) {
        *lock(&self.faults.first) = Some(Fault { problem: problem.into(), lost: true });
    }

    /// Whether it is gone.
    pub(super) fn is_lost(&self) -> bool {
        matches!(&*lock(&self.faults.first), Some(Fault { lost: true, .. }))
    }

    /// Gives memory back, forgets what was recorded and, unless the device is gone, what went wrong.
    pub(crate) fn recover(&self) {
        self.faults.epoch.fetch_add(1, Ordering::Relaxed);
        self.forget_commands();
        self.pool.clear();
        if !self.is_lost() {
            *lock(&self.faults.first) = None;
        }
    }

    /// Makes something of the device's, and says at once whether there was no memory for it or it can't be.
    pub(super) fn make<T>(&self, make: impl FnOnce(&wgpu::Device) -> T) -> Result<T> {
        let scopes =
            [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal]
                .map(|filter| self.device.push_error_scope(filter));
        let made = make(&self.device);
        let mut problem = None;
        // The last is the innermost.
        for scope in scopes.into_iter().rev() {
            problem = problem.or(now(scope.pop()));
        }
        match problem {
            Some(error) => Err(self.error(error.to_string())),
            None => Ok(made),
        }
    }
}

/// What is known without waiting.
fn now<T>(future: impl Future<Output = Option<T>>) -> Option<T> {
    pollster::block_on(future)
}

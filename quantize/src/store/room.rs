//! How many bytes of files may lie on the disk at a time.

use std::{
    sync::{Condvar, Mutex, MutexGuard},
    time::Duration,
};

use crate::stop::Stop;

/// How often somebody who waits for room asks whether to stop.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Bytes that are taken, out of so many.
#[derive(Debug)]
pub(super) struct Room {
    limit: u64,
    taken: Mutex<u64>,
    freed: Condvar,
}

impl Room {
    pub fn new(limit: u64) -> Room {
        Room { limit, taken: Mutex::new(0), freed: Condvar::new() }
    }

    fn taken(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes bytes that are on the disk already, be they too many.
    pub fn count(&self, bytes: u64) {
        *self.taken() += bytes;
    }

    /// Takes bytes once there is room for them. Whether there was: if not it was asked to stop.
    pub fn take(&self, bytes: u64, stop: &Stop<'_>) -> bool {
        let mut taken = self.taken();
        while taken.saturating_add(bytes) > self.limit {
            if stop.is_asked() {
                return false;
            }
            let woken = self.freed.wait_timeout(taken, ASK_EVERY);
            taken = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        *taken += bytes;
        true
    }

    /// Gives bytes back.
    pub fn free(&self, bytes: u64) {
        let mut taken = self.taken();
        *taken = taken.saturating_sub(bytes);
        self.freed.notify_all();
    }
}

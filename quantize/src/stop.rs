//! When a pass has to stop before its end: the user said so, or one of its stages failed.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::error::Result;

/// Asked by every stage that may work on, or wait, for long.
pub(crate) struct Stop<'a> {
    cancel: &'a AtomicBool,
    failed: AtomicBool,
}

impl<'a> Stop<'a> {
    /// With the user's flag.
    pub fn new(cancel: &'a AtomicBool) -> Stop<'a> {
        Stop { cancel, failed: AtomicBool::new(false) }
    }

    /// Whether to stop.
    pub fn is_asked(&self) -> bool {
        self.failed.load(SeqCst) || self.cancel.load(SeqCst)
    }

    /// Passes a stage's result on. If it failed the others stop: the user's flag is set too, for a source that waits for a file
    /// on a thread of this pass watches that one alone.
    pub fn watch<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.failed.store(true, SeqCst);
            self.cancel.store(true, SeqCst);
        }
        result
    }
}

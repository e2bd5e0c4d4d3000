//! Ctrl-C.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

/// A flag that Ctrl-C sets, the same for all who ask. A second Ctrl-C ends the process at once.
pub fn interruptible() -> Result<Arc<AtomicBool>> {
    static CANCEL: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(cancel) = CANCEL.get() {
        return Ok(Arc::clone(cancel));
    }
    let cancel = Arc::clone(CANCEL.get_or_init(Arc::default));
    let flag = Arc::clone(&cancel);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(crate::INTERRUPTED));
        }
        eprintln!("\nstopping after what is under way (Ctrl-C again: at once)");
    })
    .context("can't watch for Ctrl-C")?;
    Ok(cancel)
}

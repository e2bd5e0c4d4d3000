//! Ctrl-C.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};

/// A flag that Ctrl-C sets. A second Ctrl-C ends the process at once.
pub fn interruptible() -> Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
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

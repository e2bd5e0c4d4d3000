//! The thread that has whole files taken away.

use std::sync::{Mutex, mpsc::Receiver};

use formats::{Layout, layout::Placement};

use crate::{
    error::Result,
    journal::{Journal, Line},
    keep::lock,
    outlet::{Outlet, Shipped},
    stop::Stop,
    store::Store,
};

/// Syncs and hashes each file, has it taken, notes that, and removes it. Stops between two files if it is asked to.
///
/// # Errors
/// If the outlet or the system refuses.
pub(crate) fn ship(
    outlet: &dyn Outlet,
    store: &Store<'_>,
    layout: &Layout,
    journal: &Mutex<Journal>,
    files: &Receiver<usize>,
    stop: &Stop<'_>,
) -> Result<Vec<Shipped>> {
    let mut shipped = Vec::new();
    for file in files {
        if stop.is_asked() {
            break;
        }
        store.sync(file)?;
        let bytes = layout.files[file].len;
        let sha256 = store.hash(Placement { file, offset: 0, len: bytes })?;
        let whole = Shipped { name: layout.files[file].name.clone(), bytes, sha256 };
        match outlet.take(store.path(file), &whole) {
            // It was woken up.
            Err(_) if stop.is_asked() => break,
            taken => taken?,
        }
        lock(journal).append(&[Line::Shipped(whole.clone())])?;
        store.part_with(file)?;
        shipped.push(whole);
    }
    Ok(shipped)
}

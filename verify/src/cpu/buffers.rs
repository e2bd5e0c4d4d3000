//! Memory of matrices that are no longer needed, for the next ones: a layer makes and drops dozens of the same sizes, and fresh
//! memory would have to be cleared by the system each time.

use std::cell::RefCell;

/// Buffers kept. A layer has about this many matrices alive at once.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// `len` values, whatever they are: for a matrix of which every element will be written.
pub(super) fn take(len: usize) -> Vec<f32> {
    let found = FREE.with_borrow_mut(|free| {
        let fits = free.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= len);
        let best = fits.min_by_key(|(_, buffer)| buffer.capacity()).map(|(i, _)| i);
        best.map(|i| free.swap_remove(i))
    });
    let mut buffer = found.unwrap_or_default();
    buffer.resize(len, 0.0);
    buffer
}

/// Takes a matrix's memory back.
pub(super) fn give(buffer: Vec<f32>) {
    if buffer.capacity() == 0 {
        return;
    }
    FREE.with_borrow_mut(|free| {
        free.push(buffer);
        if free.len() > KEPT {
            // The smallest is the cheapest to make again.
            let smallest =
                free.iter().enumerate().min_by_key(|(_, buffer)| buffer.capacity()).map(|(i, _)| i);
            free.swap_remove(smallest.unwrap_or(0));
        }
    });
}

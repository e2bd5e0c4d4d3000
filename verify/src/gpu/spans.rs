//! What of matrices can be bound at once: no binding may be larger than the device allows, and each begins at a multiple of 256 bytes.

use std::ops::Range;

use super::device::Device;
use crate::ops::Sequences;

/// Where bindings may begin on every device.
const ALIGNMENT: usize = 256;

/// The most that a grid may have of anything.
pub(super) const LARGEST_GRID: usize = 65_535;

/// Sequences that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub rows: Range<usize>,
    pub lengths: Vec<usize>,
    /// Whether they can be bound at once; if not, it is only one.
    pub fits: bool,
}

/// All sequences, as many at a time as can be bound of matrices with so many `columns`.
pub(super) fn spans(device: &Device, sequences: &Sequences, columns: &[usize]) -> Vec<Span> {
    let fits = |rows: &Range<usize>| {
        columns.iter().all(|columns| {
            let bytes = rows.len() as u64 * 4 * *columns as u64;
            bytes <= device.binding && (rows.start * 4 * columns).is_multiple_of(ALIGNMENT)
        })
    };
    let mut spans: Vec<Span> = Vec::new();
    for rows in sequences.rows().filter(|rows| !rows.is_empty()) {
        if let Some(last) = spans.last_mut().filter(|last| last.lengths.len() < LARGEST_GRID) {
            let longer = last.rows.start..rows.end;
            if fits(&longer) {
                last.lengths.push(rows.len());
                last.rows = longer;
                continue;
            }
        }
        let fits = fits(&rows);
        spans.push(Span { lengths: vec![rows.len()], fits, rows });
    }
    spans
}

/// Every so many rows of `columns` values begin where a binding may.
pub(super) fn row_step(columns: usize) -> usize {
    (ALIGNMENT / 4) >> columns.trailing_zeros().min(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a graphics processor"]
    fn sequences_go_together_as_far_as_they_fit() {
        let mut device = Device::open(&crate::gpu::adapters()[0], |_| ()).expect("a device");
        device.binding = 4 * 64 * 20;
        let sequences = Sequences { lengths: vec![7, 0, 13, 1, 21, 3] };
        let found = spans(&device, &sequences, &[64, 32]);
        let rows: Vec<_> = found.iter().map(|span| (span.rows.clone(), span.fits)).collect();
        // Row 21 of 32 columns begins in the middle of 256 bytes; 42 does not.
        assert_eq!(rows, [(0..20, true), (20..21, true), (21..42, false), (42..45, true)]);
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn steps_of_rows_are_aligned() {
        for (columns, step) in [(1, 64), (3, 64), (6, 32), (64, 1), (96, 2), (4096, 1)] {
            assert_eq!(row_step(columns), step);
        }
    }
}

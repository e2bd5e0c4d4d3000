//! Rows of `f32` that outlive an operation (hidden states): in memory while there is room, else in a temporary file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Room for stores: so many bytes of memory, and the disk beyond.
#[derive(Clone, Debug)]
pub struct Space {
    left: Arc<AtomicU64>,
}

impl Space {
    /// `bytes` of memory.
    pub fn new(bytes: u64) -> Space {
        Space { left: Arc::new(AtomicU64::new(bytes)) }
    }

    /// Whether so many bytes of memory are left.
    pub fn holds(&self, bytes: u64) -> bool {
        self.left.load(Ordering::Relaxed) >= bytes
    }

    /// A store of `rows` rows of `width` zeros.
    ///
    /// # Errors
    /// [`Error::Io`] if it has to be on disk and can't.
    pub fn store(&self, rows: usize, width: usize) -> Result<Store> {
        let bytes = (rows * width * size_of::<f32>()) as u64;
        let fits =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let place = if fits.is_ok() {
            Place::Memory { values: vec![0.0; rows * width], bytes, space: self.clone() }
        } else {
            let file = tempfile::tempfile().map_err(spill_error)?;
            file.set_len(bytes).map_err(spill_error)?;
            Place::Disk(file)
        };
        Ok(Store { width, rows, place })
    }
}

/// Rows of `width` values each.
#[derive(Debug)]
pub struct Store {
    /// Values in a row.
    pub width: usize,
    /// Number of rows.
    pub rows: usize,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory { values: Vec<f32>, bytes: u64, space: Space },
    Disk(File),
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Place::Memory { bytes, space, .. } = self {
            space.left.fetch_add(*bytes, Ordering::Relaxed);
        }
    }
}

fn spill_error(source: std::io::Error) -> Error {
    Error::Io { path: std::env::temp_dir(), source }
}

/// Copies on all cores.
fn copy(from: &[f32], to: &mut [f32]) {
    const CHUNK: usize = 1 << 16;
    assert_eq!(from.len(), to.len());
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
}

impl Store {
    /// Copies rows out.
    ///
    /// # Errors
    /// [`Error::Io`] if they are on disk and can't be read.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let at = rows.start * self.width;
        match &self.place {
            Place::Memory { values, .. } => copy(&values[at..rows.end * self.width], out),
            Place::Disk(file) => {
                file.read_exact_at(bytemuck::cast_slice_mut(out), at as u64 * 4).map_err(spill_error)?;
            }
        }
        Ok(())
    }

    /// Replaces rows.
    ///
    /// # Errors
    /// [`Error::Io`] if they are on disk and can't be written.
    pub fn write(&mut self, first: usize, from: &[f32]) -> Result<()> {
        let at = first * self.width;
        match &mut self.place {
            Place::Memory { values, .. } => copy(from, &mut values[at..at + from.len()]),
            Place::Disk(file) => {
                file.write_all_at(bytemuck::cast_slice(from), at as u64 * 4).map_err(spill_error)?;
            }
        }
        Ok(())
    }

    /// Replaces all rows by those of other stores of the same width, one store after the other.
    ///
    /// # Errors
    /// As [`read`](Self::read) and [`write`](Self::write).
    pub fn join(&mut self, stores: &[&Store]) -> Result<()> {
        const ROWS: usize = 256;
        let (mut at, mut values) = (0, Vec::new());
        for store in stores {
            for first in (0..store.rows).step_by(ROWS) {
                let rows = first..store.rows.min(first + ROWS);
                values.resize(rows.len() * self.width, 0.0);
                store.read(rows.clone(), &mut values)?;
                self.write(at, &values)?;
                at += rows.len();
            }
        }
        Ok(())
    }

    /// Copies single rows out, one after the other.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn gather(&self, rows: &[usize], out: &mut [f32]) -> Result<()> {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.width)) {
            self.read(row..row + 1, out)?;
        }
        Ok(())
    }

    /// Adds `weights[i] · from[i]` to row `rows[i]`, in this order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, rows: &[usize], weights: &[f32], from: &[f32]) -> Result<()> {
        let mut sum = vec![0.0; self.width];
        for ((&row, &weight), from) in rows.iter().zip(weights).zip(from.chunks_exact(self.width)) {
            self.read(row..row + 1, &mut sum)?;
            sum.iter_mut().zip(from).for_each(|(sum, &value)| *sum += weight * value);
            self.write(row, &sum)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_disk_hold_the_same() {
        // Room for one of the two.
        let space = Space::new(3 * 2 * 4);
        let mut stores = [space.store(3, 2).expect("store"), space.store(3, 2).expect("store")];
        assert!(matches!(stores[0].place, Place::Memory { .. }) && matches!(stores[1].place, Place::Disk(_)));
        for store in &mut stores {
            store.write(1, &[1.0, 2.0, 3.0, 4.0]).expect("write");
            store.add(&[2, 0], &[0.5, 2.0], &[2.0, 2.0, 5.0, 6.0]).expect("add");
            let mut all = [f32::NAN; 6];
            store.read(0..3, &mut all).expect("read");
            assert_eq!(all, [10.0, 12.0, 1.0, 2.0, 4.0, 5.0]);
            let mut two = [f32::NAN; 4];
            store.gather(&[2, 1], &mut two).expect("gather");
            assert_eq!(two, [4.0, 5.0, 1.0, 2.0]);
        }
        drop(stores);
        assert_eq!(space.left.load(Ordering::Relaxed), 24);
    }
}

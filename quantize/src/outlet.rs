//! Files that leave while the rest is written, so that the disk need not hold the whole output.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Takes finished files away while the rest is written.
pub trait Outlet: Sync {
    /// Most bytes of output files that may lie on the disk at a time. Side files, which hold no tensors, are not counted.
    fn room(&self) -> u64;

    /// Takes the whole and synced file at `path`. It is removed afterwards. Called from one thread, one file after the other. A
    /// file comes again if the run ended before it was noted that it was taken.
    ///
    /// # Errors
    /// Whatever keeps it from being taken: the run ends with it, and goes on from there when it is run again.
    fn take(&self, path: &Path, file: &Shipped) -> Result<()>;
}

/// A file that was taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipped {
    /// Its name in the output.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of all of it.
    pub sha256: String,
}

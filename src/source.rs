//! What a user names as a model.

use std::path::Path;

use anyhow::Result;
use formats::Source;

/// The model that a command line names.
pub fn open(named: &Path) -> Result<Source> {
    Ok(named.into())
}

//! `halfbyte inspect`.
use crate::args;
use anyhow::Result;
/// Shows it.
pub fn run(_: &args::Inspect) -> Result<()> {
    Ok(())
}

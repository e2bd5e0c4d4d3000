//! `halfbyte formats`.
use crate::args;
use anyhow::Result;
/// Lists them.
pub fn run(_: &args::Formats) -> Result<()> {
    Ok(())
}

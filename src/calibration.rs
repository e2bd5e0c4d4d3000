//! The text to calibrate on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use quantize::calibrate::{Calibration, Rounding};

use crate::args;

/// A text and what is done with it.
pub struct Text {
    /// The text.
    pub text: String,
    /// What stands in the recipe.
    pub calibration: Calibration,
}

/// Reads it, if there is one.
pub fn read(args: &args::Calibrate) -> Result<Option<Text>> {
    let Some(name) = &args.calibrate else { return Ok(None) };
    let text = fs::read_to_string(Path::new(name))
        .with_context(|| format!("can't read {name}, the text to calibrate on (--calibrate)"))?;
    let rounding = match args.rounding {
        Some(args::Rounding::Nearest) => Rounding::Nearest,
        Some(args::Rounding::Search) => Rounding::Search,
        Some(args::Rounding::Feedback) | None => Rounding::Feedback,
    };
    let calibration = Calibration::new(&text, args.calibration_context, args.calibration_chunks, rounding);
    Ok(Some(Text { text, calibration }))
}

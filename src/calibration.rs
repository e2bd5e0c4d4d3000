//! The text to calibrate on.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use quantize::calibrate::{Calibration, Rounding};
use quantize::fit::{self, Basis, Wish};

use crate::args;
use crate::progress::Watch;

/// Ceiling for hidden states and buffers while costs are measured.
const MEMORY: u64 = 1 << 30;

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

impl Text {
    /// Measures on the text what each type costs each tensor.
    pub fn measure(
        &self,
        source: &Path,
        wish: &Wish,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Basis> {
        let context = self.calibration.context;
        Ok(fit::measure(source, wish, &self.text, context, threads, MEMORY, &Watch::new(), cancel)?)
    }
}

//! The text to calibrate on.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use formats::Source;
use quantize::Error;
use quantize::calibrate::imatrix::Importance;
use quantize::calibrate::{Calibration, Rounding, text};
use quantize::fit::{self, Basis, Wish};
use verify::Processor;

use crate::args;
use crate::progress::Watch;

/// Ceiling for hidden states and buffers while costs are measured.
const MEMORY: u64 = 1 << 30;

/// A text and what is done with it.
pub struct Text {
    /// Its file, or the word for it.
    name: String,
    /// The text.
    pub text: Cow<'static, str>,
    /// What stands in the recipe.
    pub calibration: Calibration,
    /// What runs the model.
    pub processor: Processor,
    /// What the model's linears get from it, if it is to be written.
    pub seen: Option<Seen>,
}

/// An importance matrix that is to be written.
pub struct Seen {
    path: PathBuf,
    /// What it is gathered in.
    pub importance: Mutex<Importance>,
}

impl Seen {
    /// Writes it.
    pub fn write(&self, calibration: &Calibration) -> Result<()> {
        let importance = self.importance.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if importance.tensors.is_empty() {
            bail!(
                "the output is there already, so the model was not evaluated and there is nothing to write to {} \
                 (--imatrix-out): --overwrite makes both anew",
                self.path.display()
            );
        }
        importance.write(&self.path, calibration.context as u32)?;
        Ok(())
    }
}

/// The word for the text that comes with the tool.
const DEFAULT: &str = "default";

/// Reads it, if there is one.
pub fn read(args: &args::Calibrate, on: &args::OnDevice) -> Result<Option<Text>> {
    let Some(name) = &args.calibrate else { return Ok(None) };
    let text: Cow<_> = match name.as_str() {
        DEFAULT => text::DEFAULT.into(),
        file => fs::read_to_string(file)
            .with_context(|| format!("can't read {file}, the text to calibrate on (--calibrate)"))?
            .into(),
    };
    let rounding = match args.rounding {
        Some(args::Rounding::Nearest) => Rounding::Nearest,
        Some(args::Rounding::Search) => Rounding::Search,
        Some(args::Rounding::Feedback) | None => Rounding::Feedback,
    };
    let processor = on.open()?;
    let (context, chunks) = (args.calibration_context, args.calibration_chunks);
    let calibration = Calibration::new(&text, context, chunks, rounding, &processor);
    Ok(Some(Text { name: name.clone(), text, calibration, processor, seen: None }))
}

impl Text {
    /// Has what the model's linears get from it gathered, to be written to `path`.
    pub fn gather(&mut self, path: &Path) -> Result<()> {
        if self.calibration.rounding == Rounding::Nearest {
            let detail = "--imatrix-out needs the model to be evaluated: not with --rounding nearest";
            return Err(Error::Usage(detail.into()).into());
        }
        let importance = Importance { datasets: vec![self.name.clone()], ..Importance::default() };
        self.seen = Some(Seen { path: path.to_owned(), importance: Mutex::new(importance) });
        Ok(())
    }

    /// Measures on the text what each type costs each tensor.
    pub fn measure(
        &self,
        source: &Source,
        wish: &Wish,
        threads: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<Basis> {
        let on = fit::On { processor: self.processor.clone(), threads, memory: MEMORY };
        Ok(fit::measure(source, wish, &self.text, self.calibration.context, on, &Watch::new(), cancel)?)
    }
}

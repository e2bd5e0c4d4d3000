//! All logits of a model as a safetensors file, for comparing cores: `logits` [sequences, length, vocabulary] in F32.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::forward::{Forward, VOCABULARY_TILE};
use crate::progress::{Phase, Progress};
use crate::windows::Windows;

/// Tokens whose logits are held at once.
const TOKENS: usize = 128;

/// Writes the logits of every position to `path`, under another name until they are complete.
///
/// # Errors
/// [`Error::Usage`] if the sequences differ in length, [`Error::Io`] if the file can't be written, [`Error::Interrupted`] once
/// `cancel` is set; then nothing is left behind.
pub fn write(
    path: &Path,
    forward: &Forward<'_>,
    windows: &Windows,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<()> {
    let length = windows.sequences.first().map_or(0, Vec::len);
    if windows.sequences.iter().any(|tokens| tokens.len() != length) {
        return Err(Error::Usage("--logits wants sequences of one length; without --stride they are".into()));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = write_rows(&partial, forward, [windows.sequences.len(), length], progress, cancel)
        .and_then(|()| fs::rename(&partial, path).map_err(Error::io(path)));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

fn write_rows(
    path: &Path,
    forward: &Forward<'_>,
    [sequences, length]: [usize; 2],
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<()> {
    let (vocabulary, rows) = (forward.vocabulary(), sequences * length);
    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    let header = serde_json::json!({ "logits": {
        "dtype": "F32", "shape": [sequences, length, vocabulary], "data_offsets": [0, rows * vocabulary * 4],
    }});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
    file.write_all(&header).map_err(Error::io(path))?;
    progress.begin(Phase::Scoring, rows.div_ceil(TOKENS));
    for (step, first) in (0..rows).step_by(TOKENS).enumerate() {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let some: Vec<usize> = (first..rows.min(first + TOKENS)).collect();
        let finished = forward.finish(&some)?;
        let mut all = vec![0.0f32; some.len() * vocabulary];
        for start in (0..vocabulary).step_by(VOCABULARY_TILE) {
            let end = vocabulary.min(start + VOCABULARY_TILE);
            let logits = forward.logits(&finished, start..end)?;
            for (row, logits) in all.chunks_exact_mut(vocabulary).zip(logits.chunks_exact(end - start)) {
                row[start..end].copy_from_slice(logits);
            }
        }
        file.write_all(bytemuck::cast_slice(&all)).map_err(Error::io(path))?;
        progress.done(step + 1);
    }
    progress.end();
    let file = file.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
    file.sync_all().map_err(Error::io(path))
}

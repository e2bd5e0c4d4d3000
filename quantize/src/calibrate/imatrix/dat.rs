//! The older form of an importance matrix.

use std::{fs, path::Path};

use super::{Channels, Importance, wrong};
use crate::error::{Error, Result};

/// The longest name of a tensor or of a text that is believed.
const LONGEST_NAME: usize = 4096;

/// Reads a file; what its entries hold is checked by the caller.
///
/// # Errors
/// [`Error::Imatrix`] if it is cut off or a length in it is impossible, [`Error::Io`].
pub(super) fn read(path: &Path) -> Result<Importance> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    parse(&bytes).map_err(|detail| wrong(path, detail))
}

pub(super) fn parse(bytes: &[u8]) -> Result<Importance, String> {
    let mut rest = Rest { bytes, len: bytes.len() };
    let entries = rest.int("the number of entries")?;
    let mut importance = Importance::default();
    for entry in 0..entries.max(0) {
        let name = rest.name(&format!("the name of entry {entry} of {entries}"))?;
        let chunks = rest.int(&name)?;
        let columns = rest.int(&name)?;
        if columns < 1 || chunks < 0 {
            return Err(format!("{name}: {columns} values of {chunks} chunks"));
        }
        let bytes = rest.take(columns as usize, 4, &name)?;
        let sums = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        // Without a number of chunks, the values are the means themselves.
        let channels = Channels { columns: columns as usize, sums, counts: vec![chunks.max(1) as f32] };
        importance.tensors.insert(name, channels);
    }
    // The first versions ended here.
    if !rest.bytes.is_empty() {
        importance.chunks = rest.int("the number of chunks")?.max(0) as u32;
        if !rest.bytes.is_empty() {
            importance.datasets.push(rest.name("the name of the text")?);
        }
    }
    Ok(importance)
}

/// What is still to be read, and how long the whole was.
struct Rest<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize, size: usize, what: &str) -> Result<&'a [u8], String> {
        let wanted = count.checked_mul(size);
        let (taken, rest) = wanted.and_then(|wanted| self.bytes.split_at_checked(wanted)).ok_or_else(|| {
            let at = self.len - self.bytes.len();
            format!(
                "neither a GGUF file nor a whole `.dat`: {what} should be {count} × {size} bytes at {at}, but the file ends at {}",
                self.len
            )
        })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn int(&mut self, what: &str) -> Result<i32, String> {
        let bytes = self.take(1, 4, what)?;
        Ok(bytes.as_chunks().0.first().map_or(0, |bytes| i32::from_le_bytes(*bytes)))
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let len = self.int(what)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= LONGEST_NAME);
        let len =
            len.ok_or_else(|| format!("neither a GGUF file nor a `.dat`: {what} has an impossible length"))?;
        Ok(String::from_utf8_lossy(self.take(len, 1, what)?).into_owned())
    }
}

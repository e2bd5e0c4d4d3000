//! Which tokens the model reads.

use verify::{Tokenizer, windows::Windows};

use crate::error::Result;

/// Tokens in all. They are read in pieces as long as those that the model is calibrated on: a tiny model that was trained on short
/// texts diverges twice as much behind its context as within.
const TOKENS: usize = 512;

/// Bytes of text that have so many tokens in any language and tokenizer.
const BYTES_PER_TOKEN: usize = 24;

/// [`TOKENS`] tokens in sequences of `context`, at even distances through the text: with one, from its middle.
///
/// # Errors
/// If the model has no tokenizer, or the text is too short.
pub fn sequences(checkpoint: &formats::Checkpoint, text: &str, context: usize) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let context = context.min(TOKENS);
    let pieces = (TOKENS / context.max(1)).max(1);
    let piece = |index: usize| -> Result<Vec<u32>> {
        let start = text.floor_char_boundary(text.len() / (2 * pieces) * (2 * index + 1));
        let end = text.floor_char_boundary(text.len().min(start + context * BYTES_PER_TOKEN));
        let tokens = tokenizer.encode(&text[start..end])?;
        Ok(Windows::chunks(&tokens, tokenizer.bos(), context, Some(1))?.sequences.concat())
    };
    (0..pieces).map(piece).collect()
}

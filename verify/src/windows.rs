//! What is evaluated: sequences of tokens, and which positions of each are scored.

use std::fs;
use std::ops::Range;
use std::path::Path;

use formats::safetensors::Safetensors;
use formats::{Checkpoint, Dtype, TensorSource};

use crate::error::{Error, Result};
use crate::options::{Input, Options};
use crate::tokenizer::Tokenizer;

/// Sequences of tokens and what is scored of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The tokens of each sequence.
    pub sequences: Vec<Vec<u32>>,
    /// For each sequence the positions whose prediction of the next token is scored.
    pub scored: Vec<Range<usize>>,
    /// How they were cut out of the text, in one line.
    pub protocol: String,
}

impl Windows {
    /// What `options` say, by the model's tokenizer, or the reference's if the model has none.
    ///
    /// # Errors
    /// If the input can't be read, neither has a tokenizer, or the text is too short.
    pub fn of(options: &Options, model: &Checkpoint, reference: Option<&Checkpoint>) -> Result<Windows> {
        let path = match &options.input {
            Input::Tokens(path) => return Windows::of_file(path),
            Input::Text(path) => path,
        };
        let tokenizer = Tokenizer::of(model).or_else(|error| match reference {
            Some(reference) => Tokenizer::of(reference).map_err(|_| error),
            None => Err(error),
        })?;
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        let tokens = tokenizer.encode(&text)?;
        match options.stride {
            Some(stride) => Windows::strided(&tokens, options.context, stride, options.chunks),
            None => Windows::chunks(&tokens, tokenizer.bos(), options.context, options.chunks),
        }
    }

    /// llama-perplexity's protocol (llama.cpp, `tools/perplexity/perplexity.cpp`): chunks of `context` tokens that follow each
    /// other, the first token of each replaced by `bos` if the model asks for it, the second half scored.
    ///
    /// # Errors
    /// [`Error::TextTooShort`] if there is not one chunk; [`Error::Usage`] if a chunk has nothing to score.
    pub fn chunks(
        tokens: &[u32],
        bos: Option<u32>,
        context: usize,
        chunks: Option<usize>,
    ) -> Result<Windows> {
        if context < 4 {
            return Err(Error::Usage(format!("--context {context} leaves nothing to score: take 4 or more")));
        }
        let count = chunks.unwrap_or(usize::MAX).min(tokens.len() / context);
        if count == 0 {
            return Err(Error::TextTooShort { tokens: tokens.len(), context });
        }
        let mut sequences: Vec<Vec<u32>> =
            tokens.chunks_exact(context).take(count).map(<[u32]>::to_vec).collect();
        if let Some(bos) = bos {
            sequences.iter_mut().for_each(|tokens| tokens[0] = bos);
        }
        let scored = context / 2..context - 1;
        let protocol = format!(
            "llama-perplexity's: {count} chunk{} of {context} tokens, {}, positions {} to {} of each scored",
            if count == 1 { "" } else { "s" },
            if bos.is_some() { "each begun with BOS" } else { "no BOS" },
            scored.start,
            scored.end - 1,
        );
        Ok(Windows { sequences, scored: vec![scored; count], protocol })
    }

    /// A window of `context` tokens that slides by `stride`: each scores the tokens that are new to it, the first all but its
    /// own first (as the strided perplexity of papers and of transformers' documentation).
    ///
    /// # Errors
    /// [`Error::TextTooShort`] if there are not two tokens; [`Error::Usage`] if the stride is no step within the window.
    pub fn strided(tokens: &[u32], context: usize, stride: usize, windows: Option<usize>) -> Result<Windows> {
        if !(1..=context).contains(&stride) || context < 2 {
            return Err(Error::Usage(format!("--stride {stride} must be from 1 to --context {context}")));
        }
        if tokens.len() < 2 {
            return Err(Error::TextTooShort { tokens: tokens.len(), context });
        }
        let (mut sequences, mut scored) = (Vec::new(), Vec::new());
        // Tokens before this one are scored; the first can't be.
        let mut done = 1;
        for first in (0..tokens.len()).step_by(stride).take(windows.unwrap_or(usize::MAX)) {
            let end = tokens.len().min(first + context);
            if end <= done {
                break;
            }
            sequences.push(tokens[first..end].to_vec());
            // The first token of a window has nothing before it.
            scored.push(done.max(first + 1) - 1 - first..end - 1 - first);
            done = end;
        }
        let protocol = format!(
            "sliding: {} window{} of {context} tokens, {stride} apart, each scoring what is new to it",
            sequences.len(),
            if sequences.len() == 1 { "" } else { "s" },
        );
        Ok(Windows { sequences, scored, protocol })
    }

    /// The sequences of a safetensors file: `input_ids` [n, length] in I64, I32 or U32. Every position but the last is scored.
    ///
    /// # Errors
    /// If the file can't be read, or holds no such tensor.
    pub fn of_file(path: &Path) -> Result<Windows> {
        let file = Safetensors::open_file(path)?;
        let fail = |problem: String| Error::Tokens { path: path.to_owned(), problem };
        let id = file.find("input_ids").ok_or_else(|| fail("has no tensor `input_ids`".into()))?;
        let meta = file.meta(id);
        let &[count, length] = &meta.shape[..] else {
            return Err(fail(format!("`input_ids` has shape {:?}, not [sequences, length]", meta.shape)));
        };
        if count == 0 || length < 2 {
            return Err(fail(format!("`input_ids` of shape {:?} has nothing to predict", meta.shape)));
        }
        let Dtype::Other { name, bytes: width @ (4 | 8) } = meta.dtype else {
            return Err(fail(format!("`input_ids` is {}, not I64, I32 or U32", meta.dtype)));
        };
        let mut bytes = vec![0; usize::try_from(meta.len).unwrap_or(usize::MAX)];
        file.read_at(id, 0, &mut bytes)?;
        let token = |bytes: &[u8]| -> Result<u32> {
            let number = match *bytes {
                [a, b, c, d] if name == "U32" => i64::from(u32::from_le_bytes([a, b, c, d])),
                [a, b, c, d] if name == "I32" => i64::from(i32::from_le_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] if name == "I64" => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => return Err(fail(format!("`input_ids` is {name}, not I64, I32 or U32"))),
            };
            u32::try_from(number).map_err(|_| fail(format!("`input_ids` holds {number}, which is no token")))
        };
        let ids: Vec<u32> = bytes.chunks_exact(width).map(token).collect::<Result<_>>()?;
        let length = length as usize;
        let protocol = format!("token ids: {count} sequences of {length}, all but the first of each scored");
        Ok(Windows {
            sequences: ids.chunks_exact(length).map(<[u32]>::to_vec).collect(),
            scored: vec![0..length - 1; count as usize],
            protocol,
        })
    }

    /// Scored positions, numbered through all sequences, and the token that follows each.
    pub fn targets(&self) -> Vec<(usize, u32)> {
        let mut targets = Vec::new();
        let mut first = 0;
        for (tokens, scored) in self.sequences.iter().zip(&self.scored) {
            targets.extend(scored.clone().map(|position| (first + position, tokens[position + 1])));
            first += tokens.len();
        }
        targets
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_tokens_that_follow() {
        let windows = Windows {
            sequences: vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8]],
            scored: vec![1..3, 2..3],
            protocol: String::new(),
        };
        assert_eq!(windows.targets(), [(1, 3), (2, 4), (6, 8)]);
    }

    #[test]
    fn chunks_score_their_second_half() {
        let tokens: Vec<u32> = (0..1100).collect();
        let windows = Windows::chunks(&tokens, Some(7), 512, None).expect("chunks");
        assert_eq!(windows.sequences.len(), 2);
        assert_eq!((windows.sequences[1][0], windows.sequences[1][1]), (7, 513));
        assert_eq!(windows.scored, [256..511, 256..511]);
        let one = Windows::chunks(&tokens, None, 512, Some(1)).expect("chunks");
        assert_eq!((one.sequences.len(), one.sequences[0][0]), (1, 0));
        assert!(
            one.protocol.contains("1 chunk of 512 tokens, no BOS, positions 256 to 510"),
            "{}",
            one.protocol
        );
        let error = Windows::chunks(&tokens, None, 2048, None).expect_err("too short").to_string();
        assert!(error.contains("1100") && error.contains("2048"), "{error}");
    }

    #[test]
    fn a_sliding_window_scores_every_token_once() {
        let tokens: Vec<u32> = (0..25).collect();
        for (context, stride) in [(10, 4), (10, 9), (25, 1), (40, 7)] {
            let windows = Windows::strided(&tokens, context, stride, None).expect("windows");
            let scored: Vec<u32> = windows.targets().iter().map(|target| target.1).collect();
            assert_eq!(scored, (1..25).collect::<Vec<u32>>(), "{context} {stride}");
        }
        let apart = Windows::strided(&tokens, 10, 10, None).expect("windows");
        assert_eq!(apart.scored, [0..9, 0..9, 0..4]);
        assert!(Windows::strided(&tokens, 10, 11, None).is_err());
    }
}

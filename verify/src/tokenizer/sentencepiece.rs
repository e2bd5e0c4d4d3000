//! SentencePiece's BPE as llama.cpp runs it (`llm_tokenizer_spm_session`): characters are merged to tokens, those of the best
//! score first, of equals the leftmost; what is no token is spelled in byte tokens.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What stands for a space.
const SPACE: &str = "\u{2581}";

/// A vocabulary with scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    tokens: HashMap<String, (u32, f32)>,
    /// By byte.
    bytes: Vec<Option<u32>>,
}

/// A piece of the text: characters merged so far. Empty once merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that make a token.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// Length of the token: one of the neighbours has changed if they don't make it up any more.
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Merge) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Merge) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Merge) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

impl SentencePiece {
    /// From texts and scores by id.
    pub fn new(tokens: HashMap<String, (u32, f32)>) -> SentencePiece {
        let byte = |byte| tokens.get(&format!("<0x{byte:02X}>")).map(|(id, _)| *id);
        let bytes = (0..=u8::MAX).map(byte).collect();
        SentencePiece { tokens, bytes }
    }

    /// Appends the ids of `text`, in front of which a space is put if `prefix`.
    ///
    /// # Errors
    /// With the byte that the vocabulary can't spell.
    pub fn encode(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) -> Result<(), u8> {
        let mut escaped = if prefix { SPACE.to_owned() } else { String::new() };
        escaped.push_str(&text.replace(' ', SPACE));
        let text = escaped.as_str();

        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                previous: i.checked_sub(1),
                next: (start + c.len_utf8() < text.len()).then_some(i + 1),
            })
            .collect();
        let mut merges = BinaryHeap::new();
        for right in 1..symbols.len() {
            merges.extend(self.merge(text, &symbols, Some(right - 1), Some(right)));
        }
        while let Some(Merge { left, right, len, .. }) = merges.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            symbols[left] = Symbol { len, next: b.next, ..a };
            symbols[right].len = 0;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
            }
            merges.extend(self.merge(text, &symbols, a.previous, Some(left)));
            merges.extend(self.merge(text, &symbols, Some(left), b.next));
        }

        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.tokens.get(piece) {
                Some((id, _)) => ids.push(*id),
                None => {
                    for byte in piece.bytes() {
                        ids.push(self.bytes[usize::from(byte)].ok_or(byte)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The merge of two neighbours, if they make a token.
    fn merge(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Merge> {
        let (left, right) = (left?, right?);
        let len = symbols[left].len + symbols[right].len;
        let start = symbols[left].start;
        let (_, score) = self.tokens.get(&text[start..start + len])?;
        Some(Merge { score: *score, left, right, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(tokens: &[(&str, f32)]) -> SentencePiece {
        SentencePiece::new(
            tokens
                .iter()
                .enumerate()
                .map(|(id, (text, score))| ((*text).to_owned(), (id as u32, *score)))
                .collect(),
        )
    }

    fn encode(model: &SentencePiece, text: &str, prefix: bool) -> Result<Vec<u32>, u8> {
        let mut ids = Vec::new();
        model.encode(text, prefix, &mut ids).map(|()| ids)
    }

    #[test]
    fn merges_the_best_score_first_and_of_equals_the_leftmost() {
        let model = vocabulary(&[("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0)]);
        assert_eq!(encode(&model, "aba", false), Ok(vec![0, 3]));
        assert_eq!(encode(&model, "aaa", false), Ok(vec![4, 0]));
        assert_eq!(encode(&model, "abab", false), Ok(vec![0, 3, 1]));
    }

    #[test]
    fn spaces_are_marked_and_what_is_no_token_becomes_bytes() {
        let model = vocabulary(&[
            ("▁", -1.0),
            ("▁a", -0.5),
            ("a", -2.0),
            ("<0xC3>", 0.0),
            ("<0xA4>", 0.0),
            ("x", 0.0),
        ]);
        assert_eq!(encode(&model, "a ä", true), Ok(vec![1, 0, 3, 4]));
        assert_eq!(encode(&model, "a", false), Ok(vec![2]));
        assert_eq!(encode(&model, "", true), Ok(vec![0]));
        assert_eq!(encode(&model, "ö", false), Err(0xb6));
    }
}

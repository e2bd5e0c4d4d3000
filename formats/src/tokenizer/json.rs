//! `tokenizer.json`: the file of Hugging Face's `tokenizers`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Kind, Token, unused};

#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    pub model: Model,
}

#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(default)]
    r#type: Option<String>,
    vocab: Value,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
}

/// A token that isn't part of the model's own vocabulary, or has a role there.
#[derive(Deserialize)]
pub(super) struct Added {
    pub id: usize,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// A merge, in the older style ("a b") or the newer one (["a", "b"]).
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

impl TokenizerJson {
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<TokenizerJson, String> {
        let json: TokenizerJson = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match json.model.r#type.as_deref() {
            // Files of the first years don't name the type.
            None | Some("BPE") => Ok(json),
            Some(other) => Err(format!("is of type {other}; llama.cpp runs the models here with BPE only")),
        }
    }

    /// Whether tokens are spelled in GPT-2's alphabet of bytes.
    pub fn is_byte_level(&self) -> bool {
        fn has_byte_level(step: &Value) -> bool {
            let inner = step.get("pretokenizers").and_then(Value::as_array);
            step.get("type").is_some_and(|t| t == "ByteLevel")
                || inner.is_some_and(|i| i.iter().any(has_byte_level))
        }
        !self.model.byte_fallback && has_byte_level(&self.pre_tokenizer)
    }

    /// llama.cpp's BPE knows no normalizer. NFC, which Qwen's files ask for, changes only text that isn't composed.
    ///
    /// # Errors
    /// In words, if the file has another one.
    pub fn check_normalizer(&self) -> Result<(), String> {
        let empty = self.normalizer.get("normalizers").and_then(Value::as_array).is_some_and(Vec::is_empty);
        let nfc = self.normalizer.get("type").is_some_and(|t| t == "NFC");
        if self.normalizer.is_null() || empty || nfc {
            return Ok(());
        }
        Err(format!("has a normalizer that llama.cpp can't do: {}", self.normalizer))
    }

    /// # Errors
    /// In words, if the model isn't SentencePiece's BPE.
    pub fn check_byte_fallback(&self) -> Result<(), String> {
        if self.model.byte_fallback {
            return Ok(());
        }
        Err(format!(
            "has neither byte-level nor byte-fallback BPE, the two kinds llama.cpp runs; its pre-tokenizer is {}",
            self.pre_tokenizer
        ))
    }

    fn vocab(&self) -> Result<HashMap<String, usize>, String> {
        HashMap::deserialize(&self.model.vocab).map_err(|error| format!("model.vocab: {error}"))
    }

    /// Tokens by id, of both the model and the added ones. At most `limit`.
    ///
    /// # Errors
    /// In words, if an id is out of range or two tokens have the same.
    pub fn tokens(&self, limit: usize) -> Result<Vec<Token>, String> {
        let vocab = self.vocab()?;
        let mut tokens = Vec::new();
        for (text, id) in vocab {
            let token = Token { kind: self.kind(&text), score: 0.0, text };
            let other = place(&mut tokens, id, token, limit)?;
            if other.kind != Kind::Unused {
                return Err(format!(
                    "gives id {id} to two tokens, `{}` and `{}`",
                    other.text, tokens[id].text
                ));
            }
        }
        add(&self.added_tokens, &mut tokens, limit)?;
        Ok(tokens)
    }

    /// The same with scores that make llama.cpp's SentencePiece tokenizer merge in the order of the merges: minus the rank
    /// of the first merge that makes the token.
    ///
    /// # Errors
    /// As [`tokens`](Self::tokens).
    pub fn scored_tokens(&self, limit: usize) -> Result<Vec<Token>, String> {
        let mut ranks = HashMap::new();
        for (rank, merge) in self.model.merges.iter().enumerate() {
            let made = match merge {
                Merge::Joined(text) => text.replacen(' ', "", 1),
                Merge::Pair(a, b) => format!("{a}{b}"),
            };
            ranks.entry(made).or_insert(rank);
        }
        let last = self.model.merges.len();
        let mut tokens = self.tokens(limit)?;
        for token in tokens.iter_mut().filter(|token| token.kind == Kind::Normal) {
            token.score = -(ranks.get(&token.text).copied().unwrap_or(last) as f32);
        }
        Ok(tokens)
    }

    fn kind(&self, text: &str) -> Kind {
        if self.model.unk_token.as_deref() == Some(text) && self.model.byte_fallback {
            Kind::Unknown
        } else if self.model.byte_fallback && is_byte(text) {
            Kind::Byte
        } else {
            Kind::Normal
        }
    }

    /// The merges as llama.cpp wants them: two tokens with a space between. A space within a token of the newer style is
    /// written as the byte alphabet's `Ġ`.
    pub fn merges(&self) -> Vec<String> {
        let merge = |merge: &Merge| match merge {
            Merge::Joined(text) => text.clone(),
            Merge::Pair(a, b) => format!("{} {}", a.replace(' ', "Ġ"), b.replace(' ', "Ġ")),
        };
        self.model.merges.iter().map(merge).collect()
    }

    /// SentencePiece: whether text gets a space in front, by the normalizer (`Prepend`) or the pre-tokenizer
    /// (`Metaspace`).
    pub fn adds_space_prefix(&self) -> bool {
        fn prepends(step: &Value) -> bool {
            let inner =
                step.get("normalizers").or_else(|| step.get("pretokenizers")).and_then(Value::as_array);
            match step.get("type").and_then(Value::as_str) {
                Some("Prepend") => true,
                Some("Metaspace") => {
                    let never = step.get("prepend_scheme").is_some_and(|scheme| scheme == "never");
                    !never && step.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true)
                }
                _ => inner.is_some_and(|steps| steps.iter().any(prepends)),
            }
        }
        prepends(&self.normalizer) || prepends(&self.pre_tokenizer)
    }
}

/// Puts added tokens in their places.
///
/// # Errors
/// In words, if an id is out of range.
pub(super) fn add(added: &[Added], tokens: &mut Vec<Token>, limit: usize) -> Result<(), String> {
    for added in added {
        if tokens.get(added.id).is_some_and(|old| old.kind == Kind::Unknown && old.text == added.content) {
            continue;
        }
        let token = if super::is_control(&added.content, added.special) {
            Token { text: added.content.clone(), score: -1000.0, kind: Kind::Control }
        } else {
            // llama.cpp looks for these in the text as it is, before spaces become `▁`.
            Token { text: added.content.replace('▁', " "), score: -1000.0, kind: Kind::UserDefined }
        };
        place(tokens, added.id, token, limit)?;
    }
    Ok(())
}

/// Puts a token at its id, with unused ones before it where there is a gap; returns what was there.
fn place(tokens: &mut Vec<Token>, id: usize, token: Token, limit: usize) -> Result<Token, String> {
    if id >= limit {
        return Err(format!(
            "has token `{}` with id {id}, but the embedding has {limit} rows (vocab_size)",
            token.text
        ));
    }
    while tokens.len() <= id {
        tokens.push(unused(tokens.len()));
    }
    Ok(std::mem::replace(&mut tokens[id], token))
}

fn is_byte(text: &str) -> bool {
    let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Added tokens that some models forgot to mark as special (`does_token_look_special` in llama.cpp's converter).
pub(super) fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")]
            .iter()
            .any(|(start, end)| text.starts_with(start) && text.ends_with(end))
}

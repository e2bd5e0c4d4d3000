//! A checkpoint's tokenizer as GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).
//!
//! Two models of llama.cpp's are written: `gpt2` (byte-level BPE with merges) and `llama` (SentencePiece's BPE with byte
//! fallback, where scores stand for the merges). The keys are those of `gguf-py/gguf/vocab.py` and
//! `conversion/base.py`.

mod json;
pub mod pre;
mod sentencepiece;
mod special;

use std::collections::HashMap;
use std::path::Path;

use json::{Added, TokenizerJson};
use special::Special;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// A token's role: llama.cpp's `llama_token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    score: f32,
    kind: Kind,
}

/// Larger vocabularies than any model has; limits what a hostile configuration makes us allocate.
const MAX_VOCAB: u64 = 1 << 24;

/// The tokenizer of the checkpoint in `folder`, padded to the embedding's rows.
///
/// # Errors
/// If there is none, if it is of a kind that llama.cpp can't run, or if its pre-tokenizer isn't known: never a guess.
pub fn gguf_metadata(folder: &Path, config: &ModelConfig) -> Result<Metadata> {
    if config.vocab > MAX_VOCAB {
        return Err(
            config.error("vocab_size", format!("is {}; at most {MAX_VOCAB} is supported", config.vocab))
        );
    }
    let files = Files { folder };
    let json = match files.read("tokenizer.json")? {
        Some(text) => {
            Some(TokenizerJson::parse(&text).map_err(|problem| files.error("tokenizer.json", problem))?)
        }
        None => None,
    };
    let special = Special::read(&files, json.as_ref())?;
    let mut metadata = Metadata::new();
    let tokens = match &json {
        Some(json) if json.is_byte_level() => byte_level(&files, json, config, &mut metadata)?,
        _ => sentencepiece(&files, json.as_ref(), config, &mut metadata)?,
    };
    special.write(&files, &tokens, &mut metadata)?;
    Ok(metadata)
}

/// The id of the token that a text must begin with, if the model whose `tokenizer.json` is in `folder` asks for one. What
/// [`gguf_metadata`] writes as `tokenizer.ggml.add_bos_token` and `bos_token_id`.
///
/// # Errors
/// If a file of the tokenizer is missing, malformed, or none that llama.cpp runs.
pub fn first_token(folder: &Path) -> Result<Option<u32>> {
    let files = Files { folder };
    let fail = |problem| files.error("tokenizer.json", problem);
    let text = files.read("tokenizer.json")?.ok_or_else(|| fail("is missing".to_owned()))?;
    let json = TokenizerJson::parse(&text).map_err(fail)?;
    let tokens = json.tokens(MAX_VOCAB as usize).map_err(fail)?;
    let special = Special::read(&files, Some(&json))?;
    Ok(special.first_token(&tokens, !json.is_byte_level()))
}

/// Whether a token that a `tokenizer.json` adds is a control token, which is never found in a text: because it is marked so,
/// or because its text says what the mark should have said.
pub fn is_control(text: &str, marked: bool) -> bool {
    marked || json::looks_special(text)
}

/// `tokenizer.ggml.model` = `gpt2`.
fn byte_level(
    files: &Files,
    json: &TokenizerJson,
    config: &ModelConfig,
    metadata: &mut Metadata,
) -> Result<Vec<Token>> {
    let fail = |problem| files.error("tokenizer.json", problem);
    json.check_normalizer().map_err(fail)?;
    let pre = pre::identify(&json.pre_tokenizer, json.model.ignore_merges).map_err(fail)?;
    let mut tokens = json.tokens(config.vocab as usize).map_err(fail)?;
    metadata.set("tokenizer.ggml.model", "gpt2");
    metadata.set("tokenizer.ggml.pre", pre);
    complete(files, config, &mut tokens, metadata)?;
    metadata.set("tokenizer.ggml.merges", json.merges());
    Ok(tokens)
}

/// `tokenizer.ggml.model` = `llama`.
fn sentencepiece(
    files: &Files,
    json: Option<&TokenizerJson>,
    config: &ModelConfig,
    metadata: &mut Metadata,
) -> Result<Vec<Token>> {
    let path = files.folder.join("tokenizer.model");
    let vocab = config.vocab as usize;
    let (mut tokens, prefix) = match (std::fs::read(&path), json) {
        (Ok(bytes), _) => {
            let fail = |problem| files.error("tokenizer.model", problem);
            let model = sentencepiece::read(&bytes).map_err(fail)?;
            let mut tokens = model.tokens;
            if tokens.len() > vocab {
                let problem =
                    format!("has {} pieces, but the embedding has {vocab} rows (vocab_size)", tokens.len());
                return Err(fail(problem));
            }
            match json {
                Some(json) => json::add(&json.added_tokens, &mut tokens, vocab),
                None => json::add(&added_tokens(files)?, &mut tokens, vocab),
            }
            .map_err(fail)?;
            (tokens, model.add_dummy_prefix)
        }
        (Err(_), Some(json)) => {
            let fail = |problem| files.error("tokenizer.json", problem);
            json.check_byte_fallback().map_err(fail)?;
            (json.scored_tokens(vocab).map_err(fail)?, json.adds_space_prefix())
        }
        (Err(error), None) if error.kind() == std::io::ErrorKind::NotFound => {
            let problem = "holds no tokenizer (tokenizer.json or tokenizer.model): copy it from the model's repository; \
                           a GGUF file without it can't run";
            return Err(Error::Tokenizer { path: files.folder.to_owned(), problem: problem.into() });
        }
        (Err(source), None) => return Err(Error::Io { path, source }),
    };
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.pre", "default");
    complete(files, config, &mut tokens, metadata)?;
    metadata.set("tokenizer.ggml.scores", tokens.iter().map(|token| token.score).collect::<Vec<_>>());
    metadata.set("tokenizer.ggml.add_space_prefix", prefix);
    Ok(tokens)
}

/// `added_tokens.json`, where there is no `tokenizer.json`: ids by text.
fn added_tokens(files: &Files) -> Result<Vec<Added>> {
    let ids = files.read_json("added_tokens.json")?;
    let ids = ids.as_ref().and_then(serde_json::Value::as_object).into_iter().flatten();
    let added = ids.map(|(text, id)| {
        Some(Added { id: id.as_u64()?.try_into().ok()?, content: text.clone(), special: false })
    });
    added
        .collect::<Option<_>>()
        .ok_or_else(|| files.error("added_tokens.json", "has an id that is no integer"))
}

/// Pads the vocabulary with tokens that never occur, to the embedding's rows, and writes it.
fn complete(
    files: &Files,
    config: &ModelConfig,
    tokens: &mut Vec<Token>,
    metadata: &mut Metadata,
) -> Result<()> {
    for id in tokens.len()..config.vocab as usize {
        tokens.push(unused(id));
    }
    let mut ids = HashMap::new();
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = ids.insert(token.text.as_str(), id) {
            let problem = format!(
                "spells the tokens {other} and {id} alike (`{}`), which llama.cpp refuses",
                token.text
            );
            return Err(Error::Tokenizer { path: files.folder.to_owned(), problem });
        }
    }
    metadata.set("tokenizer.ggml.tokens", tokens.iter().map(|token| token.text.clone()).collect::<Vec<_>>());
    metadata
        .set("tokenizer.ggml.token_type", tokens.iter().map(|token| token.kind as i32).collect::<Vec<_>>());
    Ok(())
}

fn unused(id: usize) -> Token {
    Token { text: format!("[PAD{id}]"), score: -10_000.0, kind: Kind::Unused }
}

/// The checkpoint's folder.
struct Files<'a> {
    folder: &'a Path,
}

impl Files<'_> {
    /// A file's text; `None` if it isn't there.
    fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// A file's JSON; `None` if it isn't there.
    fn read_json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| self.error(name, error.to_string()))
    }

    fn error(&self, name: &str, problem: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.folder.join(name), problem: problem.into() }
    }
}

#[cfg(test)]
mod tests;

//! From text to token ids, as llama-perplexity does it: the whole text at once, the texts of control tokens taken as text,
//! and a BOS token in front if the model asks for one.
//!
//! Hugging Face's and MLX's folders have a `tokenizer.json`, which is run by the library it was made for. From a GGUF's
//! metadata, and from a folder that has SentencePiece's `tokenizer.model` alone, llama.cpp's tokenizer is rebuilt. Both give
//! the same ids.

mod gguf;
mod pre;
mod sentencepiece;

use std::fs;
use std::path::{Path, PathBuf};

use formats::checkpoint::{Checkpoint, Weights};
use formats::gguf::Metadata;
use formats::{ModelConfig, TensorSource, tokenizer as metadata};
use serde_json::Value;

use crate::error::{Error, Result};

/// The largest `tokenizer.json` accepted: several times that of the largest vocabularies.
const MAX_JSON: u64 = 256 << 20;

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    model: Model,
    bos: Option<u32>,
    path: PathBuf,
}

#[derive(Debug)]
enum Model {
    /// Of a `tokenizer.json`.
    Json(Box<tokenizers::Tokenizer>),
    /// Of a GGUF's metadata.
    Gguf(gguf::Gguf),
}

impl Tokenizer {
    /// The tokenizer that belongs to a model.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the model has none, or none that is supported; with the kind's name.
    pub fn of(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        if let Weights::Gguf(weights) = &checkpoint.weights {
            let path = weights.files().first().map(|file| file.path.clone()).unwrap_or_default();
            return Tokenizer::of_metadata(path, weights.metadata());
        }
        let json = checkpoint.folder.join("tokenizer.json");
        if json.is_file() {
            return Tokenizer::of_json(json, &checkpoint.folder);
        }
        let model = checkpoint.folder.join("tokenizer.model");
        if model.is_file() {
            let config = ModelConfig::read(&checkpoint.folder)?;
            return Tokenizer::of_metadata(model, &metadata::gguf_metadata(&checkpoint.folder, &config)?);
        }
        Err(Error::Tokenizer {
            path: checkpoint.folder.clone(),
            problem: "holds neither tokenizer.json nor tokenizer.model".to_owned(),
        })
    }

    fn of_metadata(path: PathBuf, metadata: &Metadata) -> Result<Tokenizer> {
        match gguf::Gguf::new(metadata) {
            Ok((model, bos)) => Ok(Tokenizer { model: Model::Gguf(model), bos, path }),
            Err(problem) => Err(Error::Tokenizer { path, problem }),
        }
    }

    fn of_json(path: PathBuf, folder: &Path) -> Result<Tokenizer> {
        let io = |source| formats::Error::Io { path: path.clone(), source };
        let len = fs::metadata(&path).map_err(io)?.len();
        if len > MAX_JSON {
            return Err(formats::Error::HeaderTooLarge { path, len, limit: MAX_JSON }.into());
        }
        let text = fs::read(&path).map_err(io)?;
        let bos = metadata::first_token(folder)?;
        match library(&text) {
            Ok(model) => Ok(Tokenizer { model: Model::Json(Box::new(model)), bos, path }),
            Err(problem) => Err(Error::Tokenizer { path, problem }),
        }
    }

    /// The token that a text must begin with, if the model asks for one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids of a text, with [`bos`](Self::bos) in front.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary can't spell the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = match &self.model {
            Model::Json(tokenizer) => {
                tokenizer.encode_fast(text, false).map(|e| e.get_ids().to_vec()).map_err(|e| e.to_string())
            }
            Model::Gguf(tokenizer) => tokenizer.encode(text),
        };
        let mut ids = ids.map_err(|problem| Error::Tokenizer { path: self.path.clone(), problem })?;
        ids.splice(0..0, self.bos);
        Ok(ids)
    }
}

/// Reads a `tokenizer.json` to tokenize whole texts: nothing is cut off or filled up, and control tokens are not looked for.
fn library(text: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut json: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    for token in json.get_mut("added_tokens").and_then(Value::as_array_mut).into_iter().flatten() {
        let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
        let marked = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        token["special"] = metadata::is_control(content, marked).into();
    }
    for key in ["truncation", "padding"] {
        json[key] = Value::Null;
    }
    let mut tokenizer: tokenizers::Tokenizer =
        serde_json::from_value(json).map_err(|error| error.to_string())?;
    tokenizer.set_encode_special_tokens(true);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests;

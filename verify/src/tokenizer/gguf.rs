//! A tokenizer rebuilt from a GGUF's metadata, to give the ids that llama.cpp gives (`llama-vocab.cpp`).

use std::collections::HashMap;

use formats::gguf::{Array, Metadata, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::pre::{self, Pre};
use super::sentencepiece::SentencePiece;

/// `llama_token_type` of tokens that are found in the text as it is, before anything else.
const USER_DEFINED: i32 = 4;

/// The tokenizer of a GGUF.
#[derive(Debug)]
pub(super) struct Gguf {
    /// Texts and ids of the tokens that are found in the text as it is; the longest first.
    user_defined: Vec<(String, u32)>,
    model: Model,
}

#[derive(Debug)]
enum Model {
    /// `gpt2`: merges within words.
    Bpe(Box<Tokenizer>),
    /// `llama`: merges by score.
    SentencePiece { model: SentencePiece, space_prefix: bool },
}

/// A run of the text.
#[derive(Clone, Copy)]
enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

impl Gguf {
    /// The tokenizer and the id of the token that a text must begin with, if the model asks for one.
    ///
    /// # Errors
    /// In words: if the metadata has no tokenizer, one of a kind that isn't supported, or contradicts itself.
    pub fn new(metadata: &Metadata) -> Result<(Gguf, Option<u32>), String> {
        let kind = metadata
            .get("tokenizer.ggml.model")
            .and_then(Value::as_str)
            .ok_or("the metadata has no tokenizer (tokenizer.ggml.model)")?;
        let tokens = strings(metadata, "tokenizer.ggml.tokens")?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, text) in (0u32..).zip(tokens) {
            if let Some(other) = ids.insert(text.as_str(), id) {
                return Err(format!("tokenizer.ggml.tokens has `{text}` twice, as {other} and {id}"));
            }
        }

        let (model, asks_bos, default_bos) = match kind {
            "llama" => (sentencepiece(metadata, &ids)?, true, Some(1)),
            "gpt2" | "gemma4" => {
                // A file without a name is older than the names.
                let name = match kind {
                    "gpt2" => metadata.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default"),
                    _ => kind,
                };
                let pre = pre::find(name).ok_or_else(|| {
                    format!("the pre-tokenizer `{name}` (tokenizer.ggml.pre) is not known here")
                })?;
                let no_default = pre.plain || matches!(name, "glm4" | "chatglm-bpe");
                (bpe(metadata, &ids, pre)?, pre.adds_bos, (!no_default).then_some(11))
            }
            other => {
                return Err(format!(
                    "the tokenizer is of the kind `{other}`; gpt2, gemma4 and llama are supported"
                ));
            }
        };

        let mut user_defined = Vec::new();
        if let Some(Value::Array(Array::I32(kinds))) = metadata.get("tokenizer.ggml.token_type") {
            let of_kind = tokens.iter().zip(0u32..).zip(kinds).filter(|(_, kind)| **kind == USER_DEFINED);
            user_defined.extend(
                of_kind.map(|((text, id), _)| (text.clone(), id)).filter(|(text, _)| !text.is_empty()),
            );
        }
        user_defined.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));

        let bos = match metadata.get("tokenizer.ggml.bos_token_id").and_then(Value::as_u64) {
            Some(id) => u32::try_from(id).ok(),
            None => default_bos,
        };
        let bos = bos.filter(|id| (*id as usize) < tokens.len());
        let asks_bos = match metadata.get("tokenizer.ggml.add_bos_token") {
            // llama.cpp overrules Gemma 4's files, which were written without it.
            Some(Value::Bool(asks)) => *asks || kind == "gemma4",
            _ => asks_bos,
        };
        Ok((Gguf { user_defined, model }, bos.filter(|_| asks_bos)))
    }

    /// The ids of `text`, without BOS and EOS. The texts of control tokens are text like any other.
    ///
    /// # Errors
    /// In words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        let mut after_token = true;
        for fragment in self.fragments(text) {
            match (fragment, &self.model) {
                (Fragment::Token(id), _) => ids.push(id),
                (Fragment::Text(text), Model::Bpe(tokenizer)) => {
                    let encoding = tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
                    ids.extend(encoding.get_ids());
                }
                (Fragment::Text(text), Model::SentencePiece { model, space_prefix }) => {
                    model.encode(text, *space_prefix && after_token, &mut ids).map_err(|byte| {
                        format!("the vocabulary has no token for the byte {byte:#04x} of the text")
                    })?;
                }
            }
            after_token = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// Cuts the user-defined tokens out of the text: the longest first, each from the left.
    fn fragments<'a>(&self, text: &'a str) -> Vec<Fragment<'a>> {
        let mut fragments = vec![Fragment::Text(text)];
        for (token, id) in self.user_defined.iter().filter(|(token, _)| text.contains(token.as_str())) {
            let cut = |fragment| match fragment {
                Fragment::Token(_) => vec![fragment],
                Fragment::Text(text) => {
                    let texts = text.split(token.as_str()).map(Fragment::Text);
                    let mut cut: Vec<_> =
                        texts.flat_map(|text| [Fragment::Token(*id), text]).skip(1).collect();
                    cut.retain(|fragment| !matches!(fragment, Fragment::Text("")));
                    cut
                }
            };
            fragments = fragments.into_iter().flat_map(cut).collect();
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text("")));
        fragments
    }
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> Result<&'a [String], String> {
    match metadata.get(key) {
        Some(Value::Array(Array::String(strings))) => Ok(strings),
        Some(_) => Err(format!("{key} is no list of strings")),
        None => Err(format!("the metadata lacks {key}")),
    }
}

fn sentencepiece(metadata: &Metadata, ids: &HashMap<&str, u32>) -> Result<Model, String> {
    let scores = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Array(Array::F32(scores))) if scores.len() >= ids.len() => scores,
        _ => return Err("tokenizer.ggml.scores is no list with a number for each token".to_owned()),
    };
    let tokens = ids.iter().map(|(text, id)| ((*text).to_owned(), (*id, scores[*id as usize]))).collect();
    let space_prefix = !matches!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(Value::Bool(false)));
    Ok(Model::SentencePiece { model: SentencePiece::new(tokens), space_prefix })
}

fn bpe(metadata: &Metadata, ids: &HashMap<&str, u32>, pre: Pre) -> Result<Model, String> {
    let merges = strings(metadata, "tokenizer.ggml.merges")?;
    let merges = merges
        .iter()
        .map(|merge| {
            // The first token may start with a space, not hold one further on.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let (a, b) = merge[first..]
                .split_once(' ')
                .ok_or_else(|| format!("tokenizer.ggml.merges has `{merge}`, which is no pair of tokens"))?;
            Ok((merge[..first + a.len()].to_owned(), b.to_owned()))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let vocabulary: Vocab = ids.iter().map(|(text, id)| ((*text).to_owned(), *id)).collect();
    let bad = |error: tokenizers::Error| format!("the tokenizer can't be rebuilt: {error}");
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(pre.ignore_merges)
        .byte_fallback(pre.plain)
        .build()
        .map_err(bad)?;

    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for rule in pre.rules {
        let pattern = SplitPattern::Regex((*rule).to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(bad)?.into());
    }
    let mut tokenizer = Tokenizer::new(model);
    if pre.plain {
        tokenizer.with_normalizer(Some(Replace::new(" ", "\u{2581}").map_err(bad)?)).map_err(bad)?;
    } else {
        steps.push(ByteLevel::new(false, false, false).into());
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    Ok(Model::Bpe(Box::new(tokenizer)))
}

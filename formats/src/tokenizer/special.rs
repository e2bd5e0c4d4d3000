//! Special tokens, what is put around a text, and the chat template.

use serde_json::Value;

use super::json::TokenizerJson;
use super::{Files, Token};
use crate::error::Result;
use crate::gguf::Metadata;

/// The roles, and what GGUF's keys call them.
const ROLES: [(&str, &str); 5] =
    [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("sep", "seperator"), ("pad", "padding")];

/// GLM's roles, which its files don't tell: a text begins with a mask, and the model ends its turn by beginning the user's or, to
/// hear from a tool, an observation. llama.cpp's converter states them too, and would generate on without.
const GLM: [(&str, &str); 4] =
    [("bos", "[gMASK]"), ("eot", "<|user|>"), ("eom", "<|observation|>"), ("unknown", "<|endoftext|>")];

/// What the files around the tokenizer say.
pub(super) struct Special {
    /// `tokenizer_config.json`, or null.
    config: Value,
    /// `special_tokens_map.json`, or null.
    map: Value,
    /// `config.json` and `generation_config.json`, or null.
    ids: [Value; 2],
    /// The first and the last special token that the post-processor puts around a text, if it puts any.
    template: Option<(Option<String>, Option<String>)>,
}

impl Special {
    pub fn read(files: &Files, json: Option<&TokenizerJson>) -> Result<Special> {
        let read = |name| files.read_json(name).map(Option::unwrap_or_default);
        Ok(Special {
            config: read("tokenizer_config.json")?,
            map: read("special_tokens_map.json")?,
            ids: [read("config.json")?, read("generation_config.json")?],
            template: json.and_then(|json| template(&json.post_processor)),
        })
    }

    pub fn write(&self, files: &Files, tokens: &[Token], metadata: &mut Metadata) -> Result<()> {
        for (role, key) in ROLES {
            if let Some(id) = self.id(role, tokens) {
                metadata.set(format!("tokenizer.ggml.{key}_token_id"), id);
            }
        }
        let glm = GLM.map(|(key, text)| (key, tokens.iter().position(|token| token.text == text)));
        if glm.iter().all(|(_, id)| id.is_some()) {
            for (key, id) in glm {
                metadata.set_some(format!("tokenizer.ggml.{key}_token_id"), id.map(|id| id as u32));
            }
        }
        // llama.cpp's defaults depend on the name of the pre-tokenizer: say it outright.
        let sentencepiece = metadata.get("tokenizer.ggml.scores").is_some();
        for (role, default) in [("bos", sentencepiece), ("eos", false)] {
            let adds = self.added(role, tokens, default).is_some();
            metadata.set(format!("tokenizer.ggml.add_{role}_token"), adds);
        }
        self.chat_template(files, metadata)
    }

    /// The token that every text begins with.
    pub fn first_token(&self, tokens: &[Token], sentencepiece: bool) -> Option<u32> {
        self.added("bos", tokens, sentencepiece)
    }

    /// The token of a role (`bos`, `eos`), if the tokenizer puts it around a text. `default` decides if no file says.
    fn added(&self, role: &str, tokens: &[Token], default: bool) -> Option<u32> {
        let said = self.config.get(format!("add_{role}_token")).and_then(Value::as_bool);
        let by_template = self.template.as_ref().map(|(first, last)| {
            let puts = if role == "bos" { first } else { last };
            puts.is_some() && puts.as_deref() == self.text(role)
        });
        self.id(role, tokens).filter(|_| said.or(by_template).unwrap_or(default))
    }

    /// The token of a role, by its text.
    fn text(&self, role: &str) -> Option<&str> {
        let key = format!("{role}_token");
        [&self.config, &self.map].into_iter().find_map(|file| {
            let entry = file.get(&key)?;
            entry.get("content").unwrap_or(entry).as_str()
        })
    }

    /// By its text in the tokenizer's files, else by the ids in the model's.
    fn id(&self, role: &str, tokens: &[Token]) -> Option<u32> {
        let by_text = self.text(role).and_then(|text| tokens.iter().position(|token| token.text == text));
        let key = format!("{role}_token_id");
        let by_id = || {
            self.ids.iter().find_map(|file| {
                let value = file.get(&key).or_else(|| file.get("text_config")?.get(&key))?;
                // Several ends of text: the first one is the model's own.
                let id = value.as_u64().or_else(|| value.get(0)?.as_u64())?;
                usize::try_from(id).ok().filter(|&id| id < tokens.len())
            })
        };
        by_text.or_else(by_id).map(|id| id as u32)
    }

    fn chat_template(&self, files: &Files, metadata: &mut Metadata) -> Result<()> {
        let template = match self.config.get("chat_template").filter(|t| !t.is_null()) {
            Some(template) => Some(template.clone()),
            None => match files.read("chat_template.jinja")? {
                Some(text) => Some(Value::String(text)),
                None => {
                    files.read_json("chat_template.json")?.and_then(|file| file.get("chat_template").cloned())
                }
            },
        };
        match template {
            Some(Value::String(text)) => metadata.set("tokenizer.chat_template", text),
            Some(Value::Array(list)) => {
                let mut names = Vec::new();
                for entry in &list {
                    let text = |key| entry.get(key).and_then(Value::as_str);
                    let (Some(name), Some(template)) = (text("name"), text("template")) else { continue };
                    if name == "default" {
                        metadata.set("tokenizer.chat_template", template);
                        continue;
                    }
                    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
                    let name: String = name.chars().map(word).collect();
                    metadata.set(format!("tokenizer.chat_template.{name}"), template);
                    names.push(name);
                }
                if !names.is_empty() {
                    metadata.set("tokenizer.chat_templates", names);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The special tokens around `$A` in a `TemplateProcessing` step.
fn template(post_processor: &Value) -> Option<(Option<String>, Option<String>)> {
    let steps = post_processor.get("processors").and_then(Value::as_array);
    let steps = steps.map_or(std::slice::from_ref(post_processor), Vec::as_slice);
    let step = steps.iter().find(|step| step.get("type").is_some_and(|t| t == "TemplateProcessing"))?;
    let single = step.get("single").and_then(Value::as_array)?;
    let special = |item: Option<&Value>| Some(item?.get("SpecialToken")?.get("id")?.as_str()?.to_owned());
    Some((special(single.first()), special(single.last())))
}

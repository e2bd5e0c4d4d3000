//! All metadata of a GGUF file made from a checkpoint. It is a function of the checkpoint's files and the recipe: no time, no
//! place on this machine, so that the same job gives the same bytes anywhere.
//!
//! The general keys are those of GGUF's specification (`ggml/docs/gguf.md`); how they are derived from a model's name
//! follows `gguf-py/gguf/metadata.py`.

use std::path::Path;

use serde_json::Value as Json;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::families;
use crate::gguf::{Metadata, Value};
use crate::model_card::ModelCard;
use crate::output::{Content, OutputTensor};
use crate::tokenizer;

/// Version of the block formats (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// Where a file comes from.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    /// The tool and its version.
    pub tool: &'a str,
    /// The recipe's hash.
    pub recipe: &'a str,
    /// llama.cpp's number of the mix (`enum llama_ftype`).
    pub file_type: u32,
}

impl Provenance<'_> {
    fn write(&self, metadata: &mut Metadata) {
        metadata.set("general.quantization_version", QUANTIZATION_VERSION);
        metadata.set("general.file_type", self.file_type);
        metadata.set("general.quantized_by", self.tool);
        metadata.set("halfbyte.recipe", self.recipe);
    }
}

/// The metadata of the GGUF file that `tensors` make, converted from the checkpoint in `folder`.
///
/// # Errors
/// If the family is unknown, the configuration incomplete, or the tokenizer missing or not one that llama.cpp runs.
pub fn of_checkpoint(
    folder: &Path,
    config: &ModelConfig,
    tensors: &[OutputTensor],
    provenance: &Provenance,
) -> Result<Metadata> {
    let hyper_parameters = families::gguf_metadata(config)?;
    let card = ModelCard::read(folder)?;
    let name = model_name(&card, config);
    let parts = name.as_deref().map(NameParts::of).unwrap_or_default();
    let size = parts.size.clone().unwrap_or_else(|| size_label(tensors));
    let tokenizer = tokenizer::gguf_metadata(folder, config)?;

    let mut metadata = Metadata::new();
    metadata.set_some("general.architecture", hyper_parameters.get("general.architecture").cloned());
    metadata.set("general.type", "model");
    metadata.set("general.name", name.unwrap_or_else(|| format!("{} {size}", series(config, &tokenizer))));
    metadata.set_some("general.version", parts.version);
    metadata.set_some("general.finetune", parts.finetune);
    metadata.set_some("general.basename", parts.base);
    metadata.set("general.size_label", size);
    for (key, field) in [("", "license"), (".name", "license_name"), (".link", "license_link")] {
        metadata.set_some(format!("general.license{key}"), card.text(field).map(str::to_owned));
    }
    base_models(&card, &mut metadata);
    sampling(folder, &mut metadata)?;
    provenance.write(&mut metadata);
    metadata.extend(hyper_parameters);
    metadata.extend(tokenizer);
    Ok(metadata)
}

/// What to call a model that has no name. llama.cpp asks a vocabulary whose model's name contains `phi3` for the special tokens
/// of Phi 3's tokenizer, or doesn't load it: Phi 4 is of the same family but byte-level.
fn series<'a>(config: &'a ModelConfig, tokenizer: &Metadata) -> &'a str {
    let byte_level = tokenizer.get("tokenizer.ggml.model").and_then(Value::as_str) == Some("gpt2");
    if config.model_type == "phi3" && byte_level { "phi4" } else { &config.model_type }
}

/// The metadata of a GGUF file made from another one: its own, with a new provenance.
pub fn of_gguf(source: &Metadata, provenance: &Provenance) -> Metadata {
    let mut metadata = source.clone();
    provenance.write(&mut metadata);
    metadata
}

/// By what the model's own files call it: the card's metadata, the configuration's Hub name, the card's title.
fn model_name(card: &ModelCard, config: &ModelConfig) -> Option<String> {
    let hub = |id: &str| match id.split_once('/') {
        // An id, not a path on the machine of whoever saved the file.
        Some((org, name)) if !org.is_empty() && !org.starts_with(['.', '~']) && !name.contains('/') => {
            Some(name.to_owned()).filter(|name| !name.is_empty())
        }
        _ => None,
    };
    let from_config = config.name.as_deref().and_then(hub);
    let title = card.heading().map(|title| title.strip_prefix("Model Card for ").unwrap_or(title).to_owned());
    card.text("model_name").map(str::to_owned).or(from_config).or(title)
}

/// What a name like `Llama-3.1-8B-Instruct` says.
#[derive(Debug, Default, PartialEq)]
struct NameParts {
    base: Option<String>,
    size: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
}

impl NameParts {
    /// Words up to the first size or well-known fine-tune are the base name (`3.1` in it belongs to it); of the rest, numbers
    /// are a version and words a fine-tune. A name without any of these says nothing.
    fn of(name: &str) -> NameParts {
        if name.contains(' ') {
            return NameParts::default();
        }
        let (mut base, mut size, mut finetune, mut version) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, word) in name.split('-').filter(|word| !word.is_empty()).enumerate() {
            let known = ["chat", "instruct", "vision", "base"].contains(&word.to_ascii_lowercase().as_str());
            let in_base = size.is_empty() && finetune.is_empty();
            if i > 0 && is_size(word) {
                let (number, unit) = word.split_at(word.len() - 1);
                size.push(number.replace('_', ".") + &unit.to_ascii_uppercase());
            } else if in_base && !(i > 0 && known) {
                base.push(word);
            } else if is_version(word) {
                version.push(word);
            } else {
                finetune.push(word);
            }
        }
        if size.is_empty() && finetune.is_empty() && version.is_empty() {
            return NameParts::default();
        }
        let size = (!size.is_empty()).then(|| size.join("-"));
        let join = |words: Vec<&str>| (!words.is_empty()).then(|| words.join("-"));
        NameParts { base: join(base), size, finetune: join(finetune), version: join(version) }
    }
}

/// `8B`, `1.5b`, `8x7B`, `A3B`, `135M`.
fn is_size(word: &str) -> bool {
    let Some(number) = word.strip_suffix(|c: char| "kmbtKMBT".contains(c)) else { return false };
    let number = match number.split_once('x') {
        Some((count, each)) if !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()) => each,
        _ => number.strip_prefix(['A', 'a']).unwrap_or(number),
    };
    let mut digits = number.splitn(2, ['.', '_']);
    digits.all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// `v1`, `2507`, `0.3`.
fn is_version(word: &str) -> bool {
    let number = word.strip_prefix(['v', 'V']).unwrap_or(word);
    number.split('.').all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The number of weights in two digits or more: `8.0B`, `671B`; of a mixture `256x20B`, where the second number is what one
/// of so many experts would make with everything else.
fn size_label(tensors: &[OutputTensor]) -> String {
    let (mut shared, mut one_expert, mut experts) = (0, 0, 0);
    for tensor in tensors.iter().filter(|tensor| matches!(tensor.content, Content::Parts(_))) {
        if tensor.class.is_routed_expert() {
            experts = tensor.shape.first().copied().unwrap_or(1).max(1);
            one_expert += tensor.elements() / experts;
        } else {
            shared += tensor.elements();
        }
    }
    let rounded = rounded((shared + one_expert) as f64);
    if experts > 0 { format!("{experts}x{rounded}") } else { rounded }
}

fn rounded(count: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (unit, letter) = units.into_iter().find(|(unit, _)| count > *unit).unwrap_or((1e3, "K"));
    let scaled = count / unit;
    let decimals = if scaled.round() < 1.0 { 2 } else { usize::from(scaled.round() < 10.0) };
    format!("{scaled:.decimals$}{letter}")
}

fn base_models(card: &ModelCard, metadata: &mut Metadata) {
    let ids: Vec<_> = card.list("base_model").iter().filter_map(|id| id.split_once('/')).collect();
    if ids.is_empty() {
        return;
    }
    metadata.set("general.base_model.count", ids.len() as u32);
    for (i, (organization, name)) in ids.into_iter().enumerate() {
        metadata.set(format!("general.base_model.{i}.name"), name.replace('-', " "));
        metadata.set(format!("general.base_model.{i}.organization"), organization.replace('-', " "));
        let url = format!("https://huggingface.co/{organization}/{name}");
        metadata.set(format!("general.base_model.{i}.repo_url"), url);
    }
}

/// What `generation_config.json` recommends. A file that isn't JSON is passed over: it is no part of the model.
fn sampling(folder: &Path, metadata: &mut Metadata) -> Result<()> {
    let path = folder.join("generation_config.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path, source }),
    };
    let json: Json = serde_json::from_str(&text).unwrap_or_default();
    let top_k = json.get("top_k").and_then(Json::as_i64).and_then(|k| i32::try_from(k).ok());
    metadata.set_some("general.sampling.top_k", top_k);
    for (key, field) in [("top_p", "top_p"), ("min_p", "min_p"), ("temp", "temperature")] {
        let value = json.get(field).and_then(Json::as_f64).map(|value| value as f32);
        metadata.set_some(format!("general.sampling.{key}"), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;

    #[test]
    fn names_are_taken_apart() {
        let parts = |name: &str| {
            let NameParts { base, size, finetune, version } = NameParts::of(name);
            [base, size, finetune, version].map(|part| part.unwrap_or_default())
        };
        assert_eq!(parts("Llama-3.1-8B-Instruct"), ["Llama-3.1", "8B", "Instruct", ""]);
        assert_eq!(parts("Qwen3-30B-A3B-Instruct-2507"), ["Qwen3", "30B-A3B", "Instruct", "2507"]);
        assert_eq!(parts("Mixtral-8x7B-Instruct-v0.1"), ["Mixtral", "8x7B", "Instruct", "v0.1"]);
        assert_eq!(parts("SmolLM2-1_7b"), ["SmolLM2", "1.7B", "", ""]);
        assert_eq!(parts("DeepSeek-R1"), ["", "", "", ""]);
        assert_eq!(parts("A model of mine-8B"), ["", "", "", ""]);
    }

    #[test]
    fn sizes_are_rounded_to_two_digits() {
        for (count, label) in [
            (4_199_680.0, "4.2M"),
            (134_515_008.0, "135M"),
            (8_030_261_248.0, "8.0B"),
            (671_026_419_200.0, "671B"),
            (2_500.0, "2.5K"),
        ] {
            assert_eq!(rounded(count), label);
        }
    }

    /// Twice from copies of the same files, in folders of other names: the same metadata.
    #[test]
    fn depends_on_the_files_only() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-llama");
        let provenance = Provenance { tool: "halfbyte 1.2.3", recipe: "abc", file_type: 15 };
        let card = "---\nlicense: apache-2.0\nbase_model: some-org/Other-Model-1B\n---\n# Tiny-4M-Chat\n";
        let run = |test: &str| {
            let folder =
                std::env::temp_dir().join(format!("halfbyte-metadata-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
                std::fs::copy(fixture.join(name), folder.join(name)).unwrap();
            }
            std::fs::write(folder.join("README.md"), card).unwrap();
            std::fs::write(folder.join("generation_config.json"), r#"{"temperature": 0.5, "top_k": 20}"#)
                .unwrap();
            let config = ModelConfig::read(&folder).unwrap();
            let metadata = of_checkpoint(&folder, &config, &[], &provenance).unwrap();
            std::fs::remove_dir_all(folder).unwrap();
            metadata
        };
        let metadata = run("one");
        assert_eq!(metadata, run("two"));
        assert_eq!(metadata.iter().next(), Some(("general.architecture", &Value::from("llama"))));
        for (key, value) in [
            ("general.name", "Tiny-4M-Chat"),
            ("general.basename", "Tiny"),
            ("general.size_label", "4M"),
            ("general.finetune", "Chat"),
            ("general.license", "apache-2.0"),
            ("general.base_model.0.name", "Other Model 1B"),
            ("general.base_model.0.organization", "some org"),
            ("general.quantized_by", "halfbyte 1.2.3"),
            ("halfbyte.recipe", "abc"),
            ("tokenizer.ggml.model", "gpt2"),
        ] {
            assert_eq!(metadata.get(key), Some(&Value::from(value)), "{key}");
        }
        assert_eq!(metadata.get("general.file_type"), Some(&Value::U32(15)));
        assert_eq!(metadata.get("general.sampling.temp"), Some(&Value::F32(0.5)));
        assert_eq!(metadata.get("general.sampling.top_k"), Some(&Value::I32(20)));
        assert_eq!(metadata.get("llama.block_count"), Some(&Value::U32(4)));

        let new = of_gguf(&metadata, &Provenance { tool: "t", recipe: "r", file_type: 7 });
        assert_eq!(new.len(), metadata.len());
        assert_eq!(new.get("general.file_type"), Some(&Value::U32(7)));
        assert_eq!(new.get("general.name"), metadata.get("general.name"));
    }

    #[test]
    fn a_model_without_a_name_is_called_by_family_and_size() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-llama");
        let config = ModelConfig::read(&folder).unwrap();
        let name = |name: Option<&str>, card: &ModelCard| {
            model_name(card, &ModelConfig { name: name.map(str::to_owned), ..config.clone() })
        };
        let card = ModelCard::default();
        assert_eq!(name(None, &card), None);
        let mut tokenizer = Metadata::new();
        tokenizer.set("tokenizer.ggml.model", "gpt2");
        let phi = ModelConfig { model_type: "phi3".into(), ..config.clone() };
        assert_eq!((series(&phi, &tokenizer), series(&config, &tokenizer)), ("phi4", "llama"));
        assert_eq!(series(&phi, &Metadata::new()), "phi3");
        assert_eq!(name(Some("org/Model-7B"), &card).as_deref(), Some("Model-7B"));
        for path in ["/home/me/model", "./model", "model", "a/b/c", "~/model"] {
            assert_eq!(name(Some(path), &card), None, "{path}");
        }
    }
}

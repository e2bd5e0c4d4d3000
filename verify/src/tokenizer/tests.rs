use std::path::Path;

use formats::gguf::Value as Entry;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// Line ends, runs of spaces, digits, contractions, several scripts, composed and decomposed letters, the texts of control
/// tokens, and characters that the tiny vocabularies spell in bytes.
const TEXT: &str = "The quick  brown fox\n\n  jumps over 13 lazy dogs; it's 2,048 o'clock — I'LL say!\r\n\t\tTabs\u{a0}and   trailing   \n\
    naïve cafe\u{301} 東京へ行く 한국어 Привет мир ١٢٣ 🎉👩‍👩‍👧 <|im_start|>user<|endoftext|> \u{200b}x\u{0}y <s></s> ";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
}

/// The tokenizer of a folder, and the one rebuilt from the metadata of the GGUF that it becomes.
fn both(folder: &Path) -> (Tokenizer, Tokenizer) {
    let config = ModelConfig::read(folder).expect("configuration");
    let rebuilt = metadata::gguf_metadata(folder, &config).expect("metadata");
    let rebuilt = Tokenizer::of_metadata("model.gguf".into(), &rebuilt).expect("rebuilt");
    (Tokenizer::of(&Checkpoint::open(&folder.into()).expect("checkpoint")).expect("tokenizer"), rebuilt)
}

#[test]
fn json_and_metadata_give_the_same_ids() {
    for name in ["tiny-llama", "tiny-deepseek"] {
        let (json, rebuilt) = both(&fixture(name));
        let ids = json.encode(TEXT).expect("ids");
        assert_eq!(ids, rebuilt.encode(TEXT).expect("ids"), "{name}");
        assert_eq!((json.bos(), rebuilt.bos()), (None, None));
        // <|endoftext|>, <|im_start|>, <|im_end|>
        assert!(ids.iter().all(|id| *id > 2), "control tokens are not found in texts");
        assert!(json.encode("").expect("ids").is_empty());
    }
}

/// A copy of a tiny model's tokenizer and configuration, with changes.
fn changed(file: &str, change: impl Fn(&mut Value)) -> TempDir {
    let folder = TempDir::new().expect("folder");
    let from = fixture("tiny-llama");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(from.join(name), folder.path().join(name)).expect("copy");
    }
    let path = folder.path().join(file);
    let mut json = serde_json::from_str(&fs::read_to_string(&path).expect("text")).expect("JSON");
    change(&mut json);
    fs::write(&path, json.to_string()).expect("write");
    folder
}

#[test]
fn a_text_begins_with_bos_if_the_model_asks() {
    let folder = changed("tokenizer_config.json", |json| {
        json["bos_token"] = "<|im_start|>".into();
        json["add_bos_token"] = true.into();
    });
    let (json, rebuilt) = both(folder.path());
    assert_eq!((json.bos(), rebuilt.bos()), (Some(1), Some(1)));
    let ids = json.encode("Hello").expect("ids");
    assert_eq!(ids[0], 1);
    assert_eq!(ids, rebuilt.encode("Hello").expect("ids"));
    assert!(ids.len() > 1);
}

/// As llama-perplexity has it: what `tokenizers` puts around a text for a conversation isn't part of one.
#[test]
fn cuts_padding_and_endings_are_left_out() {
    let folder = changed("tokenizer.json", |json| {
        json["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
        json["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
    });
    let tokenizer = both(folder.path()).0;
    assert_eq!(tokenizer.encode(TEXT).ok(), both(&fixture("tiny-llama")).0.encode(TEXT).ok());
}

/// Added tokens that aren't special are found in the text, the longest first; those that only look special aren't.
#[test]
fn user_defined_tokens_are_found_in_the_text() {
    let folder = changed("tokenizer.json", |json| {
        let added = json["added_tokens"].as_array_mut().expect("list");
        // The last ids of the vocabulary are single bytes or merges that nothing below needs.
        for (id, content) in [(2045, "<tool>"), (2046, "<tool> call"), (2047, "<|made_up|>")] {
            added.push(
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false}),
            );
        }
        let vocabulary = json["model"]["vocab"].as_object_mut().expect("vocabulary");
        vocabulary.retain(|_, id| id.as_u64().is_some_and(|id| id < 2045));
        for (id, content) in [(2045, "<tool>"), (2046, "<tool> call"), (2047, "<|made_up|>")] {
            vocabulary.insert(content.to_owned(), id.into());
        }
        let vocabulary = vocabulary.clone();
        let known = |text: &str| vocabulary.contains_key(text);
        let merges = json["model"]["merges"].as_array_mut().expect("merges");
        merges.retain(|merge| {
            let pair: Vec<&str> = match merge {
                Value::String(text) => text.split(' ').collect(),
                other => other.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
            };
            known(pair[0]) && known(pair[1]) && known(&pair.concat())
        });
    });
    let (json, rebuilt) = both(folder.path());
    let text = "A<tool> call of a <tool>, <tool><tool>and <|made_up|>";
    let ids = json.encode(text).expect("ids");
    assert_eq!(ids, rebuilt.encode(text).expect("ids"));
    let found: Vec<u32> = ids.iter().copied().filter(|id| *id >= 2045).collect();
    assert_eq!(found, [2046, 2045, 2045, 2045]);
}

fn sentencepiece_metadata() -> Metadata {
    let tokens = [
        ("<unk>", 2, 0.0f32),
        ("<s>", 3, 0.0),
        ("</s>", 3, 0.0),
        ("<0x0A>", 6, 0.0),
        ("▁", 1, -5.0),
        ("a", 1, -4.0),
        ("b", 1, -4.0),
        ("▁a", 1, -1.0),
        ("ab", 1, -2.0),
        ("<x>", 4, 0.0),
    ];
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.tokens", tokens.map(|(text, ..)| text.to_owned()).to_vec());
    metadata.set("tokenizer.ggml.token_type", tokens.map(|(_, kind, _)| kind).to_vec());
    metadata.set("tokenizer.ggml.scores", tokens.map(|(.., score)| score).to_vec());
    metadata
}

#[test]
fn sentencepiece_is_rebuilt() {
    let mut metadata = sentencepiece_metadata();
    let encode = |metadata: &Metadata, text| Tokenizer::of_metadata("f.gguf".into(), metadata)?.encode(text);
    // llama.cpp's defaults: BOS is 1 and asked for, and a text gets a space in front, also one that follows a token.
    assert_eq!(encode(&metadata, "ab a").ok(), Some(vec![1, 7, 6, 7]));
    assert_eq!(encode(&metadata, "<x>ab\n<x>").ok(), Some(vec![1, 9, 7, 6, 3, 9]));
    metadata.set("tokenizer.ggml.add_bos_token", false);
    metadata.set("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(encode(&metadata, "ab<x>ab").ok(), Some(vec![8, 9, 8]));
    let error = encode(&metadata, "a?").expect_err("no byte token").to_string();
    assert!(error.contains("0x3f") && error.contains("--tokens"), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    let error = |key: &str, value: Option<Entry>| {
        let folder = fixture("tiny-llama");
        let mut metadata =
            metadata::gguf_metadata(&folder, &ModelConfig::read(&folder).expect("configuration"))
                .expect("metadata");
        match value {
            Some(value) => metadata.set(key, value),
            None => {
                let kept: Vec<_> = metadata
                    .iter()
                    .filter(|(k, _)| *k != key)
                    .map(|(k, v)| (k.to_owned(), v.clone()))
                    .collect();
                metadata = Metadata::new();
                kept.into_iter().for_each(|(key, value)| metadata.set(key, value));
            }
        }
        Tokenizer::of_metadata("dir/model.gguf".into(), &metadata).expect_err(key).to_string()
    };
    for (key, value, says) in [
        ("tokenizer.ggml.model", Some("t5".into()), "`t5`"),
        ("tokenizer.ggml.model", None, "no tokenizer"),
        ("tokenizer.ggml.pre", Some("gpt-5".into()), "`gpt-5`"),
        ("tokenizer.ggml.merges", None, "lacks tokenizer.ggml.merges"),
        ("tokenizer.ggml.merges", Some(vec!["ab".to_owned()].into()), "`ab`"),
        ("tokenizer.ggml.merges", Some(vec!["東京 b".to_owned()].into()), "`東京`"),
        ("tokenizer.ggml.tokens", Some(vec!["a".to_owned(), "a".to_owned()].into()), "twice"),
        ("tokenizer.ggml.tokens", Some(7u32.into()), "no list of strings"),
        ("tokenizer.ggml.model", Some("llama".into()), "scores"),
    ] {
        let message = error(key, value);
        assert!(message.contains(says) && message.contains("dir/model.gguf"), "{key}: {message}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_is_refused() {
    let folder = TempDir::new().expect("folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("tiny-llama").join(name), folder.path().join(name)).expect("copy");
    }
    let error = Tokenizer::of(&Checkpoint::open(&folder.path().into()).expect("checkpoint"))
        .expect_err("no tokenizer");
    assert!(error.to_string().contains("--tokens"), "{error}");
}

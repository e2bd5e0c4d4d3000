//! The fixtures' tokenizer, and invented ones.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::*;
use crate::gguf::{Array, Value};

/// A folder of its own for a test, with these files.
fn folder(test: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("halfbyte-tokenizer-{}-{test}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    folder
}

fn config(vocab: u64) -> ModelConfig {
    let text = format!(
        r#"{{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": {vocab}}}"#
    );
    ModelConfig::parse(Path::new("config.json"), &text).unwrap()
}

fn read(test: &str, vocab: u64, files: &[(&str, Json)]) -> Result<Metadata> {
    let bytes: Vec<_> = files.iter().map(|(name, json)| (*name, json.to_string().into_bytes())).collect();
    let files: Vec<_> = bytes.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let folder = folder(test, &files);
    let metadata = gguf_metadata(&folder, &config(vocab));
    std::fs::remove_dir_all(folder).unwrap();
    metadata
}

fn strings<'a>(metadata: &'a Metadata, key: &str) -> &'a [String] {
    match metadata.get(key) {
        Some(Value::Array(Array::String(strings))) => strings,
        other => panic!("{key} is {other:?}"),
    }
}

fn kinds(metadata: &Metadata) -> &[i32] {
    match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Array(Array::I32(kinds))) => kinds,
        other => panic!("{other:?}"),
    }
}

/// A byte-level tokenizer of four tokens and an added one.
fn small() -> Json {
    json!({
        "added_tokens": [{"id": 4, "content": "<|end|>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": ["a b"]}
    })
}

#[test]
fn the_fixture_is_gpt2() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/tiny-llama");
    let metadata = gguf_metadata(&folder, &ModelConfig::read(&folder).unwrap()).unwrap();
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&Value::from("gpt2")));
    assert_eq!(metadata.get("tokenizer.ggml.pre"), Some(&Value::from("gpt-2")));
    let tokens = strings(&metadata, "tokenizer.ggml.tokens");
    assert_eq!((tokens.len(), tokens[1].as_str(), tokens[35].as_str()), (2048, "<|im_start|>", "A"));
    assert_eq!(kinds(&metadata)[..4], [3, 3, 3, 1]);
    assert_eq!(strings(&metadata, "tokenizer.ggml.merges").len(), 2048 - 256 - 3);
    assert_eq!(metadata.get("tokenizer.ggml.bos_token_id"), Some(&Value::U32(0)));
    assert_eq!(metadata.get("tokenizer.ggml.eos_token_id"), Some(&Value::U32(0)));
    assert_eq!(metadata.get("tokenizer.ggml.padding_token_id"), None);
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(false)));
    let template = metadata.get("tokenizer.chat_template").and_then(Value::as_str).unwrap();
    assert!(template.starts_with("{% for message in messages %}"));
}

#[test]
fn pads_to_the_embedding() {
    let metadata = read("pad", 7, &[("tokenizer.json", small())]).unwrap();
    assert_eq!(
        strings(&metadata, "tokenizer.ggml.tokens"),
        ["a", "b", "Ġ", "ab", "<|end|>", "[PAD5]", "[PAD6]"]
    );
    assert_eq!(kinds(&metadata), [1, 1, 1, 1, 3, 5, 5]);
    let error = read("short", 4, &[("tokenizer.json", small())]).unwrap_err().to_string();
    assert!(error.contains("`<|end|>` with id 4, but the embedding has 4 rows"), "{error}");
}

#[test]
fn reads_both_styles_of_merges() {
    let mut json = small();
    json["model"]["merges"] = json!([["a", "b"], ["a b", " "]]);
    let metadata = read("merges", 5, &[("tokenizer.json", json)]).unwrap();
    assert_eq!(strings(&metadata, "tokenizer.ggml.merges"), ["a b", "aĠb Ġ"]);
}

#[test]
fn special_tokens_come_from_text_then_ids() {
    let mut json = small();
    json["post_processor"] = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    }]});
    let files = [
        ("tokenizer.json", json),
        ("tokenizer_config.json", json!({"bos_token": {"content": "<|end|>"}, "chat_template": null})),
        ("special_tokens_map.json", json!({"unk_token": "a"})),
        ("config.json", json!({"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 99})),
        ("generation_config.json", json!({"pad_token_id": 3})),
        (
            "chat_template.json",
            json!({"chat_template": [
            {"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}]}),
        ),
    ];
    let metadata = read("special", 5, &files).unwrap();
    for (key, value) in [("bos", 4u32), ("eos", 1), ("unknown", 0), ("padding", 3)] {
        assert_eq!(
            metadata.get(&format!("tokenizer.ggml.{key}_token_id")),
            Some(&Value::U32(value)),
            "{key}"
        );
    }
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(metadata.get("tokenizer.ggml.add_eos_token"), Some(&Value::Bool(false)));
    assert_eq!(metadata.get("tokenizer.chat_template"), Some(&Value::from("D")));
    assert_eq!(metadata.get("tokenizer.chat_template.tool_use"), Some(&Value::from("T")));
    assert_eq!(strings(&metadata, "tokenizer.chat_templates"), ["tool_use"]);
}

/// `tokenizer.json` of SentencePiece's kind: scores follow the order of the merges.
/// As llama.cpp's converter states them for GLM 4.5.
#[test]
fn glm_ends_turns_with_the_users() {
    let id = |metadata: &Metadata, role: &str| {
        metadata.get(&format!("tokenizer.ggml.{role}_token_id")).and_then(Value::as_u64)
    };
    let texts = ["<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>"];
    let mut tokenizer = small();
    let added =
        texts.iter().enumerate().map(|(i, text)| json!({"id": 4 + i, "content": text, "special": true}));
    tokenizer["added_tokens"] = added.collect();
    let config = json!({"eos_token": "<|endoftext|>"});
    let files = [("tokenizer.json", tokenizer.clone()), ("tokenizer_config.json", config.clone())];
    let metadata = read("glm", 8, &files).unwrap();
    let found = ["eos", "unknown", "bos", "eot", "eom"].map(|role| id(&metadata, role));
    assert_eq!(found, [4, 4, 5, 6, 7].map(Some));
    assert_eq!(metadata.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(false)));

    tokenizer["added_tokens"][3]["content"] = "<|tool|>".into();
    let metadata =
        read("no-glm", 8, &[("tokenizer.json", tokenizer), ("tokenizer_config.json", config)]).unwrap();
    assert_eq!(["eos", "bos", "eot"].map(|role| id(&metadata, role)), [Some(4), None, None]);
}

#[test]
fn byte_fallback_becomes_llama() {
    let json = json!({
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
            {"id": 7, "content": "▁▁x", "special": false}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2, "▁": 3, "a": 4, "▁a": 5, "aa": 6},
            "merges": ["▁ a", "a a"]}
    });
    let metadata = read("fallback", 8, &[("tokenizer.json", json)]).unwrap();
    assert_eq!(metadata.get("tokenizer.ggml.model"), Some(&Value::from("llama")));
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(true)));
    assert_eq!(kinds(&metadata), [2, 3, 6, 1, 1, 1, 1, 4]);
    assert_eq!(strings(&metadata, "tokenizer.ggml.tokens")[7], "  x");
    let Some(Value::Array(Array::F32(scores))) = metadata.get("tokenizer.ggml.scores") else {
        panic!("no scores")
    };
    assert_eq!(scores[3..7], [-2.0, -2.0, 0.0, -1.0]);
    assert_eq!(metadata.get("tokenizer.ggml.merges"), None);
}

#[test]
fn tokenizer_model_is_read_where_there_is_one() {
    let model = sentencepiece::tests::encode(&[("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -0.5, 1)], false);
    let files: [(&str, &[u8]); 2] = [("tokenizer.model", &model), ("added_tokens.json", br#"{"[INST]": 3}"#)];
    let folder = folder("model", &files);
    let metadata = gguf_metadata(&folder, &config(5)).unwrap();
    let short = gguf_metadata(&folder, &config(2)).unwrap_err().to_string();
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(strings(&metadata, "tokenizer.ggml.tokens"), ["<unk>", "<s>", "▁a", "[INST]", "[PAD4]"]);
    assert_eq!(kinds(&metadata), [2, 3, 1, 4, 5]);
    assert_eq!(metadata.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
    assert!(short.contains("has 3 pieces, but the embedding has 2 rows"), "{short}");
}

#[test]
fn refuses_what_would_tokenize_wrongly() {
    let refused = |test: &str, change: &dyn Fn(&mut Json)| {
        let mut json = small();
        change(&mut json);
        read(test, 9, &[("tokenizer.json", json)]).unwrap_err().to_string()
    };
    let message = refused("normalizer", &|json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(message.contains("normalizer that llama.cpp can't do"), "{message}");
    let message =
        refused("unigram", &|json| json["model"] = json!({"type": "Unigram", "vocab": [["a", 0.0]]}));
    assert!(message.contains("is of type Unigram"), "{message}");
    let message = refused("twins", &|json| json["model"]["vocab"]["b"] = json!(0));
    assert!(message.contains("gives id 0 to two tokens"), "{message}");
    let message = refused("alike", &|json| json["added_tokens"][0]["content"] = json!("ab"));
    assert!(message.contains("spells the tokens 3 and 4 alike (`ab`)"), "{message}");
    let message = refused("words", &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(message.contains("neither byte-level nor byte-fallback"), "{message}");
    let message = read("none", 4, &[]).unwrap_err().to_string();
    assert!(
        message.contains("holds no tokenizer") && message.contains("copy it from the model's repository"),
        "{message}"
    );
}

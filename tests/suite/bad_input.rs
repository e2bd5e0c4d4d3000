//! Damaged and wrong checkpoints: each an error that says what to do, and no output.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::tool::{copy_of, fails, quantize};

/// Changes a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("file")).expect("JSON");
    change(&mut value);
    fs::write(path, value.to_string()).expect("write");
}

/// What `quantize` says of a model that was changed by `damage`; there must be no output.
fn refusal(name: &str, damage: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().expect("dir");
    let folder = copy_of(name, dir.path());
    damage(&folder);
    let out = dir.path().join("out.gguf");
    let message = fails(&mut quantize(&folder, "gguf", "q4_k_m", &out), 1);
    assert!(!out.exists());
    message
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

fn shard(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("model-{number:05}-of-000003.safetensors"))
}

#[test]
fn an_unknown_family_is_named_with_the_known_ones() {
    let message = refusal("tiny-llama", |folder| {
        edit(&folder.join("config.json"), |config| config["model_type"] = "mamba9".into());
    });
    says(&message, &["mamba9", "llama", "qwen3_moe", "deepseek_v3"]);
}

#[test]
fn a_missing_shard_is_named() {
    let message = refusal("tiny-deepseek", |folder| fs::remove_file(shard(folder, 2)).expect("remove"));
    says(&message, &["model-00002-of-000003.safetensors"]);
}

#[test]
fn a_truncated_shard_is_named() {
    let message = refusal("tiny-deepseek", |folder| {
        let path = shard(folder, 3);
        let bytes = fs::read(&path).expect("shard");
        fs::write(&path, &bytes[..bytes.len() - 1000]).expect("cut");
    });
    says(&message, &["model-00003-of-000003.safetensors", "truncated"]);
}

#[test]
fn shapes_that_contradict_the_config_are_shown() {
    let message = refusal("tiny-llama", |folder| {
        edit(&folder.join("config.json"), |config| config["intermediate_size"] = 1024.into());
    });
    says(&message, &["mlp", "768", "1024"]);
}

#[test]
fn a_missing_tokenizer_is_said() {
    let message = refusal("tiny-llama", |folder| {
        fs::remove_file(folder.join("tokenizer.json")).expect("remove");
    });
    says(&message, &["tokenizer.json"]);
}

#[test]
fn a_missing_config_is_said() {
    let message =
        refusal("tiny-llama", |folder| fs::remove_file(folder.join("config.json")).expect("remove"));
    says(&message, &["config.json"]);
}

#[test]
fn missing_scales_are_named() {
    let message = refusal("tiny-deepseek", |folder| {
        edit(&folder.join("model.safetensors.index.json"), |index| {
            let map = index["weight_map"].as_object_mut().expect("map");
            map.remove("model.layers.1.self_attn.o_proj.weight_scale_inv").expect("a scale");
        });
        // The header still lists it: rename it there, at the same length.
        for number in 1..=3 {
            let path = shard(folder, number);
            let bytes = fs::read(&path).expect("shard");
            let from = b"model.layers.1.self_attn.o_proj.weight_scale_inv";
            let to = b"model.layers.1.self_attn.o_proj.weight_scale_xxx";
            if let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
                let mut bytes = bytes;
                bytes[at..at + to.len()].copy_from_slice(to);
                fs::write(&path, bytes).expect("write");
            }
        }
    });
    says(&message, &["model.layers.1.self_attn.o_proj.weight"]);
}

#[test]
fn nan_weights_are_counted_and_named() {
    let message = refusal("tiny-llama", |folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("model");
        // The last tensor of the file is a norm: eleven NaNs in BF16.
        let end = bytes.len();
        for at in 0..11 {
            bytes[end - 2 * at - 2..end - 2 * at].copy_from_slice(&[0xff, 0x7f]);
        }
        fs::write(&path, bytes).expect("write");
    });
    says(&message, &["11 of its", "NaN", "--allow-nonfinite"]);
}

#[test]
fn a_folder_without_weights_and_a_file_of_another_kind_are_said() {
    let message = refusal("tiny-llama", |folder| {
        fs::remove_file(folder.join("model.safetensors")).expect("remove");
    });
    says(&message, &["safetensors"]);
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("notes.txt");
    fs::write(&file, "no model").expect("write");
    let message = fails(&mut quantize(&file, "gguf", "q4_0", &dir.path().join("o.gguf")), 1);
    says(&message, &["notes.txt"]);
    let message =
        fails(&mut quantize(&dir.path().join("nowhere"), "gguf", "q4_0", &dir.path().join("o.gguf")), 1);
    says(&message, &["nowhere"]);
}

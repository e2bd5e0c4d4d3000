//! Lossless conversions, made and proved as a user does.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::tool::{fails, halfbyte, model, quantize, run};

fn convert(source: &Path, to: &str, out: &Path) -> Command {
    let mut command = halfbyte(&["convert", "--json"]);
    command.arg(source).args(["--to", to, "--out"]).arg(out);
    command
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON on standard output")
}

/// Converts, and tells the formats that linears got.
fn formats(command: &mut Command) -> Vec<String> {
    let result = json(&run(command).stdout);
    assert!(result["proof"]["weights"].as_u64().is_some_and(|weights| weights > 4_000_000), "{result}");
    let tensors = result["tensors"].as_array().expect("tensors");
    let quantized = tensors.iter().filter(|tensor| tensor["class"] == "ffn_up");
    let mut formats: Vec<String> = quantized.map(|tensor| tensor["format"].to_string()).collect();
    formats.dedup();
    formats
}

/// The bytes of a folder's tensors by their names.
fn tensors(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).expect("a shard");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let names = json(&bytes[8..8 + header]);
    let entries = names.as_object().expect("a header").iter().filter(|(name, _)| *name != "__metadata__");
    let mut all: Vec<(String, Vec<u8>)> = entries
        .map(|(name, entry)| {
            let at = |i: usize| 8 + header + entry["data_offsets"][i].as_u64().expect("an offset") as usize;
            (name.clone(), bytes[at(0)..at(1)].to_vec())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn symmetric_groups_go_round_through_all_containers_and_come_back_as_they_were() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let like = model("tiny-llama");
    run(&mut quantize(&like, "compressed-tensors", "w4a16-g32-f16", &path("first")));
    assert_eq!(formats(&mut convert(&path("first"), "gguf", &path("a.gguf"))), ["\"q4_0\""]);
    // Half floats whose consumers compute in them too.
    let mut to_mlx = convert(&path("a.gguf"), "mlx", &path("mlx"));
    assert_eq!(formats(to_mlx.arg("--like").arg(&like)), ["\"4bit-g32-f16\""]);
    let mut back = convert(&path("mlx"), "compressed-tensors", &path("last"));
    assert_eq!(formats(back.arg("--like").arg(&like)), ["\"w4a16-g32-f16\""]);
    // Norms are F32 since they were in the GGUF, and what was BF16 is.
    let wide = |folder: &Path| -> Vec<(String, Value)> {
        let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(folder)).stdout);
        let tensors = inspected["tensors"].as_array().expect("tensors").clone();
        tensors.into_iter().map(|t| (t["name"].to_string(), t["format"].clone())).collect()
    };
    assert_eq!(wide(&path("first")).len(), wide(&path("last")).len());
    run(&mut convert(&path("first"), "mlx", &path("mlx2")));
    let mut back = convert(&path("mlx2"), "compressed-tensors", &path("last2"));
    run(back.arg("--like").arg(&like));
    assert!(tensors(&path("last2")) == tensors(&path("first")), "the same bytes");
}

#[test]
fn what_no_format_holds_is_refused_with_its_cost_and_nothing_is_written() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let like = model("tiny-llama");
    run(&mut quantize(&like, "mlx", "4bit-g64", &path("mlx")));
    let mut command = convert(&path("mlx"), "compressed-tensors", &path("out"));
    let message = fails(command.arg("--like").arg(&like), 1);
    for part in ["q_proj", "4bit-g64", "w4a16-g64", "%", "halfbyte quantize"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!path("out").exists() && !path("out.partial").exists());
    // Its scales and biases are half floats too.
    assert_eq!(formats(&mut convert(&path("mlx"), "gguf", &path("m.gguf"))), ["\"q4_1\""]);

    run(&mut quantize(&like, "gguf", "q4_k_s", &path("k.gguf")));
    let mut command = convert(&path("k.gguf"), "mlx", &path("out"));
    let message = fails(command.arg("--like").arg(&like), 1);
    assert!(message.contains("q4_k"), "{message}");
    let message = fails(&mut convert(&path("k.gguf"), "mlx", &path("out")), 2);
    assert!(message.contains("--like"), "{message}");
}

#[test]
fn a_converted_model_of_another_kind_is_told_from_its_checkpoint() {
    let dir = tempfile::tempdir().expect("dir");
    let gguf = dir.path().join("a.gguf");
    run(&mut quantize(&model("tiny-llama"), "gguf", "q4_0", &gguf));
    let mut command = convert(&gguf, "mlx", &dir.path().join("out"));
    let message = fails(command.arg("--like").arg(model("tiny-deepseek")), 1);
    assert!(message.contains("another model"), "{message}");
}

#[test]
fn mxfp4_moves_between_gguf_and_mlx() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let like = model("tiny-llama");
    run(&mut quantize(&like, "mlx", "mxfp4", &path("mlx")));
    assert_eq!(formats(&mut convert(&path("mlx"), "gguf", &path("a.gguf"))), ["\"mxfp4\""]);
    let mut back = convert(&path("a.gguf"), "mlx", &path("again"));
    assert_eq!(formats(back.arg("--like").arg(&like)), ["\"mxfp4\""]);
}

#[test]
fn gptq_and_awq_come_back_from_every_container_that_holds_them() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let like = model("tiny-llama");
    run(&mut quantize(&like, "gptq", "w4a16-g32", &path("gptq")));
    run(&mut quantize(&like, "awq", "w4a16-asym-g32", &path("awq")));
    for (from, to, expected) in [
        ("gptq", "gguf", "q4_0"),
        ("gptq", "mlx", "4bit-g32-f16"),
        ("gptq", "compressed-tensors", "w4a16-g32-f16"),
        ("gptq", "awq", "w4a16-asym-g32-f16"),
        ("gptq", "gptq-v2", "w4a16-g32-f16"),
        // A zero point times a scale is no half float.
        ("awq", "mlx", "4bit-g32-f32"),
        ("awq", "compressed-tensors", "w4a16-asym-g32-f16"),
    ] {
        let (there, back) = (path(&format!("{from}-{to}")), path(&format!("{from}-{to}-{from}")));
        let there = if to == "gguf" { there.with_extension("gguf") } else { there };
        assert_eq!(
            formats(&mut convert(&path(from), to, &there)),
            [format!("\"{expected}\"")],
            "{from} to {to}"
        );
        let mut command = convert(&there, from, &back);
        if to == "gguf" || to == "mlx" {
            command.arg("--like").arg(&like);
        }
        run(&mut command);
        let (first, last) = (tensors(&path(from)), tensors(&back));
        for ((name, before), (same, after)) in first.iter().zip(&last) {
            assert_eq!(name, same);
            // Norms are F32 in a GGUF.
            assert!(before == after || name.contains("norm"), "{name} of {from} by {to}");
        }
        assert_eq!(first.len(), last.len());
    }
    let message = fails(&mut convert(&path("awq"), "gguf", &path("x.gguf")), 1);
    assert!(message.contains("q4_1") && message.contains('%'), "{message}");
}

/// Embedding and head are quantized in such a GGUF, and numbers in a folder for vLLM.
#[test]
fn what_is_no_blocks_in_the_target_keeps_its_numbers() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let like = model("tiny-llama");
    run(&mut quantize(&like, "gguf", "q4_0", &path("a.gguf")));
    let mut command = convert(&path("a.gguf"), "compressed-tensors", &path("ct"));
    assert_eq!(formats(command.arg("--like").arg(&like)), ["\"w4a16-g32-f16\""]);
    let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(path("ct"))).stdout);
    let of = |name: &str| {
        let tensors = inspected["tensors"].as_array().expect("tensors");
        tensors.iter().find(|tensor| tensor["name"] == name).expect("a tensor")["format"].clone()
    };
    assert_eq!((of("model.embed_tokens.weight"), of("lm_head.weight")), ("f32".into(), "f32".into()));
    // Nothing holds FP8 but FP8.
    let message = fails(&mut convert(&model("tiny-deepseek"), "gguf", &path("r.gguf")), 1);
    assert!(message.contains("f8_e4m3"), "{message}");
}

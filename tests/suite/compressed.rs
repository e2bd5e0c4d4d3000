//! Folders of compressed-tensors, made and read as a user does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tool::{fails, halfbyte, model, quantize, run};

const TO: &str = "compressed-tensors";

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON on standard output")
}

fn config(folder: &Path) -> Value {
    json(&fs::read(folder.join("config.json")).expect("config.json"))
}

/// Formats of the tensors whose names end so, each once.
fn formats(folder: &Path, end: &str) -> Vec<String> {
    let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(folder)).stdout);
    assert_eq!(inspected["container"], TO);
    let tensors = inspected["tensors"].as_array().expect("tensors");
    let ending =
        tensors.iter().filter(|tensor| tensor["name"].as_str().is_some_and(|name| name.ends_with(end)));
    let mut formats: Vec<String> =
        ending.map(|tensor| tensor["format"].as_str().expect("format").to_owned()).collect();
    formats.sort();
    formats.dedup();
    formats
}

/// The mean divergence from a fixture.
fn divergence(measured: &Path, of: &str) -> f64 {
    let mut command = halfbyte(&["verify", "--json", "--context", "64", "--chunks", "4"]);
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    command.arg(measured).arg("--against").arg(model(of)).arg("--text").arg(text);
    json(&run(&mut command).stdout)["mean_kld"].as_f64().expect("mean_kld")
}

#[test]
fn linears_of_blocks_are_quantized_under_their_own_names_and_diverge_little() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["tiny-llama", "tiny-deepseek"] {
        let out = dir.path().join(name);
        run(&mut quantize(&model(name), TO, "w4a16-g32", &out));
        for end in ["0.self_attn.o_proj.weight", "0.mlp.down_proj.weight"] {
            assert_eq!(formats(&out, &format!("layers.{end}")), ["w4a16-g32"]);
        }
        assert_eq!(formats(&out, "embed_tokens.weight"), ["bf16"]);
        assert!(out.join("tokenizer.json").exists() && out.join("generation_config.json").exists());
        let quantization = &config(&out)["quantization_config"];
        assert_eq!(quantization["quant_method"], TO);
        assert!(quantization["ignore"].as_array().is_some_and(|names| names.contains(&"lm_head".into())));

        let q4_0 = dir.path().join(format!("{name}.gguf"));
        run(&mut quantize(&model(name), "gguf", "q4_0", &q4_0));
        let (ours, gguf) = (divergence(&out, name), divergence(&q4_0, name));
        assert!(ours > 0.0 && ours < 1.1 * gguf, "{name}: {ours}, {gguf} in q4_0");
    }
    let deepseek = dir.path().join("tiny-deepseek");
    assert_eq!(formats(&deepseek, "mlp.gate.weight"), ["bf16"]);
    assert_eq!(formats(&deepseek, "layers.1.mlp.experts.3.up_proj.weight"), ["w4a16-g32"]);
    let ignored = config(&deepseek)["quantization_config"]["ignore"].clone();
    let ignored = ignored.as_array().expect("names");
    assert!(ignored.contains(&"model.layers.1.mlp.gate".into()));
    // The layer that predicts a further token is left alone.
    assert!(ignored.contains(&"model.layers.4.mlp.experts.0.gate_proj".into()), "{ignored:?}");
}

#[test]
fn a_folder_is_a_source_and_its_codes_are_kept() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let first = path("first");
    run(quantize(&model("tiny-llama"), TO, "w4a16-g64", &first).args(["--shard-size", "1MB"]));
    let again = path("again");
    let output = run(quantize(&first, TO, "w4a16-g64", &again).args(["--shard-size", "1MB"]));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
    let weights = |folder: &Path| -> Vec<(String, u64)> {
        let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(folder)).stdout);
        let tensors = inspected["tensors"].as_array().expect("tensors").clone();
        tensors.iter().map(|t| (t["name"].to_string(), t["bytes"].as_u64().expect("bytes"))).collect()
    };
    assert_eq!(weights(&again), weights(&first));
    let by_itself = divergence(&first, "tiny-llama");
    assert_eq!(divergence(&again, "tiny-llama"), by_itself);

    let gguf = path("via.gguf");
    let output = run(&mut quantize(&first, "gguf", "f32", &gguf));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"), "nothing is quantized again");
    let via = divergence(&gguf, "tiny-llama");
    assert!((via - by_itself).abs() < 1e-4 * by_itself, "{via}, {by_itself} in the folder");
    let output = run(&mut quantize(&first, "mlx", "3bit-g64", &path("via-mlx")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning"), "4 bits already");
}

#[test]
fn several_schemes_are_stated_module_by_module_but_not_within_what_is_fused() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("mixed");
    let mut command = quantize(&model("tiny-llama"), TO, "w4a16-g128", &out);
    run(command.args(["--tensor", "down_proj=w4a16-g32", "--tensor", "o_proj=bf16"]));
    assert_eq!(formats(&out, "down_proj.weight"), ["w4a16-g32"]);
    assert_eq!(formats(&out, "o_proj.weight"), ["bf16"]);
    let groups = config(&out)["quantization_config"]["config_groups"].clone();
    let targets = groups["group_1"]["targets"].as_array().expect("targets").clone();
    assert!(targets.contains(&"model.layers.0.mlp.down_proj".into()), "{targets:?}");
    assert!(divergence(&out, "tiny-llama") > 0.0);

    let refused = |rule: &str| {
        let out = dir.path().join("refused");
        fails(quantize(&model("tiny-llama"), TO, "w4a16-g128", &out).args(["--tensor", rule]), 2)
    };
    let message = refused("q_proj=w4a16-g32");
    assert!(
        message.contains("q_proj") && message.contains("k_proj") && message.contains("one scheme"),
        "{message}"
    );
    let message = refused("up_proj=bf16");
    assert!(message.contains("gate_proj") && message.contains("up_proj"), "{message}");
    assert!(refused("down_proj=q4_0").contains("w4a16-g32"));
    assert!(refused("embed_tokens=w4a16-g32").contains("no tensor that can be quantized"));
}

#[test]
fn other_sources_and_wishes_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    run(&mut quantize(&model("tiny-llama"), "mlx", "bf16", &path("mlx")));
    run(&mut quantize(&model("tiny-llama"), "gguf", "bf16", &path("m.gguf")));
    for source in [path("mlx"), path("m.gguf")] {
        let message = fails(&mut quantize(&source, TO, "w4a16-g128", &path("out")), 2);
        assert!(
            message.contains("compressed-tensors") && message.contains("Give the checkpoint"),
            "{message}"
        );
    }
    let message = fails(&mut quantize(&model("tiny-llama"), TO, "q4_0", &path("out")), 2);
    assert!(message.contains("w4a16-g128"), "{message}");
    let message =
        fails(quantize(&model("tiny-llama"), TO, "w4a16-g128", &path("out")).args(["--align", "64"]), 2);
    assert!(message.contains("64 bytes"), "{message}");
}

/// A folder and a GGUF file by one calibration; the folder is nearer to the source than without.
#[test]
fn calibration_works_as_for_the_others() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    for name in ["tiny-llama", "tiny-deepseek"] {
        let mut command = halfbyte(&["quantize", "--calibrate", "default", "--calibration-chunks", "4"]);
        command.arg(model(name)).args(["--calibration-context", "128"]);
        command.args(["--to", TO, "--format", "w4a16-g128", "--out"]).arg(path("calibrated"));
        command.args(["--to", "gguf", "--format", "q4_0", "--out"]).arg(path("c.gguf"));
        run(&mut command);
        run(&mut quantize(&model(name), TO, "w4a16-g128", &path("plain")));
        let (calibrated, plain) = (divergence(&path("calibrated"), name), divergence(&path("plain"), name));
        assert!(calibrated < plain, "{name}: {calibrated}, {plain} without calibration");
        for made in ["calibrated", "plain"] {
            fs::remove_dir_all(path(made)).expect("removed");
        }
        fs::remove_file(path("c.gguf")).expect("removed");
    }
}

//! `halfbyte quantize`, `inspect` and `formats` on whole models.

use std::{collections::BTreeMap, fs, path::Path};

use formats::{Checkpoint, TensorId};
use serde_json::Value;

use crate::tool::{fails, halfbyte, model, quantize, run};

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON on standard output")
}

#[test]
fn the_dry_run_tells_the_exact_size_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    for (source, to, format) in [
        ("tiny-llama", "gguf", "q4_k_m"),
        ("tiny-deepseek", "gguf", "iq4_xs"),
        ("tiny-llama", "mlx", "4bit-g64"),
        ("tiny-deepseek", "mlx", "mxfp4"),
        ("tiny-deepseek", "compressed-tensors", "w4a16-g64"),
    ] {
        let out = dir.path().join(if to == "gguf" { "out.gguf" } else { "out" });
        let plan = run(quantize(&model(source), to, format, &out).args(["--dry-run", "--json"]));
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 0);
        let result = run(quantize(&model(source), to, format, &out).arg("--json"));
        let (plan, result) = (json(&plan.stdout), json(&result.stdout));
        let size = if to == "gguf" {
            fs::metadata(&out).expect("file").len()
        } else {
            fs::read_dir(&out)
                .expect("folder")
                .map(|e| e.expect("entry").metadata().expect("size").len())
                .sum()
        };
        assert_eq!(plan["bytes"], size, "{source} {format}");
        assert_eq!(result["bytes"], size);
        assert_eq!(plan["tensors"].as_array().map(Vec::len), result["tensors"].as_array().map(Vec::len));
        let _ = fs::remove_file(&out);
        let _ = fs::remove_dir_all(&out);
    }
}

#[test]
fn the_result_tells_size_bits_and_error_by_class() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("llama.gguf");
    let result = json(&run(quantize(&model("tiny-llama"), "gguf", "q4_k_m", &out).arg("--json")).stdout);
    let bits = result["bits_per_weight"].as_f64().expect("bits per weight");
    assert!((4.5..5.5).contains(&bits), "{bits}");
    let classes = result["classes"].as_array().expect("classes");
    let ffn_down = classes.iter().find(|class| class["class"] == "ffn_down").expect("ffn_down");
    let error = ffn_down["relative_error"].as_f64().expect("error");
    assert!((0.005..0.1).contains(&error), "{error}");
    assert!(result["peak_rss_bytes"].as_u64().is_some_and(|bytes| bytes < 500_000_000));
    let share = |stage| result["busy_shares"][stage].as_f64().expect("share");
    assert!(share("encoding") > share("hashing") && share("hashing") > 0.0, "{}", result["busy_shares"]);

    let text = run(&mut quantize(&model("tiny-llama"), "gguf", "q8_0", &dir.path().join("q8.gguf"))).stdout;
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("bits per weight") && text.contains("ffn_down"), "{text}");
    assert!(text.contains("\nbound by ") && text.contains("hashing "), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours off a terminal");
}

#[test]
fn running_it_again_changes_nothing_and_another_recipe_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("llama.gguf");
    run(&mut quantize(&model("tiny-llama"), "gguf", "q4_0", &out));
    let written = fs::metadata(&out).expect("file").modified().expect("time");
    let again = run(&mut quantize(&model("tiny-llama"), "gguf", "q4_0", &out));
    assert!(String::from_utf8_lossy(&again.stdout).contains("already there"));
    let message = fails(&mut quantize(&model("tiny-llama"), "gguf", "q8_0", &out), 1);
    assert!(message.contains("--overwrite"), "{message}");
    assert_eq!(fs::metadata(&out).expect("file").modified().expect("time"), written);
    run(quantize(&model("tiny-llama"), "gguf", "q8_0", &out).arg("--overwrite"));
}

#[test]
fn a_gguf_file_is_a_source_and_requantizing_warns() {
    let dir = tempfile::tempdir().expect("dir");
    let (f16, q8, direct) =
        (dir.path().join("f16.gguf"), dir.path().join("q8.gguf"), dir.path().join("d.gguf"));
    run(&mut quantize(&model("tiny-llama"), "gguf", "bf16", &f16));
    let output = run(&mut quantize(&f16, "gguf", "q8_0", &q8));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
    run(&mut quantize(&model("tiny-llama"), "gguf", "q8_0", &direct));
    let tensors = |path| json(&run(halfbyte(&["inspect", "--json"]).arg(path)).stdout)["tensors"].clone();
    assert_eq!(tensors(&q8), tensors(&direct));
    let output = run(&mut quantize(&q8, "gguf", "q4_0", &dir.path().join("q4.gguf")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning"), "q8_0 is no full precision");
}

#[test]
fn overrides_choose_the_type_of_single_tensors() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("llama.gguf");
    let mut command = quantize(&model("tiny-llama"), "gguf", "q4_0", &out);
    run(command.args(["--tensor", r"blk\.0\.attn_v=q8_0", "--tensor", "^output.weight$=bf16"]));
    let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(&out)).stdout);
    let kind = |name: &str| {
        let tensors = inspected["tensors"].as_array().expect("tensors");
        tensors.iter().find(|tensor| tensor["name"] == name).expect("tensor")["format"].clone()
    };
    assert_eq!(kind("blk.0.attn_v.weight"), "q8_0");
    assert_eq!(kind("output.weight"), "bf16");
    assert_eq!(kind("blk.1.attn_v.weight"), "q4_0");
}

#[test]
fn wrong_use_exits_with_2_and_says_what_is_right() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let message = fails(&mut quantize(&model("tiny-llama"), "gguf", "q4_x", &out), 2);
    assert!(message.contains("q4_x") && message.contains("q4_k_m"), "{message}");
    let message = fails(quantize(&model("tiny-llama"), "gguf", "q4_0", &out).args(["--tensor", "(=q8_0"]), 2);
    assert!(message.contains("(=q8_0"), "{message}");
    let message = fails(quantize(&model("tiny-llama"), "gguf", "q4_0", &out).args(["--memory", "lots"]), 2);
    assert!(message.contains("lots"), "{message}");
    assert!(!out.exists());
}

#[test]
fn formats_lists_what_can_be_written() {
    let text = String::from_utf8(run(&mut halfbyte(&["formats"])).stdout).expect("text");
    for name in ["q4_k_m", "iq4_xs", "nvfp4", "4bit-g64", "mxfp8", "w4a16-g128"] {
        assert!(text.contains(name), "{name} in\n{text}");
    }
    assert!(json(&run(&mut halfbyte(&["formats", "--json"])).stdout).is_object());
}

#[test]
fn shards_are_cut_at_tensor_boundaries() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("llama.gguf");
    run(quantize(&model("tiny-llama"), "gguf", "q8_0", &out).args(["--shard-size", "2MB"]));
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .expect("dir")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() > 1 && names[0] == format!("llama-00001-of-{:05}.gguf", names.len()), "{names:?}");
    let split = json(&run(halfbyte(&["inspect", "--json"]).arg(dir.path().join(&names[0]))).stdout);
    let whole = dir.path().join("whole.gguf");
    run(&mut quantize(&model("tiny-llama"), "gguf", "q8_0", &whole));
    let whole = json(&run(halfbyte(&["inspect", "--json"]).arg(&whole)).stdout);
    assert_eq!(split["tensors"], whole["tensors"]);
}

/// Names, shapes and bytes of a model's tensors.
fn contents(path: &Path) -> BTreeMap<String, (Vec<u64>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(&path.into()).expect("model");
    let source = checkpoint.source();
    let content = |(i, meta): (usize, &formats::TensorMeta)| {
        let mut bytes = vec![0; meta.len as usize];
        source.read_at(TensorId(i), 0, &mut bytes).expect("bytes");
        (meta.name.clone(), (meta.shape.clone(), bytes))
    };
    source.tensors().iter().enumerate().map(content).collect()
}

#[test]
fn an_mlx_folder_is_a_source_like_the_checkpoint_it_was_made_from() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["tiny-llama", "tiny-deepseek"] {
        let path = |end: &str| dir.path().join(format!("{name}{end}"));
        run(&mut quantize(&model(name), "mlx", "bf16", &path("-mlx")));
        let output = run(&mut quantize(&path("-mlx"), "gguf", "bf16", &path("-via.gguf")));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
        run(&mut quantize(&model(name), "gguf", "bf16", &path(".gguf")));
        assert!(contents(&path("-via.gguf")) == contents(&path(".gguf")), "{name}");

        // Quantized: what is to stay as it is keeps its bytes, what isn't is warned of.
        run(&mut quantize(&model(name), "mlx", "4bit-g64", &path("-4bit")));
        let output = run(&mut quantize(&path("-4bit"), "mlx", "4bit-g64", &path("-again")));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("warning"));
        assert!(contents(&path("-again")) == contents(&path("-4bit")), "{name}");
        let output = run(&mut quantize(&path("-4bit"), "gguf", "q8_0", &path("-q8.gguf")));
        assert!(String::from_utf8_lossy(&output.stderr).contains("warning"), "{name}: 4 bits already");
    }
}

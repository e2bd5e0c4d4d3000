//! `halfbyte verify` on whole models: what it says, and what a script can rely on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::tool::{fails, halfbyte, model, quantize, run};

/// A text that is there anyway.
fn text() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")
}

/// `halfbyte verify MODEL --against SOURCE --text ...`, on four chunks of 64 tokens.
fn verify(measured: &Path, against: &Path) -> Command {
    let mut command = halfbyte(&["verify", "--context", "64", "--chunks", "4"]);
    command.arg(measured).arg("--against").arg(against).arg("--text").arg(text());
    command
}

fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&run(command.arg("--json")).stdout).expect("JSON on standard output")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", value[key]))
}

/// tiny-llama in a format, in a folder of its own.
fn quantized(format: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("tiny.gguf");
    run(&mut quantize(&model("tiny-llama"), "gguf", format, &out));
    (dir, out)
}

#[test]
fn the_figures_are_there_by_name_and_the_report_stands_alone() {
    let (dir, file) = quantized("q4_k_m");
    let page = dir.path().join("report.html");
    let result = json(verify(&file, &model("tiny-llama")).arg("--report").arg(&page));
    assert_eq!(result["tokens_scored"], 4 * 31);
    assert!(number(&result, "perplexity") > 1.0 && number(&result, "perplexity_stderr") > 0.0);
    let ratio = number(&result, "perplexity") / number(&result, "reference_perplexity");
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    assert!(number(&result, "mean_kld") > 0.0 && number(&result, "mean_kld_stderr") > 0.0);
    assert!((0.8..1.0).contains(&number(&result, "same_top1")) && number(&result, "rms_dp") > 0.0);
    let percentiles = ["50", "90", "95", "99", "99.9", "max"].map(|p| number(&result["kld_percentiles"], p));
    assert!(percentiles.is_sorted() && percentiles[0] < percentiles[5], "{percentiles:?}");
    assert!(number(&result, "tokens_per_second") > 0.0 && number(&result, "peak_rss_bytes") > 1e6);
    assert!(result["protocol"].as_str().is_some_and(|line| line.contains("4 chunks of 64 tokens")));
    assert_eq!(result["input"]["name"], "README.md");
    assert!(result["input"]["sha256"].as_str().is_some_and(|hash| hash.len() == 64));
    let layers = result["layers"].as_array().expect("layers");
    let errors: Vec<f64> = layers.iter().map(|layer| number(layer, "relative_error")).collect();
    assert!(!errors.is_empty() && errors.iter().all(|e| (1e-4..1.0).contains(e)), "{errors:?}");
    assert!(result["tensors"].as_array().is_some_and(|tensors| tensors.len() > errors.len()));

    let page = fs::read_to_string(page).expect("report");
    let hash = result["model"]["files"][0]["sha256"].as_str().expect("hash");
    assert!(page.contains(hash) && page.contains("Mean KL divergence"));
    assert!(!page.contains("src=") && !page.contains("href="));
}

#[test]
fn gates_are_for_scripts() {
    let (_dir, file) = quantized("q4_0");
    let against = model("tiny-llama");
    let output = run(verify(&file, &against).args(["--max-kld", "1", "--max-ppl-ratio", "2"]));
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.contains("mean KLD") && table.contains("protocol: "), "{table}");
    assert!(!table.contains('\u{1b}'), "no colours off a terminal");

    let output = verify(&file, &against).args(["--max-kld", "1e-7"]).output().expect("the binary runs");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("mean KLD") && message.contains("exceeds --max-kld 0.0000001"), "{message}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("mean KLD"), "the result is told all the same");
    let message = fails(verify(&file, &against).args(["--json", "--max-ppl-ratio", "0.5"]), 3);
    assert!(message.contains("perplexity ratio") && message.contains("--max-ppl-ratio 0.5"), "{message}");
}

#[test]
fn a_model_is_at_no_distance_from_itself() {
    let source = model("tiny-llama");
    let result = json(&mut verify(&source, &source));
    assert_eq!(result["perplexity"], result["reference_perplexity"]);
    assert_eq!((number(&result, "same_top1"), number(&result, "rms_dp")), (1.0, 0.0));
    assert!(number(&result, "mean_kld").abs() < 1e-6);
}

/// Fixed point changes the divergence of an 8-bit file by less than other text would, and perplexity by nothing that shows.
#[test]
fn fast_is_as_good_and_says_so() {
    let (_dir, file) = quantized("q8_0");
    let against = model("tiny-llama");
    let exact = json(&mut verify(&file, &against));
    let fast = json(verify(&file, &against).arg("--fast"));
    let change = |key| (number(&fast, key) - number(&exact, key)).abs();
    assert!(change("mean_kld") > 0.0, "--fast does nothing");
    assert!(change("mean_kld") < number(&exact, "mean_kld_stderr"), "{exact} {fast}");
    assert!(change("perplexity") < 1e-4 * number(&exact, "perplexity"), "{exact} {fast}");
    let says = |result: &Value| {
        result["protocol"].as_str().is_some_and(|line| line.contains("products in fixed point"))
    };
    assert!(says(&fast) && !says(&exact));
}

#[test]
fn wrong_usage_and_wrong_input_are_told_apart() {
    let source = model("tiny-llama");
    let plain = |arguments: &[&str]| {
        let mut command = halfbyte(&["verify"]);
        command.arg(&source).args(arguments);
        command
    };
    let readme = text();
    let readme = readme.to_str().expect("UTF-8");
    assert!(fails(&mut plain(&["--text", readme, "--max-kld", "0.1"]), 2).contains("--against"));
    assert!(fails(&mut plain(&["--text", readme, "--max-ppl-ratio", "1.1"]), 2).contains("--against"));
    assert!(fails(&mut plain(&[]), 2).contains("--text"));
    assert!(
        fails(&mut plain(&["--text", readme, "--report", "/nowhere/at/all.html"]), 1).contains("/nowhere")
    );

    let dir = tempfile::tempdir().expect("dir");
    let short = dir.path().join("short.txt");
    fs::write(&short, "A few words.").expect("write");
    let short = short.to_str().expect("UTF-8");
    assert!(fails(&mut plain(&["--text", short]), 1).contains("--context"));
}

#[test]
fn a_family_without_a_graph_is_named() {
    let (_dir, file) = quantized("f16");
    let mut bytes = fs::read(&file).expect("file");
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("key") + key.len();
    let value = at + bytes[at..].windows(5).position(|window| window == b"llama").expect("value");
    bytes[value..value + 5].copy_from_slice(b"mamba");
    fs::write(&file, bytes).expect("write");
    let message = fails(&mut verify(&file, &model("tiny-llama")), 1);
    assert!(message.contains("`mamba` can't be evaluated yet"), "{message}");
}

#[test]
fn neither_threads_nor_memory_nor_the_processor_change_a_figure() {
    let (_dir, file) = quantized("q4_k_m");
    let against = model("tiny-llama");
    let figures = |command: &mut Command| {
        let result = json(command);
        ["perplexity", "reference_perplexity", "mean_kld", "rms_dp"].map(|key| number(&result, key))
    };
    let plain = figures(&mut verify(&file, &against));
    assert_eq!(figures(verify(&file, &against).args(["--threads", "1", "--memory", "64KiB"])), plain);
    assert_eq!(figures(verify(&file, &against).env("HALFBYTE_ISA", "scalar")), plain);
    let fast = figures(verify(&file, &against).arg("--fast"));
    for isa in ["scalar", "avx2"] {
        let again =
            figures(verify(&file, &against).args(["--fast", "--threads", "1"]).env("HALFBYTE_ISA", isa));
        assert_eq!(again, fast, "{isa}");
    }
}

#[test]
fn impossible_hyper_parameters_are_refused_before_anything_is_made_for_them() {
    for key in ["llama.block_count", "llama.rope.dimension_count", "llama.attention.key_length"] {
        let (_dir, file) = quantized("f16");
        let mut bytes = fs::read(&file).expect("file");
        let at =
            bytes.windows(key.len()).position(|window| window == key.as_bytes()).expect("key") + key.len();
        // The value's type, then the value.
        assert_eq!(bytes[at..at + 4], 4u32.to_le_bytes(), "{key} is a U32");
        bytes[at + 4..at + 8].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
        fs::write(&file, bytes).expect("write");
        let message = fails(&mut verify(&file, &model("tiny-llama")), 1);
        let (_, name) = key.split_once('.').expect("dot");
        assert!(message.contains(name) || message.contains("shape"), "{key}: {message}");
    }
}

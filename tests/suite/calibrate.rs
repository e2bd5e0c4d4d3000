//! `--calibrate`: what rounding by a text changes, and what it does not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use quantize::calibrate::text::DEFAULT;
use serde_json::Value;

use crate::tool::{fails, halfbyte, hashes, model, quantize, run};

/// A few pieces of the text that comes with the tool.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("calibration.txt");
    fs::write(&path, DEFAULT).expect("text");
    path
}

fn calibrated(mut command: Command, text: &Path, rounding: &str) -> Command {
    command.arg("--calibrate").arg(text).args(["--rounding", rounding]);
    command.args(["--calibration-chunks", "16", "--calibration-context", "128"]);
    command
}

fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&run(command.arg("--json")).stdout).expect("JSON")
}

/// The mean divergence from the source, on another text.
fn divergence(file: &Path, name: &str) -> f64 {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shrink/persuasion.txt");
    let mut command = halfbyte(&["verify"]);
    command.arg(file).arg("--against").arg(model(name)).arg("--text").arg(text);
    command.args(["--context", "128", "--chunks", "8"]);
    json(&mut command)["mean_kld"].as_f64().expect("a mean divergence")
}

#[test]
fn each_way_of_rounding_diverges_less_than_the_one_before() {
    let dir = tempfile::tempdir().expect("dir");
    let text = text(dir.path());
    for (name, to, format) in [("tiny-llama", "gguf", "q4_0"), ("tiny-deepseek", "mlx", "4bit-g64")] {
        let found = ["nearest", "search", "feedback"].map(|rounding| {
            let out = dir.path().join(format!("{name}-{rounding}.gguf"));
            run(&mut calibrated(quantize(&model(name), to, format, &out), &text, rounding));
            divergence(&out, name)
        });
        assert!(found[2] < 0.8 * found[0] && found[1] < 1.05 * found[0], "{name}: {found:?}");
    }
}

#[test]
fn every_matrix_is_reported_with_what_is_known_of_it() {
    let dir = tempfile::tempdir().expect("dir");
    let (text, out) = (text(dir.path()), dir.path().join("m.gguf"));
    let told =
        json(&mut calibrated(quantize(&model("tiny-deepseek"), "gguf", "q4_0", &out), &text, "feedback"));
    let tensors = told["calibrated"].as_array().expect("a list");
    let of = |name: &str| tensors.iter().find(|one| one["tensor"] == name).expect("calibrated");
    let (attention, experts) = (of("blk.1.attn_output.weight"), of("blk.1.ffn_down_exps.weight"));
    assert_eq!((&attention["matrices"], &attention["fewest_tokens"]), (&1.into(), &(16 * 128).into()));
    assert!(experts["matrices"].as_u64() <= Some(16) && experts["fewest_tokens"].as_u64() < Some(16 * 128));
    for one in tensors {
        let of = |key: &str| one[key].as_f64().expect("a number");
        assert!(of("squared_error") <= of("squared_error_searched"), "{one}");
    }
}

#[test]
fn one_pass_writes_several_outputs_and_threads_change_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let text = text(dir.path());
    let both = |name: &str, threads: &str| {
        let (gguf, mlx) = (dir.path().join(format!("{name}.gguf")), dir.path().join(format!("{name}-mlx")));
        let mut command = quantize(&model("tiny-llama"), "gguf", "q4_k_m", &gguf);
        command.args(["--to", "mlx", "--format", "4bit-g64", "--out"]).arg(&mlx).args(["--threads", threads]);
        let told = json(&mut calibrated(command, &text, "feedback"));
        let counts =
            told.as_array().expect("two").iter().map(|one| one["calibrated"].as_array().map(Vec::len));
        assert_eq!(counts.collect::<Vec<_>>(), [Some(29), Some(29)], "28 linears and the tied embedding");
        let mut all = hashes(&mlx);
        all.push(hashes(&gguf).swap_remove(0));
        all.into_iter().map(|(_, hash)| hash).collect::<Vec<_>>()
    };
    assert_eq!(both("a", "1"), both("b", "3"));
    // The first output alone is the same as with the second beside it.
    let alone = dir.path().join("alone.gguf");
    run(&mut calibrated(quantize(&model("tiny-llama"), "gguf", "q4_k_m", &alone), &text, "feedback"));
    assert_eq!(hashes(&alone)[0].1, hashes(&dir.path().join("a.gguf"))[0].1);
}

#[test]
fn another_text_is_another_job() {
    let dir = tempfile::tempdir().expect("dir");
    let (text, out) = (text(dir.path()), dir.path().join("m.gguf"));
    let command =
        |text: &Path| calibrated(quantize(&model("tiny-llama"), "gguf", "q4_0", &out), text, "search");
    run(&mut command(&text));
    let again = run(&mut command(&text));
    assert!(String::from_utf8_lossy(&again.stdout).contains("already there"));
    let other = dir.path().join("other.txt");
    fs::write(&other, &DEFAULT[..DEFAULT.floor_char_boundary(60_000)]).expect("text");
    let message = fails(&mut command(&other), 1);
    assert!(message.contains("--overwrite"), "{message}");
}

#[test]
fn what_can_not_be_calibrated_on_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let (text, out) = (dir.path().join("short.txt"), dir.path().join("m.gguf"));
    let command =
        |text: &Path| calibrated(quantize(&model("tiny-llama"), "gguf", "q4_0", &out), text, "search");
    fs::write(&text, "too short").expect("text");
    let message = fails(&mut command(&text), 1);
    assert!(message.contains("tokens"), "{message}");
    let message = fails(&mut command(&dir.path().join("none.txt")), 1);
    assert!(message.contains("none.txt") && message.contains("--calibrate"), "{message}");
    // Options that come with each output must come as often as outputs do.
    let message = fails(command(&text).args(["--to", "mlx"]), 2);
    assert!(message.contains("--to 2, --format 1, --out 1"), "{message}");
}

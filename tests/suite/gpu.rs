//! `--device gpu`: the same figures as on the processor. Runs on the first graphics processor, or on Mesa's software one (Debian's
//! `mesa-vulkan-drivers`), without which it fails.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::tool::{fails, halfbyte, model, quantize, run};

fn json(args: &[&str], paths: &[&Path]) -> Value {
    let mut command = halfbyte(args);
    command.args(paths).arg("--json");
    serde_json::from_slice(&run(&mut command).stdout).expect("JSON")
}

/// Figures of a model against its source on a text of the repository, on a device.
fn figures(model: &Path, source: &Path, device: &str, more: &[&str]) -> [f64; 3] {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shrink/persuasion.txt");
    let args = [&["verify", "--context", "128", "--chunks", "6", "--device", device][..], more].concat();
    let against = [Path::new("--against"), source, Path::new("--text"), &text, model];
    let told = json(&args, &against);
    let on = told["protocol"].as_str().expect("protocol").contains(", on ");
    assert_eq!(on, device != "cpu", "{}", told["protocol"]);
    ["perplexity", "reference_perplexity", "mean_kld"].map(|key| told[key].as_f64().expect(key))
}

fn relative(a: f64, b: f64) -> f64 {
    (a / b - 1.0).abs()
}

#[test]
#[ignore = "needs a graphics processor"]
fn figures_are_those_of_the_processor() {
    let dir = tempfile::tempdir().expect("dir");
    for (name, to, format) in [
        ("tiny-llama", "gguf", "q4_k_m"),
        ("tiny-llama", "mlx", "4bit-g64"),
        ("tiny-deepseek", "gguf", "iq4_xs"),
        ("tiny-deepseek", "gguf", "q8_0"),
    ] {
        let (source, out) = (
            model(name),
            dir.path().join(if to == "gguf" {
                format!("{name}-{format}.gguf")
            } else {
                format!("{name}-{format}")
            }),
        );
        run(&mut quantize(&source, to, format, &out));
        let ours = figures(&out, &source, "cpu", &[]);
        let theirs = figures(&out, &source, "gpu", &[]);
        for (figure, allowed) in [(0, 1e-5), (1, 1e-5), (2, 2e-3)] {
            let off = relative(theirs[figure], ours[figure]);
            assert!(
                off < allowed,
                "{name} in {format}: figure {figure} is off by {off:.1e}, {theirs:?}, {ours:?}"
            );
        }
        // Both models are rounded alike, which hides some of what that does, and adds some.
        let halves = figures(&out, &source, "gpu", &["--fast"]);
        for (figure, allowed) in [(0, 1e-3), (1, 1e-3), (2, 2e-2)] {
            let off = relative(halves[figure], ours[figure]);
            assert!(off < allowed, "{name} in {format}, in halves: figure {figure} is off by {off:.1e}");
        }
    }
}

#[test]
#[ignore = "needs a graphics processor"]
fn every_kernel_agrees_with_the_processor() {
    let devices = json(&["devices", "--check", "--device", "gpu"], &[]);
    let operations = devices[0]["operations"].as_array().expect("a list");
    assert!(
        operations.len() >= 20 && operations.iter().all(|operation| operation["holds"] == true),
        "{devices}"
    );
    let listed = json(&["devices"], &[]);
    assert_eq!(listed[0]["name"], devices[0]["name"]);
}

#[test]
#[ignore = "needs a graphics processor"]
fn a_device_that_is_not_there_is_an_error_and_auto_is_not() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let mut command = halfbyte(&["verify", "--context", "64", "--chunks", "2", "--device", "gpu:99"]);
    let message = fails(command.arg(model("tiny-llama")).arg("--text").arg(&text), 2);
    assert!(message.contains("there is no gpu:99") && message.contains("halfbyte devices"), "{message}");
    let mut command = halfbyte(&["verify", "--context", "64", "--chunks", "2", "--device", "gpus"]);
    let message = fails(command.arg(model("tiny-llama")).arg("--text").arg(&text), 2);
    assert!(message.contains("give auto, cpu, gpu or gpu:N"), "{message}");
}

#[test]
#[ignore = "needs a graphics processor"]
fn what_is_calibrated_on_a_device_says_so() {
    let dir = tempfile::tempdir().expect("dir");
    let (source, recipe) = (model("tiny-llama"), dir.path().join("r.toml"));
    let options = ["--calibrate", "default", "--calibration-chunks", "8", "--calibration-context", "128"];
    let file = |device: &str| -> PathBuf {
        let out = dir.path().join(format!("{device}.gguf"));
        run(quantize(&source, "gguf", "q4_0", &out).args(options).args(["--device", device]));
        out
    };
    let (ours, theirs) = (file("cpu"), file("gpu"));
    // As good, though not the same bytes: sums of another order may round a weight otherwise.
    let [ours, theirs] = [ours, theirs].map(|file| figures(&file, &source, "cpu", &[])[2]);
    assert!(relative(theirs, ours) < 0.02, "{theirs} {ours}");

    let mut plan = halfbyte(&["plan", "--max-size", "1GB", "--device", "gpu", "--recipe"]);
    run(plan.arg(&recipe).arg(&source).args(options));
    let written = fs::read_to_string(&recipe).expect("recipe");
    assert!(written.contains(", device = "), "{written}");
    let mut again = halfbyte(&["quantize", "--device", "cpu", "--recipe"]);
    again.arg(&recipe).arg("--out").arg(dir.path().join("again.gguf")).arg(&source).args(options);
    let message = fails(&mut again, 2);
    assert!(message.contains("it is calibrated by") && message.contains("device"), "{message}");
}

//! `halfbyte plan` and `halfbyte shrink`.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::tool::{fails, halfbyte, hashes, model, run};

/// `halfbyte VERB tests/fixtures/models/NAME OPTIONS`.
fn on(verb: &str, name: &str, options: &str) -> Command {
    let mut command = halfbyte(&[verb]);
    command.arg(model(name)).args(options.split_whitespace());
    command
}

fn shrink(name: &str, options: &str, out: &Path) -> Command {
    let mut command = on("shrink", name, options);
    command.arg("--out").arg(out);
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Name and type of every tensor.
fn types(tensors: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let tensors = tensors.as_array().expect("tensors").iter();
    tensors.map(|tensor| (text(&tensor["name"]), text(&tensor["format"]))).collect()
}

#[test]
fn a_ceiling_for_the_files_is_used_up_and_not_passed() {
    for (name, to, most) in [
        ("tiny-llama", "gguf", 3_000_000),
        // Here config.json, which lists the types, is part of it.
        ("tiny-llama", "mlx", 3_000_000),
        ("tiny-deepseek", "gguf", 8_000_000),
        ("tiny-deepseek", "mlx", 8_000_000),
    ] {
        let plan = json(&run(&mut on("plan", name, &format!("--to {to} --max-size {most} --json"))));
        let bytes = number(&plan["bytes"]);
        assert_eq!(plan["fits"], true);
        assert!(bytes <= most && bytes as f64 >= 0.995 * most as f64, "{name} {to}: {bytes} of {most}");
    }
}

#[test]
fn a_machine_holds_weights_cache_and_buffers() {
    let plan = json(&run(&mut on("plan", "tiny-deepseek", "--fit 575MiB --json")));
    let device = &plan["devices"][0];
    let taken = number(&device["weights"]) + number(&device["kv_cache"]) + number(&device["buffers"]["high"]);
    assert_eq!(number(&device["usable"]), 575 << 20);
    assert!((574 << 20..=575 << 20).contains(&taken), "{device}");
    // 4 layers of 256 latent and 32 rotated values for each of 8192 tokens, in 16 bits.
    assert_eq!(number(&device["kv_cache"]), 18 << 20);
    assert!(plan["bits_per_weight"].as_f64().is_some_and(|bits| (4.0..8.6).contains(&bits)), "{device}");

    let text = String::from_utf8(run(&mut on("plan", "tiny-deepseek", "--fit 575MiB")).stdout).expect("text");
    for words in ["fits 575MiB", "575 MiB usable", "KV cache 18 MiB (8192 tokens, f16)", "-ngl 99 -c 8192"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn what_is_too_large_says_by_how_much_and_what_would_do() {
    let options = "--fit 900MiB --context 131072";
    let output = on("plan", "tiny-deepseek", &format!("{options} --json")).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let short = json(&output);
    assert_eq!(short["fits"], false);
    let needed =
        number(&short["smallest_bytes"]) + number(&short["kv_cache"]) + number(&short["buffers_high"]);
    assert_eq!(number(&short["missing_bytes"]), needed - (900 << 20));
    let changes = short["would_fit_with"].as_array().expect("changes");
    assert!(changes.iter().any(|change| change["context"] == 65536), "{changes:?}");
    for change in changes {
        let run_so = format!(
            "--fit 900MiB --context {} --kv {}",
            number(&change["context"]),
            change["kv"].as_str().expect("type")
        );
        run(&mut on("plan", "tiny-deepseek", &run_so));
    }

    let output = on("plan", "tiny-deepseek", options).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("does not fit 900MiB") && text.contains("It would with --context 65536"), "{text}");

    // Buffers alone are too large: they count as well.
    let output = on("plan", "tiny-deepseek", "--fit 64MiB --json").output().expect("the binary runs");
    assert!(number(&json(&output)["missing_bytes"]) > 500 << 20);

    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let mut command = shrink("tiny-llama", "--max-size 1MB --json", &out);
    let output = command.output().expect("the binary runs");
    assert_eq!((output.status.code(), &json(&output)["fits"]), (Some(1), &Value::Bool(false)));
    assert!(!out.exists());
}

#[test]
fn a_recipe_makes_what_was_planned() {
    let dir = tempfile::tempdir().expect("dir");
    let (recipe, out) = (dir.path().join("r.toml"), dir.path().join("tiny-deepseek.gguf"));
    let mut plan = on("plan", "tiny-deepseek", "--max-size 8MB --json --recipe");
    let plan = json(&run(plan.arg(&recipe)));
    let mut command = on("quantize", "tiny-deepseek", "--recipe");
    run(command.arg(&recipe).arg("--out").arg(&out));
    assert_eq!(fs::metadata(&out).expect("file").len(), number(&plan["bytes"]));
    let inspected = json(&run(halfbyte(&["inspect", "--json"]).arg(&out)));
    assert_eq!(types(&inspected["tensors"]), types(&plan["tensors"]));
    let distinct: std::collections::BTreeSet<_> = types(&plan["tensors"]).into_values().collect();
    assert!(distinct.len() > 3, "{distinct:?}");
}

#[test]
fn wrong_use_says_what_is_right() {
    let message = fails(&mut on("plan", "tiny-llama", ""), 2);
    assert!(message.contains("--fit") && message.contains("--max-size"), "{message}");
    let message = fails(&mut on("plan", "tiny-llama", "--fit mac-studio-51"), 2);
    assert!(message.contains("did you mean mac-studio-512"), "{message}");
    let message = fails(&mut on("plan", "tiny-llama", "--max-size 3MB --kv q3_0"), 2);
    assert!(message.contains("q3_0") && message.contains("q8_0"), "{message}");
    // The card runs GGUF alone.
    let message = fails(&mut on("plan", "tiny-llama", "--fit vram-24 --to mlx"), 2);
    assert!(message.contains("--to gguf"), "{message}");
}

#[test]
fn vllm_gets_the_scheme_that_loses_least_of_those_that_fit() {
    let plan = |options: &str| json(&run(&mut on("plan", "tiny-llama", &format!("{options} --json"))));
    // Everything in 16 bits, as there is room.
    let roomy = plan("--fit vram-48 --engine vllm");
    assert_eq!((&roomy["run"]["engine"], &roomy["fits"]), (&Value::from("vllm"), &Value::Bool(true)));
    assert!(types(&roomy["tensors"]).into_values().all(|format| format == "bf16"));
    assert_eq!(number(&roomy["devices"][0]["usable"]), (48_508 << 20) * 9 / 10);
    // 513 blocks of 16 tokens, of 4 layers with 2 heads of 64.
    assert_eq!(number(&roomy["devices"][0]["kv_cache"]), 513 * 16 * 4 * 2 * 2 * 64 * 2);
    let names: Vec<&str> = roomy["named_mixes"]
        .as_array()
        .expect("ladder")
        .iter()
        .filter_map(|mix| mix["name"].as_str())
        .collect();
    assert_eq!(names, ["w4a16-g128", "w4a16-g64", "w4a16-g32"]);

    // Each scheme where the next larger takes too much; the container says the same as the engine.
    let bytes = |name: &str| {
        let dir = tempfile::tempdir().expect("dir");
        let mut quantize =
            crate::tool::quantize(&model("tiny-llama"), "compressed-tensors", name, &dir.path().join("out"));
        number(&json(&run(quantize.args(["--dry-run", "--json"])))["bytes"])
    };
    for (name, larger) in [("w4a16-g128", "w4a16-g64"), ("w4a16-g64", "w4a16-g32")] {
        let most = bytes(larger) - 1;
        assert!(bytes(name) < most);
        let tight = plan(&format!("--max-size {most} --to compressed-tensors"));
        let types = types(&tight["tensors"]);
        assert_eq!(types["model.layers.0.self_attn.q_proj.weight"], name);
        assert_eq!(types["lm_head.weight"], "bf16");
        assert!(number(&tight["bytes"]) <= most);
    }

    let text =
        String::from_utf8(run(&mut on("plan", "tiny-llama", "--fit vram-48 --engine vllm --kv q8_0")).stdout)
            .expect("text");
    for words in [
        "vllm serve tiny-llama --max-model-len 2048 --gpu-memory-utilization 0.90 --max-num-seqs 1 \
         --max-num-batched-tokens 2048 --kv-cache-dtype fp8",
        "8192 tokens, fp8",
        "--fit vram-48 --engine vllm --context 8192 --kv q8_0",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn vllm_is_refused_where_it_does_not_run() {
    let refused = |options: &str| fails(&mut on("plan", "tiny-llama", options), 2);
    let message = refused("--fit mac-48 --engine vllm");
    assert!(message.contains("mac-48 (llama.cpp/metal, mlx)") && message.contains("--to gguf"), "{message}");
    let message = refused("--fit vram-48 --engine vllm --to gguf");
    assert!(message.contains("--engine vllm loads compressed-tensors, not gguf"), "{message}");
    assert!(refused("--fit vram-48 --engine vllm --kv q4_0").contains("q8_0 for its fp8"));

    let short = "--fit 600MiB --engine vllm --context 131072 --parallel 4 --json";
    let output = on("plan", "tiny-llama", short).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let changes = json(&output)["would_fit_with"].as_array().expect("changes").clone();
    assert!(changes.iter().all(|change| change["kv"] != "q4_0"), "{changes:?}");
}

#[test]
fn what_is_made_for_vllm_is_verified_and_says_how_to_serve_it() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let options = "--fit vram-48 --engine vllm --max-size 4500000 --chunks 1 --json";
    let answer = json(&run(&mut shrink("tiny-llama", options, &out)));
    assert!(answer["verification"]["mean_kld"].as_f64().is_some_and(|nats| nats > 0.0 && nats < 0.01));
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).expect("config.json")).expect("JSON");
    assert_eq!(config["quantization_config"]["format"], "pack-quantized");
    let card = fs::read_to_string(out.join("README.md")).expect("card");
    for words in ["vllm serve . --max-model-len 2048", "`w4a16-g", "for the linears of attention and MLPs"] {
        assert!(card.contains(words), "{words} in\n{card}");
    }
    sums_hold(&out);
    run(halfbyte(&["check"]).arg(&out));
}

/// `sha256sum -c`.
fn sums_hold(folder: &Path) {
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).expect("sums");
    let listed: Vec<(String, String)> = sums
        .lines()
        .map(|line| line.split_once("  ").expect("two spaces"))
        .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
        .collect();
    let mut there = hashes(folder);
    there.retain(|(name, _)| name != "SHA256SUMS");
    assert_eq!(listed, there);
}

#[test]
fn shrink_leaves_a_folder_that_explains_itself_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("dir");
    for (to, file) in [("gguf", "tiny-llama.gguf"), ("mlx", "model.safetensors")] {
        let out = dir.path().join(to);
        let command = || shrink("tiny-llama", &format!("--to {to} --max-size 3MB --no-verify"), &out);
        run(&mut command());
        for name in [file, "README.md", "recipe.toml", "SHA256SUMS"] {
            assert!(out.join(name).is_file(), "{to}: {name}");
        }
        sums_hold(&out);
        let card = fs::read_to_string(out.join("README.md")).expect("card");
        assert!(card.contains("Not verified."), "{card}");
        let before = hashes(&out);
        let written = fs::metadata(out.join(file)).expect("file").modified().expect("time");
        run(&mut command());
        assert_eq!(hashes(&out), before);
        assert_eq!(fs::metadata(out.join(file)).expect("file").modified().expect("time"), written);
    }
}

#[test]
fn shrink_measures_what_it_wrote() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let answer = json(&run(&mut shrink("tiny-llama", "--max-size 3MB --chunks 1 --json", &out)));
    assert_eq!(answer["model"], out.join("tiny-llama.gguf").to_str().expect("UTF-8"));
    let stored: Value =
        serde_json::from_slice(&fs::read(out.join("verification.json")).expect("file")).expect("JSON");
    assert_eq!(stored["mean_kld"], answer["verification"]["mean_kld"]);
    assert!(stored["mean_kld"].as_f64().is_some_and(|nats| nats > 0.0 && nats < 0.01), "{stored}");
    assert!(fs::read_to_string(out.join("report.html")).expect("report").contains("</html>"));
    sums_hold(&out);
    let card = fs::read_to_string(out.join("README.md")).expect("card");
    assert!(
        card.starts_with("---\nbase_model: tiny-llama\n") && card.contains("\n---\n\n# tiny-llama\n"),
        "{card}"
    );
    for words in
        ["| perplexity |", "| mean KL divergence from the original, nats |", "verification.txt", "255 tokens"]
    {
        assert!(card.contains(words), "{words} in\n{card}");
    }
    // A measurement does not outlive what it was made of.
    run(&mut shrink("tiny-llama", "--max-size 3MB --no-verify", &out));
    for name in ["verification.json", "report.html", "verification.txt"] {
        assert!(!out.join(name).exists(), "{name}");
    }
    sums_hold(&out);
}

#[test]
fn a_measured_plan_predicts_its_divergence() {
    let dir = tempfile::tempdir().expect("dir");
    let (recipe, out) = (dir.path().join("r.toml"), dir.path().join("tiny.gguf"));
    // Measured in the middle of the text, verified on its beginning.
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/shrink/persuasion.txt");
    // What is predicted is the damage of rounding to nearest.
    let mut plan = on("plan", "tiny-llama", "--max-size 2700000 --json --rounding nearest --recipe");
    let plan = json(&run(plan.arg(&recipe).arg("--calibrate").arg(&text)));
    let mut quantize = on("quantize", "tiny-llama", "--rounding nearest --recipe");
    run(quantize.arg(&recipe).arg("--out").arg(&out).arg("--calibrate").arg(&text));
    let mut verify = halfbyte(&["verify", "--chunks", "2", "--fast", "--json"]);
    let verified =
        json(&run(verify.arg(&out).arg("--against").arg(model("tiny-llama")).arg("--text").arg(&text)));
    let nats = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number"));
    let ratio = nats(&verified["mean_kld"]) / nats(&plan["predicted_mean_kld"]);
    assert!((0.5..2.0).contains(&ratio), "{ratio} times as much as predicted");
    assert_eq!(plan["measured"]["tokens"], 512);

    let short = dir.path().join("short.txt");
    fs::write(&short, "It is a truth").expect("text");
    let mut plan = on("plan", "tiny-llama", "--max-size 2700000 --calibrate");
    assert!(fails(plan.arg(&short), 1).contains("longer text"));
}

#[test]
fn a_target_of_the_users_own() {
    let dir = tempfile::tempdir().expect("dir");
    let (file, out) = (dir.path().join("mine.toml"), dir.path().join("out"));
    let rack = "[[target]]\nname = \"rack\"\ndescription = \"mine\"\npage = \"4 KiB\"\nengines = [\"llama.cpp/cuda\"]\n\
                [[target.device]]\nname = \"a card\"\nkind = \"card\"\nmemory = \"4 GiB\"\n";
    fs::write(&file, rack).expect("file");
    let options = format!("--fit rack --target-file {}", file.display());
    let text = String::from_utf8(run(&mut on("plan", "tiny-llama", &options)).stdout).expect("text");
    assert!(text.contains("fits rack (mine)") && text.contains("a card, 3 GiB usable"), "{text}");
    let next = text.lines().last().expect("lines");
    assert!(next.contains("halfbyte shrink") && next.contains(&options), "{next}");
    assert!(text.contains("next smaller mix: q8_0"), "the best of those that lose something\n{text}");

    run(&mut shrink("tiny-llama", &format!("{options} --no-verify"), &out));
    let card = fs::read_to_string(out.join("README.md")).expect("card");
    assert!(card.contains("# tiny-llama for rack") && card.contains("-ngl 99 -c 8192"), "{card}");
    let recipe = fs::read_to_string(out.join("recipe.toml")).expect("recipe");
    assert!(recipe.contains("name = \"rack\"") && recipe.contains("align = 4096"), "{recipe}");
}

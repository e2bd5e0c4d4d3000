use serde_json::json;

use super::*;
use crate::{
    description::ModelFile,
    metrics::{Comparison, measure},
    outcome::TensorDamage,
};

/// The `i`-th of numbers between 0 and 1 that look random (splitmix64).
fn random(i: usize) -> f64 {
    let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn model(path: &str, container: &str, formats: &[&str], bytes: u64) -> Model {
    Model {
        path: path.to_owned(),
        container: container.to_owned(),
        architecture: "llama".to_owned(),
        formats: formats.iter().map(|&format| format.to_owned()).collect(),
        weights: 134_515_008,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / 134_515_008.0,
        files: vec![ModelFile {
            name: "model.bin".to_owned(),
            bytes: bytes + 1000,
            sha256: Some("3b8f".repeat(16)),
        }],
        provenance: Map::new(),
    }
}

/// What a 4-bit file of a model of thirty layers looks like: a log-normal divergence with a tail.
fn sample() -> Outcome {
    let tokens = 4080;
    let nll: Vec<f64> = (0..tokens).map(|i| 6.7 * random(i)).collect();
    let comparisons: Vec<Comparison> = (0..tokens)
        .map(|i| {
            // Twelve uniform numbers make a normal one.
            let normal: f64 = (0..12).map(|k| random(13 * i + 7919 * k)).sum::<f64>() - 6.0;
            let kld = (-3.7 + 1.25 * normal).exp();
            Comparison {
                reference_nll: nll[i] - 0.05 + kld.sqrt() * (random(31 * i) - 0.5),
                kld,
                same_top: random(17 * i) < 0.861,
            }
        })
        .collect();
    let mut model_4bit =
        model("models/SmolLM2-135M-Q4_K_M.gguf", "gguf", &["q4_k", "q6_k", "f32"], 105_000_000);
    model_4bit.provenance = json!({
        "general.name": "SmolLM2 135M Instruct",
        "general.quantized_by": "halfbyte 0.1.0",
        "general.file_type": 15,
        "general.base_model.0.repo_url": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M",
        "quantize.imatrix.dataset": "calibration.txt",
    })
    .as_object()
    .expect("object")
    .clone();
    let classes = [
        ("embedding", "q8_0", 8.5, 46.0),
        ("attn_q", "q4_k", 4.5, 21.5),
        ("attn_k", "q4_k", 4.5, 21.0),
        ("attn_v", "q6_k", 6.56, 33.0),
        ("attn_output", "q4_k", 4.5, 21.8),
        ("ffn_gate", "q4_k", 4.5, 22.4),
        ("ffn_up", "q4_k", 4.5, 22.1),
        ("ffn_down", "q6_k", 6.56, 33.4),
    ];
    let tensor = |layer: usize, (class, format, bits, snr): (&'static str, &str, f64, f64)| {
        let snr = snr + 3.0 * (random(layer * 7 + class.len()) - 0.6);
        let (snr_db, relative_rmse) = TensorDamage::ratios(100.0 * 10f64.powf(-snr / 10.0), 100.0);
        TensorDamage {
            name: if class == "embedding" {
                "token_embd.weight".into()
            } else {
                format!("blk.{layer}.{class}.weight")
            },
            class,
            format: format.to_owned(),
            bits_per_weight: bits,
            snr_db,
            relative_rmse,
        }
    };
    let mut tensors = vec![tensor(0, classes[0])];
    for layer in 0..30 {
        tensors.extend(classes[1..].iter().map(|&class| tensor(layer, class)));
        let (snr_db, relative_rmse) = TensorDamage::ratios(0.0, 1.0);
        tensors.push(TensorDamage {
            name: format!("blk.{layer}.attn_norm.weight"),
            class: "vector",
            format: "f32".to_owned(),
            bits_per_weight: 32.0,
            snr_db,
            relative_rmse,
        });
    }
    Outcome {
        model: model_4bit,
        reference: Some(model("models/SmolLM2-135M", "safetensors", &["bf16"], 269_030_016)),
        input: ModelFile {
            name: "persuasion.txt".to_owned(),
            bytes: 466_800,
            sha256: Some("77aa".repeat(16)),
        },
        protocol: "16 chunks of 512 tokens without BOS, positions 256 to 510 of each scored, \
                   as llama-perplexity does"
            .to_owned(),
        metrics: measure(&nll, Some(&comparisons)).expect("metrics"),
        layers: (0..30)
            .map(|layer| {
                let relative_error = 0.035 + 0.004 * layer as f64 + 0.01 * random(layer);
                LayerDamage { layer, relative_error, cosine: 1.0 - relative_error * relative_error / 2.0 }
            })
            .collect(),
        tensors,
        tokens_per_second: 431.2,
        seconds: 38.0,
        peak_rss_bytes: Some(412_000_000),
    }
}

/// The same without a reference.
fn alone() -> Outcome {
    let whole = sample();
    Outcome {
        reference: None,
        metrics: measure(&[3.1, 3.4, 3.6], None).expect("metrics"),
        layers: Vec::new(),
        tensors: Vec::new(),
        ..whole
    }
}

#[test]
fn nothing_comes_from_elsewhere_and_nothing_runs() {
    for outcome in [sample(), alone()] {
        let page = render(&outcome).expect("page").to_lowercase();
        for reference in ["src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "xlink"] {
            assert!(!page.contains(reference), "{reference}");
        }
    }
}

#[test]
fn what_files_say_is_escaped() {
    let mut outcome = sample();
    let evil = "<img src=x onerror=alert(1)>\"'&";
    outcome.model.path = evil.to_owned();
    outcome.model.architecture = evil.to_owned();
    outcome.model.formats = vec![evil.to_owned()];
    outcome.model.files[0].name = evil.to_owned();
    outcome.model.files[0].sha256 = Some(evil.to_owned());
    outcome.model.provenance.insert(evil.to_owned(), json!([evil]));
    outcome.protocol = evil.to_owned();
    outcome.input.name = evil.to_owned();
    outcome.tensors[0].format = evil.to_owned();
    outcome.tensors[5].name = evil.to_owned();
    let page = render(&outcome).expect("page");
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;"));
    assert!(!page.contains("<img"));
    // No quote from outside ends an attribute.
    assert!(!page.contains("onerror=alert(1)>\""));
}

#[test]
fn the_verdict_comes_first_and_every_part_is_there() {
    let page = render(&sample()).expect("page");
    let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("`{part}` is missing"));
    let parts = [
        "Noticeably changed</p>",
        "Mean KL divergence</div>",
        "How far single tokens diverge",
        "Where along the layers it happens",
        "Which weights carry it",
        "77aa77aa",
        "as llama-perplexity does",
        "3b8f3b8f",
        "What the verdict rests on",
    ];
    let places: Vec<usize> = parts.map(at).into();
    assert!(places.is_sorted(), "{places:?}");
    assert!(page.contains("quantized_by</dt>") && page.contains("halfbyte 0.1.0"));
    assert!(!page.contains("NaN") && !page.contains("inf%"));
}

#[test]
fn without_a_reference_there_is_perplexity_alone() {
    let page = render(&alone()).expect("page");
    assert!(page.contains("Perplexity 28.98") && page.contains("--against"));
    for absent in ["KL divergence", "<svg", "Reference</h3>"] {
        assert!(!page.contains(absent), "{absent}");
    }
}

#[test]
fn a_model_against_itself_is_shown() {
    let nll = [1.0, 2.0, 3.0];
    let comparisons = nll.map(|nll| Comparison { reference_nll: nll, kld: 0.0, same_top: true });
    let mut outcome = sample();
    outcome.metrics = measure(&nll, Some(&comparisons)).expect("metrics");
    outcome.tensors.retain(|tensor| tensor.snr_db.is_none());
    outcome.layers = (0..2).map(|layer| LayerDamage { layer, relative_error: 0.0, cosine: 1.0 }).collect();
    let page = render(&outcome).expect("page");
    assert!(page.contains("Practically lossless") && page.contains("the 3 tokens below"));
    assert!(!page.contains("NaN") && !page.contains("inf%"));
}

#[test]
fn the_file_appears_whole_under_its_name() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("report.html");
    fs::write(&path, "older").expect("write");
    write(&path, &sample()).expect("report");
    assert!(fs::read_to_string(&path).expect("file").ends_with("</html>"));
    assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
    let error = write(&dir.path().join("nowhere/report.html"), &sample()).expect_err("no folder");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

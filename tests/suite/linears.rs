//! Folders of GPTQ and AWQ, and compressed-tensors with zero points and in MXFP4: made as a user does, and taken apart by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use formats::TensorSource;
use formats::safetensors::Safetensors;
use quantize::job::Job;
use quantize::plan::{Container, Options};
use quantize::progress::Silent;
use quantize::run::{Outcome, RunOptions, run as run_job};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::tool::{fails, halfbyte, model, quantize, run};

/// The tensors of a folder: shape and bytes by name.
type Tensors = BTreeMap<String, (Vec<u64>, Vec<u8>)>;

fn tensors(folder: &Path) -> Tensors {
    let source = Safetensors::open_folder(folder).expect("a folder");
    let one = |meta: &formats::TensorMeta| {
        let mut bytes = vec![0; meta.len as usize];
        source.read_at(source.find(&meta.name).expect("it is listed"), 0, &mut bytes).expect("bytes");
        (meta.name.clone(), (meta.shape.clone(), bytes))
    };
    source.tensors().iter().map(one).collect()
}

fn words(tensors: &Tensors, name: &str) -> (usize, Vec<u32>) {
    let (shape, bytes) = &tensors[name];
    (shape[shape.len() - 1] as usize, bytes.as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect())
}

fn halves(tensors: &Tensors, name: &str) -> (usize, Vec<u16>) {
    let (shape, bytes) = &tensors[name];
    (shape[1] as usize, bytes.as_chunks().0.iter().map(|w| u16::from_le_bytes(*w)).collect())
}

/// A linear taken apart: codes [N, K], scales [N, K/g] and zero points [N, K/g].
#[derive(Debug, PartialEq)]
struct Linear {
    codes: Vec<u32>,
    scales: Vec<u16>,
    zeros: Vec<u32>,
}

/// Values [rows, columns] by their place.
fn matrix<T>(rows: usize, columns: usize, at: impl Fn(usize, usize) -> T) -> Vec<T> {
    let at = &at;
    (0..rows).flat_map(move |row| (0..columns).map(move |column| at(row, column))).collect()
}

fn nibble(word: u32, place: usize) -> u32 {
    word >> (4 * place) & 15
}

fn of_compressed(tensors: &Tensors, module: &str) -> Linear {
    let (per_row, packed) = words(tensors, &format!("{module}.weight_packed"));
    let (groups, scales) = halves(tensors, &format!("{module}.weight_scale"));
    let rows = scales.len() / groups;
    let codes = matrix(rows, 8 * per_row, |n, k| nibble(packed[n * per_row + k / 8], k % 8));
    let zero_point = format!("{module}.weight_zero_point");
    let zeros = if tensors.contains_key(&zero_point) {
        let (_, zeros) = words(tensors, &zero_point);
        matrix(rows, groups, |n, group| nibble(zeros[n / 8 * groups + group], n % 8))
    } else {
        vec![8; rows * groups]
    };
    Linear { codes, scales, zeros }
}

/// `less` is what stored zero points are less than they should be.
fn of_gptq(tensors: &Tensors, module: &str, less: u32) -> Linear {
    let (rows, packed) = words(tensors, &format!("{module}.qweight"));
    let (_, scales) = halves(tensors, &format!("{module}.scales"));
    let (per_group, zeros) = words(tensors, &format!("{module}.qzeros"));
    let (columns, index) = words(tensors, &format!("{module}.g_idx"));
    let groups = scales.len() / rows;
    assert!((0..columns).all(|k| index[k] as usize == k / (columns / groups)), "{index:?}");
    Linear {
        codes: matrix(rows, columns, |n, k| nibble(packed[k / 8 * rows + n], k % 8)),
        scales: matrix(rows, groups, |n, group| scales[group * rows + n]),
        zeros: matrix(rows, groups, |n, group| nibble(zeros[group * per_group + n / 8], n % 8) + less),
    }
}

fn of_awq(tensors: &Tensors, module: &str) -> Linear {
    /// Where in a word each of eight rows is.
    const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let (per_row, packed) = words(tensors, &format!("{module}.qweight"));
    let (rows, scales) = halves(tensors, &format!("{module}.scales"));
    let (_, zeros) = words(tensors, &format!("{module}.qzeros"));
    let (columns, groups) = (packed.len() / per_row, scales.len() / rows);
    let at = |words: &[u32], n: usize, k: usize| nibble(words[k * per_row + n / 8], PLACES[n % 8]);
    Linear {
        codes: matrix(rows, columns, |n, k| at(&packed, n, k)),
        scales: matrix(rows, groups, |n, group| scales[group * rows + n]),
        zeros: matrix(rows, groups, |n, group| at(&zeros, n, group)),
    }
}

fn config(folder: &Path) -> Value {
    let text = fs::read(folder.join("config.json")).expect("config.json");
    serde_json::from_slice(&text).expect("JSON")
}

const MODULES: [&str; 3] =
    ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj", "model.layers.3.mlp.down_proj"];

/// Codes, scales and zero points are the same numbers in each container: in tiles whose rows share words, and calibrated.
#[test]
fn the_same_weights_in_every_container() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let outputs = [
        ("compressed-tensors", "w4a16-g64-f16", "ct"),
        ("gptq", "w4a16-g64", "gptq"),
        ("gptq-v2", "w4a16-g64", "gptq-v2"),
        ("compressed-tensors", "w4a16-asym-g128-f16", "asym"),
        ("awq", "w4a16-asym-g128", "awq"),
    ];
    for more in [&["--memory", "1MiB"][..], &["--calibrate", "default", "--calibration-chunks", "2"]] {
        let mut command = halfbyte(&["quantize", "--overwrite"]);
        command.arg(model("tiny-llama")).args(more);
        for (to, format, out) in outputs {
            command.args(["--to", to, "--format", format, "--out"]).arg(path(out));
        }
        run(&mut command);
        let all = outputs.map(|(_, _, out)| tensors(&path(out)));
        for module in MODULES {
            let [ct, v1, v2, asym, awq] = &all;
            let symmetric = of_compressed(ct, module);
            assert!(of_gptq(v1, module, 1) == symmetric, "{module}");
            assert!(of_gptq(v2, module, 0) == symmetric, "{module}");
            let asymmetric = of_compressed(asym, module);
            assert!(of_awq(awq, module) == asymmetric, "{module}");
            assert!(asymmetric.zeros.iter().any(|zero| *zero != 8));
            assert_eq!(v1["model.norm.weight"], awq["model.norm.weight"]);
        }
    }
    assert_eq!(config(&path("gptq"))["quantization_config"]["checkpoint_format"], "gptq");
    assert_eq!(
        config(&path("awq"))["quantization_config"]["modules_to_not_convert"],
        serde_json::json!(["lm_head"])
    );
}

/// What each four-bit float is, in halves.
const LEVELS: [i32; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

#[test]
fn mxfp4_is_near_the_source() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("mxfp4");
    run(&mut quantize(&model("tiny-llama"), "compressed-tensors", "mxfp4", &out));
    let (written, source) = (tensors(&out), tensors(&model("tiny-llama")));
    for module in MODULES {
        let (_, codes) = &written[&format!("{module}.weight_packed")];
        let (_, scales) = &written[&format!("{module}.weight_scale")];
        let (shape, weights) = &source[&format!("{module}.weight")];
        assert_eq!(codes.len() as u64 * 2, shape.iter().product::<u64>());
        let (mut error, mut energy) = (0.0, 0.0);
        for (i, weight) in weights.as_chunks().0.iter().enumerate() {
            let code = nibble(codes[i / 2].into(), i % 2) as usize;
            let level = f64::from(LEVELS[code & 7]) / if code < 8 { 2.0 } else { -2.0 };
            let value = level * 2f64.powi(i32::from(scales[i / 32]) - 127);
            let due = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*weight)) << 16));
            error += (value - due).powi(2);
            energy += due.powi(2);
        }
        assert!(error > 0.0 && error < 0.02 * energy, "{module}: {error}, {energy}");
    }
    assert_eq!(config(&out)["quantization_config"]["format"], "mxfp4-pack-quantized");
}

/// What the journal, a resumed run and a published manifest go by.
#[test]
fn what_is_noted_of_a_tensor_is_what_lies_in_the_file() {
    let dir = tempfile::tempdir().expect("dir");
    for (container, format) in [
        (Container::Gptq, "w4a16-g32"),
        (Container::Awq, "w4a16-asym-g64"),
        (Container::CompressedTensors, "w4a16-asym-g32"),
    ] {
        let out = dir.path().join(container.name());
        let job =
            Job::plan(&model("tiny-llama").into(), &out, &Options::new(container, format)).expect("plan");
        let options = RunOptions { threads: 2, memory: 1 << 20, overwrite: false };
        let never = AtomicBool::new(false);
        let Outcome::Written { entries, .. } =
            run_job(&job, options, None, &Silent, &never).expect("written")
        else {
            panic!("it was there already")
        };
        for entry in &entries {
            for plane in &entry.planes {
                let file = fs::read(out.join(&plane.file)).expect("file");
                let range = plane.offset as usize..(plane.offset + plane.len) as usize;
                let hash: String = Sha256::digest(&file[range]).iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(hash, plane.sha256, "{} in {}", entry.tensor, container.name());
            }
        }
        assert_eq!(job.recipe.bytes, job.tensors_bytes());
        let shards = job.layout.files.iter().filter(|file| file.name.ends_with(".safetensors"));
        let data: u64 = shards.map(|file| file.len - file.header.len() as u64).sum();
        assert_eq!(data, job.tensors_bytes());
    }
}

#[test]
fn linears_that_do_not_fit_are_left_alone_and_other_wishes_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    let out = path("left");
    run(quantize(&model("tiny-llama"), "gptq", "w4a16-g128", &out).args(["--tensor", "o_proj=bf16"]));
    let left = config(&out)["quantization_config"]["dynamic"].clone();
    assert!(left.get("-:^model\\.layers\\.0\\.self_attn\\.o_proj$").is_some(), "{left}");
    assert!(tensors(&out).contains_key("model.layers.0.self_attn.o_proj.weight"));

    let mut two = quantize(&model("tiny-llama"), "awq", "w4a16-asym-g128", &path("two"));
    let message = fails(two.args(["--tensor", "down_proj=w4a16-asym-g32"]), 1);
    assert!(message.contains("AWQ") && message.contains("w4a16-asym-g32"), "{message}");
    let message = fails(&mut quantize(&model("tiny-llama"), "gptq", "w4a16-asym-g128", &path("asym")), 2);
    assert!(message.contains("known are") && message.contains("w4a16-g32"), "{message}");
    let mut command = quantize(&model("tiny-deepseek"), "awq", "w4a16-asym-g32", &path("experts"));
    let output = run(command.arg("--dry-run"));
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warning.contains("experts") && warning.contains("--to compressed-tensors"), "{warning}");
}

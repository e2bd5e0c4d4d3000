//! `halfbyte quantize --imatrix`: what the importance matrix changes, and what it does not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use formats::{Checkpoint, Dtype, TensorId, gguf::Gguf};
use kernels::Isa;
use quantize::calibrate::imatrix::{Channels, Importance};
use quantize::job::Job;
use quantize::plan::{Container, Options};

use crate::tool::{copy_of, fails, halfbyte, hashes, model, quantize, run};

/// Every eighth channel of every linear counts a hundred times; `seed` decides which. The embedding has no entry.
fn write_imatrix(path: &Path, gguf: &Path, seed: usize) {
    let file = Checkpoint::open(&gguf.into()).expect("model");
    let linears = file.source().tensors().iter().filter(|tensor| {
        tensor.shape.len() > 1 && !tensor.name.starts_with("token_embd") && !tensor.name.contains("gate_inp")
    });
    let channels = linears.map(|tensor| {
        let columns = tensor.columns() as usize;
        let experts = if tensor.shape.len() == 3 { tensor.shape[0] as usize } else { 1 };
        let of = |at: usize| if (at + at / columns + seed).is_multiple_of(8) { 6400.0 } else { 64.0 };
        let sums = (0..experts * columns).map(of).collect();
        (tensor.name.clone(), Channels { columns, sums, counts: vec![64.0; experts] })
    });
    let importance = Importance { tensors: channels.collect(), datasets: vec!["some.txt".into()], chunks: 3 };
    importance.write(path, 512).expect("written");
}

fn with(mut command: Command, imatrix: &Path) -> Command {
    command.arg("--imatrix").arg(imatrix);
    command
}

/// A model in F16 and an importance matrix for it.
fn prepared(name: &str, dir: &Path) -> (PathBuf, PathBuf) {
    let (gguf, imatrix) = (dir.join("f16.gguf"), dir.join("m.imatrix"));
    run(&mut quantize(&model(name), "gguf", "f16", &gguf));
    write_imatrix(&imatrix, &gguf, 0);
    (gguf, imatrix)
}

/// A tensor of a GGUF file in F32.
fn values(path: &Path, name: &str) -> Vec<f32> {
    let file = Checkpoint::open(&path.into()).expect("model");
    let source = file.source();
    let id: TensorId = source.find(name).expect("tensor");
    let meta = source.meta(id);
    let Dtype::Block(format) = meta.dtype else { panic!("{}", meta.dtype) };
    let mut bytes = vec![0; meta.len as usize];
    source.read_at(id, 0, &mut bytes).expect("bytes");
    let mut values = vec![0.0; meta.elements() as usize];
    (format.decode)(format, Isa::detect(), &[&bytes], &mut values);
    values
}

/// Sums of squared differences over the channels that count a hundred times, and over the others.
fn errors(path: &Path, reference: &Path, name: &str, importance: &Importance) -> (f64, f64) {
    let (is, due) = (values(path, name), values(reference, name));
    let (mut heavy, mut light) = (0.0, 0.0);
    let channels = &importance.tensors[name];
    let rows = is.len() / channels.sums.len();
    for (at, (is, due)) in is.iter().zip(&due).enumerate() {
        let (row, column) = (at / channels.columns, at % channels.columns);
        let sum = channels.sums[row / rows * channels.columns + column];
        *if sum > 64.0 { &mut heavy } else { &mut light } += f64::from(is - due).powi(2);
    }
    (heavy, light)
}

#[test]
fn channels_that_count_more_lose_less() {
    for (name, tensors) in [
        ("tiny-llama", &["blk.1.ffn_down.weight", "blk.0.attn_q.weight"][..]),
        (
            "tiny-deepseek",
            &["blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_k_b.weight"],
        ),
    ] {
        let dir = tempfile::tempdir().expect("dir");
        let (f16, imatrix) = prepared(name, dir.path());
        let (plain, weighted) = (dir.path().join("plain.gguf"), dir.path().join("weighted.gguf"));
        let wish = ["--tensor", "attn_k_b=q4_0"];
        run(quantize(&model(name), "gguf", "q4_1", &plain).args(if name == "tiny-llama" {
            &[][..]
        } else {
            &wish
        }));
        let mut command = with(quantize(&model(name), "gguf", "q4_1", &weighted), &imatrix);
        let said = run(command.args(if name == "tiny-llama" { &[][..] } else { &wish }));
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("1 of ") && said.contains("token_embd.weight"), "{said}");

        let importance = Importance::read(&imatrix).expect("imatrix");
        for tensor in tensors {
            let (heavy, light) = errors(&weighted, &f16, tensor, &importance);
            let (before, light_before) = errors(&plain, &f16, tensor, &importance);
            assert!(heavy < 0.8 * before, "{tensor}: {heavy} after {before}");
            assert!(100.0 * heavy + light < 0.9 * (100.0 * before + light_before), "{tensor}");
        }
        assert!(values(&weighted, "token_embd.weight") == values(&plain, "token_embd.weight"));
    }
}

#[test]
fn the_same_bytes_again_and_llama_cpps_keys() {
    let dir = tempfile::tempdir().expect("dir");
    let (_, imatrix) = prepared("tiny-llama", dir.path());
    for (to, format) in [("gguf", "q4_k_m"), ("mlx", "4bit-g64")] {
        let out = |name: &str| {
            dir.path().join(format!("{name}-{to}")).with_extension(if to == "gguf" { "gguf" } else { "" })
        };
        run(with(quantize(&model("tiny-llama"), to, format, &out("a")), &imatrix).args(["--threads", "1"]));
        run(with(quantize(&model("tiny-llama"), to, format, &out("b")), &imatrix).args(["--threads", "3"]));
        run(&mut quantize(&model("tiny-llama"), to, format, &out("plain")));
        let bytes = |name: &str| hashes(&out(name)).into_iter().map(|(_, hash)| hash).collect::<Vec<_>>();
        assert_eq!(bytes("a"), bytes("b"));
        assert_ne!(bytes("a"), bytes("plain"));
    }
    let file = Gguf::open(&dir.path().join("a-gguf.gguf")).expect("GGUF");
    let entries = Importance::read(&imatrix).expect("imatrix").tensors.len() as u32;
    for (key, value) in [
        ("quantize.imatrix.file", "m.imatrix".into()),
        ("quantize.imatrix.dataset", "some.txt".into()),
        ("quantize.imatrix.entries_count", entries.into()),
        ("quantize.imatrix.chunks_count", 3u32.into()),
    ] {
        assert_eq!(file.metadata().get(key), Some(&value), "{key}");
    }
}

#[test]
fn another_imatrix_is_another_job() {
    let dir = tempfile::tempdir().expect("dir");
    let (f16, imatrix) = prepared("tiny-llama", dir.path());
    let source = copy_of("tiny-llama", dir.path());
    let out = dir.path().join("m.gguf");
    run(&mut with(quantize(&source, "gguf", "q4_0", &out), &imatrix));
    let again = run(&mut with(quantize(&source, "gguf", "q4_0", &out), &imatrix));
    assert!(String::from_utf8_lossy(&again.stdout).contains("already there"));
    write_imatrix(&imatrix, &f16, 1);
    let message = fails(&mut with(quantize(&source, "gguf", "q4_0", &out), &imatrix), 1);
    assert!(message.contains("--overwrite"), "{message}");
}

#[test]
fn an_imatrix_of_another_model_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let (_, imatrix) = prepared("tiny-llama", dir.path());
    let mut importance = Importance::read(&imatrix).expect("imatrix");
    let channels = importance.tensors.get_mut("blk.0.attn_q.weight").expect("entry");
    let columns = channels.columns;
    (channels.columns, channels.sums) = (columns + 1, vec![1.0; columns + 1]);
    importance.write(&imatrix, 512).expect("written");
    let out = dir.path().join("m.gguf");
    let message = fails(&mut with(quantize(&model("tiny-llama"), "gguf", "q4_0", &out), &imatrix), 1);
    for part in ["m.imatrix", "blk.0.attn_q.weight", &columns.to_string(), &(columns + 1).to_string()] {
        assert!(message.contains(part), "{part} in {message}");
    }
    fs::write(&imatrix, "nothing").expect("written");
    let message = fails(&mut with(quantize(&model("tiny-llama"), "gguf", "q4_0", &out), &imatrix), 1);
    assert!(message.contains("m.imatrix"), "{message}");
    assert!(!out.exists());
}

#[test]
fn a_calibrated_run_writes_what_its_linears_got() {
    let dir = tempfile::tempdir().expect("dir");
    for name in ["tiny-llama", "tiny-deepseek"] {
        let out = |file: &str| dir.path().join(format!("{name}-{file}"));
        let calibrated = |model: &Path, to: &Path, threads: &str| {
            let mut command = quantize(&self::model(name), "gguf", "q8_0", model);
            command.args([
                "--calibrate",
                "default",
                "--calibration-context",
                "64",
                "--calibration-chunks",
                "3",
            ]);
            command.args(["--rounding", "search", "--threads", threads, "--imatrix-out"]).arg(to);
            command
        };
        run(&mut calibrated(&out("a.gguf"), &out("a.imatrix"), "1"));
        run(&mut calibrated(&out("b.gguf"), &out("b.imatrix"), "3"));
        assert!(fs::read(out("a.imatrix")).expect("a") == fs::read(out("b.imatrix")).expect("b"));

        let importance = Importance::read(&out("a.imatrix")).expect("imatrix");
        assert_eq!((importance.chunks, &importance.datasets[..]), (3, &["default".to_owned()][..]));
        let counts = |tensor: &str| importance.tensors[tensor].counts.clone();
        assert_eq!(counts("blk.0.attn_output.weight"), [3.0 * 64.0]);
        if name == "tiny-llama" {
            let sums = |of: &str| &importance.tensors[&format!("blk.1.{of}.weight")].sums;
            assert_eq!(sums("attn_q"), sums("attn_k"));
            assert_ne!(sums("attn_q"), sums("ffn_up"));
        } else {
            let experts = counts("blk.1.ffn_down_exps.weight");
            assert_eq!(experts, counts("blk.1.ffn_gate_exps.weight"));
            let chosen: f32 = experts.iter().sum();
            assert!(experts.len() > 1 && chosen % (3.0 * 64.0) == 0.0 && chosen > 0.0, "{experts:?}");
        }
        let mut again = with(quantize(&model(name), "gguf", "q4_0", &out("c.gguf")), &out("a.imatrix"));
        run(&mut again);
        let message = fails(&mut calibrated(&out("a.gguf"), &out("c.imatrix"), "1"), 1);
        assert!(message.contains("--overwrite"), "{message}");
    }
}

#[test]
fn a_recipe_asks_for_its_imatrix() {
    let dir = tempfile::tempdir().expect("dir");
    let (f16, imatrix) = prepared("tiny-llama", dir.path());
    let (recipe, out) = (dir.path().join("r.toml"), dir.path().join("m.gguf"));
    run(&mut with(quantize(&model("tiny-llama"), "gguf", "q4_0", &out), &imatrix));
    let options = Options { imatrix: Some(imatrix.clone()), ..Options::new(Container::Gguf, "q4_0") };
    let job = Job::plan(&model("tiny-llama").into(), &out, &options).expect("plan");
    fs::write(&recipe, job.recipe.to_toml()).expect("recipe");

    let by_recipe = || {
        let mut command = halfbyte(&["quantize"]);
        command.arg(model("tiny-llama")).arg("--recipe").arg(&recipe).arg("--out").arg(&out);
        command
    };
    let again = run(&mut with(by_recipe(), &imatrix));
    assert!(String::from_utf8_lossy(&again.stdout).contains("already there"));
    let message = fails(&mut by_recipe(), 2);
    assert!(message.contains("r.toml, line ") && message.contains("give it with --imatrix"), "{message}");
    write_imatrix(&imatrix, &f16, 1);
    let message = fails(&mut with(by_recipe(), &imatrix), 2);
    assert!(message.contains("m.imatrix is another file"), "{message}");
}

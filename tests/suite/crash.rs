//! Nothing is lost when a run is killed, and no final name ever holds a partial file.

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::tool::{hashes, model, quantize, run};

/// Kills the same command at twenty moments spread over an unbroken run's time, then lets it finish.
fn survives_being_killed(source: &str, to: &str, format: &str, more: &[&str], out_name: &str) {
    let dir = tempfile::tempdir().expect("dir");
    let whole = dir.path().join("whole").join(out_name);
    fs::create_dir_all(whole.parent().expect("parent")).expect("folder");
    let start = Instant::now();
    run(quantize(&model(source), to, format, &whole).args(more));
    let unbroken = start.elapsed();
    let expected =
        hashes(whole.parent().expect("parent").join(if to == "gguf" { "" } else { out_name }).as_path());

    let folder = dir.path().join("killed");
    fs::create_dir_all(&folder).expect("folder");
    let out = folder.join(out_name);
    let final_dir = if to == "gguf" { folder.clone() } else { out.clone() };
    let mut state = 20u64;
    for _ in 0..20 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let part = (state >> 33) as f64 / (1u64 << 31) as f64;
        let mut child = quantize(&model(source), to, format, &out)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(Duration::from_secs_f64(unbroken.as_secs_f64() * 1.1 * part));
        child.kill().expect("kill");
        child.wait().expect("wait");
        only_whole_files(&final_dir, &expected);
    }
    run(quantize(&model(source), to, format, &out).args(more));
    assert_eq!(hashes(&final_dir), expected, "{source} {to} {format}");
    assert!(!Path::new(&format!("{}.partial", out.display())).exists());
}

/// Every file that is there under a final name is the one of the unbroken run.
fn only_whole_files(dir: &Path, expected: &[(String, String)]) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        if path.is_file() && expected.iter().any(|(expected, _)| *expected == name) {
            assert!(expected.contains(&hashes(&path)[0]), "{name} is partial");
        }
    }
}

#[test]
fn a_gguf_file_survives_twenty_kills() {
    survives_being_killed("tiny-deepseek", "gguf", "q4_k_m", &[], "deepseek.gguf");
}

#[test]
fn a_split_gguf_survives_twenty_kills() {
    survives_being_killed("tiny-llama", "gguf", "q8_0", &["--shard-size", "1MB"], "llama.gguf");
}

#[test]
fn an_mlx_folder_survives_twenty_kills() {
    survives_being_killed("tiny-deepseek", "mlx", "4bit-g64", &[], "deepseek-mlx");
}

#[test]
fn a_folder_of_compressed_tensors_survives_twenty_kills() {
    survives_being_killed("tiny-llama", "compressed-tensors", "w4a16-g128", &[], "llama-w4a16");
}

#[test]
fn a_gptq_folder_survives_twenty_kills() {
    survives_being_killed("tiny-llama", "gptq", "w4a16-g128", &["--shard-size", "1MB"], "llama-gptq");
}

#[test]
fn a_calibrated_awq_folder_survives_twenty_kills() {
    let calibration = ["--calibrate", "default", "--calibration-chunks", "2"];
    survives_being_killed("tiny-llama", "awq", "w4a16-asym-g128", &calibration, "llama-awq");
}

#[test]
fn a_calibrated_file_survives_twenty_kills() {
    let dir = tempfile::tempdir().expect("dir");
    let text = dir.path().join("calibration.txt");
    fs::write(&text, quantize::calibrate::text::DEFAULT).expect("text");
    let calibration = ["--calibrate", text.to_str().expect("UTF-8"), "--calibration-chunks", "4"];
    survives_being_killed("tiny-deepseek", "gguf", "q4_k_m", &calibration, "deepseek.gguf");
}

#[cfg(unix)]
#[test]
fn ctrl_c_exits_with_130_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("deepseek.gguf");
    // The moment is a matter of luck: a run that is done before the signal is begun anew.
    for attempt in 0..50 {
        let child = quantize(&model("tiny-deepseek"), "gguf", "q4_k_m", &out)
            .args(["--threads", "1"])
            .env("HALFBYTE_ISA", "scalar")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        std::thread::sleep(Duration::from_millis(20 + 10 * attempt));
        let _ = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        let output = child.wait_with_output().expect("wait");
        if output.status.code() == Some(130) {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(message.contains("same command again"), "{message}");
            assert!(!out.exists());
            run(&mut quantize(&model("tiny-deepseek"), "gguf", "q4_k_m", &out));
            return;
        }
        let _ = fs::remove_file(&out);
        let _ = fs::remove_dir_all(dir.path().join("deepseek.gguf.partial"));
    }
    panic!("no run was interrupted in fifty attempts");
}

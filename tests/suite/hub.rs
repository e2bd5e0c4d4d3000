//! Repositories of a mock Hub as sources: fetched, or passed through a bounded part of the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use mock_hub::{Fault, Host, Kind, MockHub, Options, RepoSpec};
use serde_json::Value;

use crate::tool::{fails, halfbyte, hashes, model, on_hub, run};

const REPO: &str = "owner/tiny-deepseek";
/// Two of the three shards: a weight and its scales lie in different ones.
const DISK: &str = "14MB";

struct Place {
    mock: MockHub,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let mock = MockHub::start(Options::default()).expect("a mock");
        mock.add_repo(RepoSpec::new(REPO).folder(&model("tiny-deepseek")).expect("model"));
        Place { mock, dir: tempfile::tempdir().expect("dir") }
    }

    /// A command of a user whose cache is called `home`.
    fn command(&self, home: &str, arguments: &[&str]) -> Command {
        let mut command = halfbyte(arguments);
        on_hub(&mut command, &self.mock.endpoint(), &self.out(home));
        command
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn quantize(&self, home: &str, to: &str, format: &str, out: &str, options: &[&str]) -> Command {
        let mut command = self.command(home, &["quantize", REPO, "--to", to, "--format", format]);
        command.args(options).arg("--out").arg(self.out(out));
        command
    }
}

/// Files of weights below a folder.
fn weights(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.expect("entry").path())
        .map(|path| if path.is_dir() { weights(&path) } else { usize::from(is_large(&path)) })
        .sum()
}

fn is_large(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > 1 << 20)
}

#[test]
fn what_passes_through_becomes_what_was_fetched_becomes() {
    let place = Place::new();
    for (to, format, name) in [("gguf", "q4_k_m", "m.gguf"), ("mlx", "4bit-g64", "m-mlx")] {
        let fetched = format!("fetched/{name}");
        fs::create_dir_all(place.out("fetched")).expect("folder");
        fs::create_dir_all(place.out("passed")).expect("folder");
        run(&mut place.quantize("a", to, format, &fetched, &[]));
        run(&mut place.quantize("b", to, format, &format!("passed/{name}"), &["--disk", DISK]));
        assert_eq!(hashes(&place.out(&fetched)), hashes(&place.out(&format!("passed/{name}"))), "{to}");
    }
    assert_eq!(weights(&place.out("a/hub")), 3);
    assert_eq!(weights(&place.out("b")), 0, "nothing of the weights stays");
    assert!(place.mock.stats().leaked.is_empty());
}

#[test]
fn a_calibrated_run_passes_through_too() {
    let place = Place::new();
    let options = ["--calibrate", "default", "--calibration-chunks", "2", "--calibration-context", "128"];
    run(&mut place.quantize("a", "gguf", "q4_0", "a.gguf", &options));
    let passed: Vec<&str> = options.into_iter().chain(["--disk", DISK]).collect();
    run(&mut place.quantize("b", "gguf", "q4_0", "b.gguf", &passed));
    assert_eq!(hashes(&place.out("a.gguf"))[0].1, hashes(&place.out("b.gguf"))[0].1);
    assert_eq!(weights(&place.out("b")), 0);
}

#[test]
fn headers_are_enough_to_plan() {
    let place = Place::new();
    for arguments in [
        vec!["plan", REPO, "--max-size", "8MB"],
        vec!["inspect", REPO],
        vec!["quantize", REPO, "--format", "q8_0", "--out", "x.gguf", "--dry-run"],
        vec!["fetch", REPO, "--dry-run"],
    ] {
        run(&mut place.command("a", &arguments));
    }
    assert_eq!(weights(&place.out("a")), 0);
    assert!(!place.out("a/halfbyte").exists());
    let json = run(&mut place.command("a", &["plan", REPO, "--max-size", "8MB", "--json"])).stdout;
    assert_eq!(serde_json::from_slice::<Value>(&json).expect("JSON")["fits"], true);
}

#[test]
fn what_the_cache_lacks_is_not_said_of_the_repository() {
    let place = Place::new();
    run(&mut place.command("a", &["inspect", REPO]));
    let mut offline = place.quantize("a", "gguf", "q8_0", "m.gguf", &[]);
    let said = fails(offline.env("HF_HUB_OFFLINE", "1"), 1);
    assert!(said.contains("HF_HUB_OFFLINE is set"), "{said}");
}

#[test]
fn what_was_fetched_is_used_without_the_network() {
    let place = Place::new();
    let fetch = |home: &str| place.command(home, &["fetch", REPO]);
    let said = fails(fetch("a").env("HF_HUB_OFFLINE", "1"), 1);
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
    let path = String::from_utf8(run(&mut fetch("a")).stdout).expect("a path");
    assert!(Path::new(path.trim()).join("config.json").is_file());
    let before = place.mock.stats().requests;
    let offline = run(fetch("a").env("HF_HUB_OFFLINE", "1"));
    assert_eq!(String::from_utf8(offline.stdout).expect("a path"), path);
    run(place.quantize("a", "gguf", "q8_0", "m.gguf", &[]).env("HF_HUB_OFFLINE", "1"));
    assert_eq!(place.mock.stats().requests, before);
}

#[test]
fn too_small_a_disk_is_refused_with_what_would_do() {
    let place = Place::new();
    let said = fails(&mut place.quantize("a", "gguf", "q8_0", "m.gguf", &["--disk", "8MB"]), 1);
    assert!(said.contains("give at least"), "{said}");
    let least: String = said
        .split("give at least ")
        .nth(1)
        .expect("a number")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    run(&mut place.quantize("a", "gguf", "q8_0", "m.gguf", &["--disk", &least]));
}

#[test]
fn ctrl_c_ends_a_pass_that_waits_for_the_network() {
    let place = Place::new();
    let slow = Kind::Trickle { bytes_per_second: 400_000 };
    place.mock.fault(Fault::new(".safetensors", slow).at(Host::Cdn).skip(3).always());
    // Room for all of it: nothing has to come twice.
    let mut command = place.quantize("a", "gguf", "q4_k_m", "m.gguf", &["--disk", "30MB"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    while place.mock.stats().bytes_of(".safetensors") < 1_000_000 {
        thread::sleep(Duration::from_millis(20));
    }
    run(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("same command"), "{said}");
    place.mock.clear_faults();
    place.mock.reset_stats();
    run(&mut place.quantize("a", "gguf", "q4_k_m", "m.gguf", &["--disk", "30MB"]));
    let whole: u64 = 20_640_000;
    assert!(place.mock.stats().bytes_of(".safetensors") < whole + 2_000_000, "what was there is used");
}

#[test]
fn what_can_not_be_published_is_known_before() {
    let place = Place::new();
    let out = place.out("out");
    let out = out.to_str().expect("UTF-8");
    let shrink = ["shrink", REPO, "--max-size", "8MB", "--publish", "me/it", "--out", out];
    let said = fails(&mut place.command("a", &shrink), 2);
    assert!(said.contains("HF_TOKEN"), "{said}");
    let dropping: Vec<&str> = shrink.into_iter().chain(["--disk", "30MB"]).collect();
    let said = fails(place.command("a", &dropping).env("HF_TOKEN", "hf_x"), 2);
    assert!(said.contains("--no-verify"), "{said}");
    assert!(!place.out("a").exists() && !place.out("out").exists());
}

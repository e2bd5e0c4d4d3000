//! `halfbyte check`, on what `halfbyte shrink` made of a tiny model.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use minisign::KeyPair;
use serde_json::Value;

use crate::tool::{halfbyte, model, run};

/// The GGUF file in the folder.
pub const MODEL: &str = "tiny-llama.gguf";

/// A folder of `halfbyte shrink`, verified, for a test to damage.
pub fn shrunk(to: &Path) -> PathBuf {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let mut shrink = halfbyte(&["shrink", "--max-size", "3MB", "--chunks", "1", "--json"]);
        run(shrink.arg(model("tiny-llama")).arg("--out").arg(dir.path().join("made")));
        dir
    });
    let folder = to.join("model");
    fs::create_dir_all(&folder).expect("folder");
    for entry in fs::read_dir(made.path().join("made")).expect("folder") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("copy");
    }
    folder
}

pub fn check(folder: &Path, options: &[&str]) -> Command {
    let mut command = halfbyte(&["check"]);
    command.arg(folder).args(options);
    command
}

/// The manifest of a folder.
pub fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("halfbyte.json")).expect("manifest")).expect("JSON")
}

/// Flips a bit.
pub fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).expect("file");
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).expect("file");
}

/// The lines that say what is wrong, of a check that must fail.
fn broken(folder: &Path) -> Vec<(String, Option<String>, String)> {
    let output = check(folder, &["--json"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["holds"], false);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let problems = report["problems"].as_array().expect("problems").iter();
    problems
        .map(|p| (text(&p["file"]).expect("file"), text(&p["tensor"]), text(&p["problem"]).expect("problem")))
        .collect()
}

fn only(mut problems: Vec<(String, Option<String>, String)>) -> (String, Option<String>, String) {
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.swap_remove(0)
}

#[test]
fn what_shrink_made_holds_and_says_what_it_is() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let report: Value = serde_json::from_slice(&run(&mut check(&folder, &["--json"])).stdout).expect("JSON");
    let manifest = manifest(&folder);
    assert_eq!((&report["holds"], &report["signature"]["state"]), (&true.into(), &"no".into()));
    assert_eq!(report["warnings"], Value::Array(vec![]));
    assert_eq!(report["recipe"], manifest["recipe"]);
    assert_eq!(
        report["tensors"].as_u64(),
        Some(manifest["tensors"].as_array().expect("tensors").len() as u64)
    );
    assert_eq!(manifest["source"]["name"], "tiny-llama");
    assert!(manifest["verification"]["mean_kld"].as_f64().is_some_and(|nats| nats > 0.0), "{manifest}");
    assert_eq!(manifest["verification"]["files"][0]["name"], MODEL);

    fs::write(folder.join("notes.txt"), "mine").expect("file");
    let text = String::from_utf8(run(&mut check(&folder, &[])).stdout).expect("text");
    for words in [
        "made from tiny-llama by halfbyte",
        "verified: perplexity",
        "mean KLD",
        "signature: none",
        "warning: notes.txt is there",
        "holds: ",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn nothing_that_is_published_says_where_it_lay() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let secret = model("tiny-llama");
    let parent = secret.parent().and_then(Path::to_str).expect("UTF-8");
    for entry in fs::read_dir(&folder).expect("folder") {
        let path = entry.expect("entry").path();
        let text = String::from_utf8_lossy(&fs::read(&path).expect("file")).into_owned();
        for place in [parent, "/made", std::env::temp_dir().to_str().expect("UTF-8")] {
            assert!(!text.contains(place), "{place} in {}", path.display());
        }
    }
}

#[test]
fn a_flipped_bit_is_named_with_its_tensor() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let manifest = manifest(&folder);
    let tensor = &manifest["tensors"][7];
    let plane = &tensor["planes"][0];
    let at = plane["offset"].as_u64().expect("offset") + plane["bytes"].as_u64().expect("bytes") - 1;
    flip(&folder.join(MODEL), at);
    let (file, name, problem) = only(broken(&folder));
    assert_eq!((file.as_str(), name.as_deref()), (MODEL, tensor["name"].as_str()), "{problem}");
    let output = check(&folder, &[]).output().expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("{MODEL}: tensor {}: ", name.expect("tensor"))), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not hold: one problem"), "{output:?}");

    flip(&folder.join(MODEL), at);
    flip(&folder.join(MODEL), 40);
    let (file, name, problem) = only(broken(&folder));
    assert_eq!((file.as_str(), name), (MODEL, None));
    assert!(problem.contains("header"), "{problem}");
}

#[test]
fn missing_longer_and_changed_files_are_named() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let card = folder.join("README.md");
    let text = fs::read(&card).expect("card");
    fs::write(&card, [&text[..], b"more"].concat()).expect("file");
    let (file, _, problem) = only(broken(&folder));
    assert_eq!(
        (file.as_str(), problem),
        ("README.md", format!("it has {} bytes, not {}", text.len() + 4, text.len()))
    );
    fs::remove_file(&card).expect("file");
    assert_eq!(only(broken(&folder)).2, "it is missing");
    fs::write(&card, &text).expect("file");
    flip(&folder.join("recipe.toml"), 0);
    assert_eq!(only(broken(&folder)).0, "recipe.toml");
    flip(&folder.join("recipe.toml"), 0);
    run(&mut check(&folder, &[]));
}

#[test]
fn a_manifest_and_sums_that_lie_are_found_out() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let path = folder.join("halfbyte.json");
    let text = fs::read_to_string(&path).expect("manifest");
    // Another hash for the recipe: the two lists and the manifest itself no longer agree.
    let recipe = manifest(&folder)["recipe"]["sha256"].as_str().expect("hash").to_owned();
    fs::write(&path, text.replacen(&recipe, &"0".repeat(64), 1)).expect("file");
    let files: Vec<String> = broken(&folder).into_iter().map(|(file, _, _)| file).collect();
    assert_eq!(files, ["halfbyte.json", "recipe.toml"]);
    fs::write(&path, text.replace("\"name\": \"README.md\"", "\"name\": \"../README.md\"")).expect("file");
    let problems = broken(&folder);
    assert!(problems.iter().any(|(_, _, problem)| problem.contains("\"../README.md\"")), "{problems:?}");
    fs::write(&path, &text).expect("file");

    let sums = folder.join("SHA256SUMS");
    let listed = fs::read_to_string(&sums).expect("sums");
    fs::write(&sums, format!("{listed}{}  ../../outside\n", "0".repeat(64))).expect("file");
    let (file, _, problem) = only(broken(&folder));
    assert!(file == "SHA256SUMS" && problem.contains("outside of the folder"), "{problem}");
    fs::write(&sums, format!("{listed}{}  more.bin\n", "0".repeat(64))).expect("file");
    assert_eq!(only(broken(&folder)).0, "more.bin");
    fs::remove_file(&sums).expect("file");
    assert_eq!(only(broken(&folder)).0, "SHA256SUMS");
}

/// A new pair of keys in files: the secret one and the public one.
pub fn keys(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let pair = KeyPair::generate_unencrypted_keypair().expect("keys");
    let (secret, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pub")));
    fs::write(&secret, pair.sk.to_box(None).expect("key").to_bytes()).expect("file");
    fs::write(&public, pair.pk.to_box().expect("key").to_bytes()).expect("file");
    (secret, public)
}

#[test]
fn a_signature_is_checked_against_the_wanted_key() {
    let dir = tempfile::tempdir().expect("dir");
    let folder = shrunk(dir.path());
    let pair = KeyPair::generate_unencrypted_keypair().expect("keys");
    let text = fs::read(folder.join("halfbyte.json")).expect("manifest");
    let signature = minisign::sign(None, &pair.sk, &text[..], Some("by a test"), None).expect("signature");
    fs::write(folder.join("halfbyte.json.minisig"), signature.into_string()).expect("file");
    let stdout =
        |options: &[&str]| String::from_utf8(run(&mut check(&folder, options)).stdout).expect("text");
    assert!(stdout(&[]).contains("not checked: give the public key with --key"));
    let key = pair.pk.to_base64();
    let said = stdout(&["--key", &key]);
    assert!(said.contains("signature: holds, key ID") && said.contains("by a test"), "{said}");

    let (_, other) = keys(dir.path(), "other");
    let mut wrong = check(&folder, &["--key"]);
    let output = wrong.arg(&other).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("halfbyte.json.minisig: it was signed with the key"), "{said}");
    assert_eq!(
        check(&folder, &["--key", "RWnokey"]).output().expect("the binary runs").status.code(),
        Some(2)
    );
}

#[test]
fn an_mlx_folder_is_checked_plane_by_plane_and_a_manifest_made_anew_is_the_same() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("mlx");
    let mut shrink = halfbyte(&["shrink", "--to", "mlx", "--max-size", "3MB", "--no-verify", "--json"]);
    shrink.arg(model("tiny-llama")).arg("--out").arg(&out);
    run(&mut shrink);
    let before = fs::read(out.join("halfbyte.json")).expect("manifest");
    // Tensors are hashed from the file where nothing is known of them any more.
    fs::remove_file(out.join("halfbyte.json")).expect("file");
    run(&mut shrink);
    assert_eq!(fs::read(out.join("halfbyte.json")).expect("manifest"), before);
    let manifest = manifest(&out);
    let quantized = manifest["tensors"]
        .as_array()
        .expect("tensors")
        .iter()
        .find(|t| t["planes"].as_array().is_some_and(|p| p.len() > 1));
    let quantized = quantized.expect("a tensor with scales");
    let scales = &quantized["planes"][1];
    flip(&out.join(scales["file"].as_str().expect("file")), scales["offset"].as_u64().expect("offset"));
    let (_, name, _) = only(broken(&out));
    assert_eq!(name.as_deref(), quantized["name"].as_str());
}

//! Running the binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use sha2::{Digest, Sha256};

/// One of the models under `tests/fixtures/models`.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

/// A command line for the binary, ready to be changed and run.
pub fn halfbyte(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_halfbyte"));
    command.args(args).env_remove("HALFBYTE_ISA");
    command
}

/// Has a command speak to the Hub at `endpoint` and keep its files in `home`, whatever the environment says; without a token.
pub fn on_hub<'c>(command: &'c mut Command, endpoint: &str, home: &Path) -> &'c mut Command {
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", home)
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
}

/// `halfbyte quantize SOURCE --to .. --format .. --out ..`.
pub fn quantize(source: &Path, to: &str, format: &str, out: &Path) -> Command {
    let mut command = halfbyte(&["quantize"]);
    command.arg(source).args(["--to", to, "--format", format, "--out"]).arg(out);
    command
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command that must fail with this code; what it says on standard error.
pub fn fails(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the binary runs");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{message}");
    message
}

/// Copies a model so that a test may damage it.
pub fn copy_of(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    fs::create_dir_all(&folder).expect("folder");
    for entry in fs::read_dir(model(name)).expect("model") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), folder.join(entry.file_name())).expect("copy");
    }
    folder
}

/// Name and hash of a file, or of every file in a folder.
pub fn hashes(path: &Path) -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        fs::read_dir(path).expect("folder").map(|entry| entry.expect("entry").path()).collect()
    } else {
        vec![path.to_owned()]
    };
    files.sort();
    files
        .iter()
        .map(|file| {
            let name = file.file_name().expect("name").to_string_lossy().into_owned();
            let digest = Sha256::digest(fs::read(file).expect("file"));
            (name, digest.iter().map(|byte| format!("{byte:02x}")).collect())
        })
        .collect()
}

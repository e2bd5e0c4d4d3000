//! Containers as a consumer meets them: whole, damaged and hostile.
#![allow(clippy::unwrap_used, reason = "a helper of tests may panic")]

mod safetensors;
mod scales;

use std::fs;

use halfbyte_formats::Error;
use tempfile::TempDir;

/// A safetensors file of the given header and data.
fn safetensors_file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A folder of these files.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Asserts that the message has all these parts.
#[track_caller]
fn names(error: &Error, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not name {part:?}");
    }
}

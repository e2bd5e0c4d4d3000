//! Containers as a consumer meets them: whole, damaged and hostile.
#![allow(clippy::unwrap_used, reason = "a helper of tests may panic")]

mod awq;
mod checkpoint;
mod compressed;
mod compressed_floats;
mod gguf_read;
mod gguf_write;
mod gptq;
mod linears;
mod mlx;
mod mlx_folder;
mod packed;
mod safetensors;
mod scales;
mod stacked;
mod stored;
mod summary;

use std::fs;

use std::os::unix::fs::FileExt;
use std::path::Path;

use halfbyte_formats::{Error, Layout};
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

/// Writes a layout: headers, then in each plane the byte that the tensor's number gives.
fn write(folder: &Path, layout: &Layout) {
    let mut files = Vec::new();
    for file in &layout.files {
        let path = folder.join(&file.name);
        fs::write(&path, &file.header).unwrap();
        let handle = fs::OpenOptions::new().write(true).open(path).unwrap();
        handle.set_len(file.len).unwrap();
        files.push(handle);
    }
    for (i, planes) in layout.planes.iter().enumerate() {
        for place in planes {
            files[place.file].write_all_at(&vec![i as u8; place.len as usize], place.offset).unwrap();
        }
    }
}

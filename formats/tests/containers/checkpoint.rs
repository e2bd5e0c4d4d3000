use std::fs;
use std::path::Path;

use halfbyte_formats::checkpoint::{Checkpoint, Weights};
use halfbyte_formats::gguf::write::{Options, layout};
use halfbyte_formats::gguf::{Metadata, Value};
use halfbyte_formats::{Error, TensorSource};
use tempfile::TempDir;

use crate::{folder, names, safetensors_file, write};

const TENSOR: &str = r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;

fn refused(path: &Path) -> Error {
    Checkpoint::open(&path.into()).unwrap_err()
}

#[test]
fn a_folder_comes_with_config_and_side_files() {
    let folder = folder(&[
        ("model.safetensors", safetensors_file(TENSOR, &[0])),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("merges.txt", b"".to_vec()),
        ("README.md", b"".to_vec()),
    ]);
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors")] {
        let checkpoint = Checkpoint::open(&path.as_path().into()).unwrap();
        assert!(checkpoint.source().find("x").is_some());
        assert_eq!(checkpoint.config().unwrap().as_deref(), Some("{}"));
        let side: Vec<_> = ["tokenizer.json", "merges.txt"].map(|name| folder.path().join(name)).to_vec();
        assert_eq!(checkpoint.side_files(), side);
    }
}

#[test]
fn a_gguf_is_known_by_its_first_bytes() {
    let folder = TempDir::new().unwrap();
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    write(
        folder.path(),
        &layout(&metadata, &[], &Options { stem: "m", alignment: 32, shard_size: None, shard_after: &[] })
            .unwrap(),
    );
    fs::rename(folder.path().join("m.gguf"), folder.path().join("model")).unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(&folder.path().join("model").into()).unwrap();
    let Weights::Gguf(gguf) = &checkpoint.weights else { panic!("no GGUF") };
    assert_eq!(gguf.metadata().get("general.architecture"), Some(&Value::String("llama".to_owned())));
    assert_eq!(gguf.files().len(), 1);
    assert_eq!(checkpoint.config().unwrap(), None);
}

#[test]
fn what_is_not_there_is_named() {
    let error = refused(Path::new("/nowhere/model"));
    assert!(matches!(error, Error::Io { .. }));
    names(&error, &["/nowhere/model"]);
}

#[test]
fn a_folder_without_weights_lists_what_it_has() {
    let folder = folder(&[("notes.txt", vec![]), ("config.json", vec![])]);
    let error = refused(folder.path());
    assert!(matches!(error, Error::NoCheckpoint { .. }));
    names(&error, &[folder.path().to_str().unwrap(), "config.json, notes.txt"]);
}

#[test]
fn an_empty_folder_is_called_so() {
    let error = refused(folder(&[]).path());
    assert!(matches!(error, Error::NoCheckpoint { .. }));
    names(&error, &["empty"]);
}

#[test]
fn pickles_are_to_be_converted() {
    let folder = folder(&[("pytorch_model.bin", b"PK\x03\x04 and more".to_vec()), ("config.json", vec![])]);
    for path in [folder.path().to_owned(), folder.path().join("pytorch_model.bin")] {
        let error = refused(&path);
        assert!(matches!(error, Error::NoCheckpoint { .. }));
        names(&error, &["pytorch_model.bin", "save_pretrained"]);
    }
}

#[test]
fn a_folder_of_ggufs_is_no_checkpoint_but_its_files_are() {
    let error = refused(folder(&[("m.gguf", vec![])]).path());
    assert!(matches!(error, Error::NoCheckpoint { .. }));
    names(&error, &["m.gguf", "name that file"]);
}

#[test]
fn a_file_of_another_kind_shows_its_first_bytes() {
    for (bytes, shown) in [(&b"#!/bin/sh"[..], "`#!/bin/sh`"), (b"{\n\"a\"", r#"`{\n\"a\"`"#), (b"", "``")] {
        let folder = folder(&[("model", bytes.to_vec())]);
        let error = refused(&folder.path().join("model"));
        assert!(matches!(error, Error::UnknownMagic { .. }));
        names(&error, &["model", shown]);
    }
}

#[test]
fn a_configuration_of_unreasonable_size_is_not_read() {
    let folder = folder(&[("model.safetensors", safetensors_file(TENSOR, &[0])), ("config.json", vec![])]);
    fs::OpenOptions::new()
        .write(true)
        .open(folder.path().join("config.json"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = Checkpoint::open(&folder.path().into()).unwrap().config().unwrap_err();
    assert!(matches!(error, Error::HeaderTooLarge { .. }));
    names(&error, &["config.json", &(1u64 << 40).to_string()]);
}

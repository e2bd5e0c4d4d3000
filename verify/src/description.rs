//! What a model on disk is, for a reader who wants to know what was compared.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use formats::{Source, checkpoint::Checkpoint, summary::summarize};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Models up to this many bytes are hashed: a few seconds.
const MOST_HASHED: u64 = 8 << 30;

/// GGUF keys that tell where a file comes from and how it was made.
const PROVENANCE: [&str; 12] = [
    "general.name",
    "general.quantized_by",
    "general.file_type",
    "general.base_model.0.organization",
    "general.base_model.0.name",
    "general.base_model.0.repo_url",
    "general.source.url",
    "quantize.imatrix.file",
    "quantize.imatrix.dataset",
    "quantize.imatrix.entries_count",
    "quantize.imatrix.chunks_count",
    "general.license",
];

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Where it is, as the user named it.
    pub path: String,
    /// `gguf`, `mlx` or `safetensors`.
    pub container: String,
    /// The family, as the container names it.
    pub architecture: String,
    /// Its formats, the one with most bytes first.
    pub formats: Vec<String>,
    /// Number of weights.
    pub weights: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bits per weight over all tensors, scales included.
    pub bits_per_weight: f64,
    /// The files with weights.
    pub files: Vec<ModelFile>,
    /// What the model says about how it was made: GGUF keys, or the quantization of `config.json`.
    pub provenance: Map<String, Value>,
}

/// One file: of a model, or the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal, unless the model is too large to hash in passing.
    pub sha256: Option<String>,
}

impl ModelFile {
    /// A file with its hash.
    ///
    /// # Errors
    /// If it can't be read; [`Error::Interrupted`] once `cancel` is set.
    pub fn hashed(path: &Path, cancel: &AtomicBool) -> Result<ModelFile> {
        let bytes = path.metadata().map_err(Error::io(path))?.len();
        Ok(ModelFile { name: name(path), bytes, sha256: Some(hash(path, cancel)?) })
    }
}

impl Model {
    /// Describes an opened model. Reads headers, and a model of up to 8 GiB whole, for its hash.
    ///
    /// # Errors
    /// If `config.json` or a file can't be read; [`Error::Interrupted`] once `cancel` is set.
    pub fn describe(source: &Source, checkpoint: &Checkpoint, cancel: &AtomicBool) -> Result<Model> {
        let summary = summarize(checkpoint)?;
        let config = match checkpoint.config()? {
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => Value::Null,
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let architecture = text(summary.metadata.get("general.architecture"))
            .or_else(|| text(config.get("model_type")))
            .unwrap_or_else(|| "unknown".to_owned());
        let provenance = if summary.container == "gguf" {
            let known = PROVENANCE.iter().filter_map(|&key| summary.metadata.get_key_value(key));
            known.map(|(key, value)| (key.clone(), value.clone())).collect()
        } else {
            let keys = ["quantization", "quantization_config"];
            let known = keys.iter().filter_map(|&key| Some((key, config.get(key)?.as_object()?))).take(1);
            known.flat_map(|(key, object)| settings(key, object)).collect()
        };
        let files = checkpoint.source().files();
        let hashed = files.iter().map(|file| file.len).fold(0, u64::saturating_add) <= MOST_HASHED;
        let files = files.iter().map(|file| {
            Ok(ModelFile {
                name: name(&file.path),
                bytes: file.len,
                sha256: match &file.sha256 {
                    Some(known) => Some(known.clone()),
                    None => hashed.then(|| hash(&file.path, cancel)).transpose()?,
                },
            })
        });
        let (weights, bytes) = (summary.weights(), summary.bytes());
        Ok(Model {
            path: source.to_string(),
            container: summary.container.to_owned(),
            architecture,
            formats: summary.totals().into_iter().map(|total| total.format).collect(),
            weights,
            bytes,
            bits_per_weight: if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 },
            files: files.collect::<Result<_>>()?,
            provenance,
        })
    }
}

/// A quantization's own settings; what it says about single modules is only counted.
fn settings(key: &str, quantization: &Map<String, Value>) -> Map<String, Value> {
    // Of MLX's modules each has an object, or `false` if it is not quantized; FP8 checkpoints list them in an array.
    let whole = |value: &Value| value.is_string() || value.is_number() || value.is_null();
    let mut settings: Map<String, Value> = quantization
        .iter()
        .filter(|(_, value)| whole(value))
        .map(|(name, value)| (format!("{key}.{name}"), value.clone()))
        .collect();
    let modules = quantization.iter().filter(|(name, value)| name.contains('.') && !whole(value)).count();
    if modules > 0 {
        settings.insert(format!("{key}: modules with an entry of their own"), modules.into());
    }
    settings
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn hash(path: &Path, cancel: &AtomicBool) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => sha.update(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
    Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
    }

    fn described(path: &Path) -> Result<Model> {
        let source = path.into();
        Model::describe(&source, &Checkpoint::open(&source).expect("model"), &AtomicBool::new(false))
    }

    #[test]
    fn hashing_can_be_interrupted() {
        let file = fixture("tiny-llama").join("model.safetensors");
        let error = ModelFile::hashed(&file, &AtomicBool::new(true)).expect_err("interrupted");
        assert!(matches!(error, Error::Interrupted));
    }

    #[test]
    fn a_checkpoint_is_described_and_hashed() {
        let path = fixture("tiny-llama");
        let model = described(&path).expect("description");
        assert_eq!(
            (model.container.as_str(), model.architecture.as_str(), &model.formats[..]),
            ("safetensors", "llama", &["bf16".to_owned()][..])
        );
        assert_eq!(model.bits_per_weight, 16.0);
        let [file] = &model.files[..] else { panic!("{:?}", model.files) };
        let bytes = std::fs::read(path.join("model.safetensors")).expect("file");
        assert_eq!(file.bytes, bytes.len() as u64);
        let whole: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file.sha256.as_deref(), Some(whole.as_str()));
    }

    #[test]
    fn fp8_settings_are_kept() {
        let path = fixture("tiny-deepseek");
        let model = described(&path).expect("description");
        assert_eq!(model.provenance.get("quantization_config.quant_method"), Some(&json!("fp8")));
        assert_eq!(model.files.len(), 3);
    }

    #[test]
    fn modules_of_their_own_are_counted() {
        let quantization = json!({
            "bits": 4, "group_size": 64, "mode": "affine",
            "model.layers.0.mlp.gate": { "bits": 8, "group_size": 64 }, "lm_head.x": false,
        });
        let settings = settings("quantization", quantization.as_object().expect("object"));
        let expected = json!({
            "quantization.bits": 4, "quantization.group_size": 64, "quantization.mode": "affine",
            "quantization: modules with an entry of their own": 2,
        });
        assert_eq!(Value::Object(settings), expected);
    }
}

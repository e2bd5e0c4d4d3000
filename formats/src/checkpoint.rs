//! A model on disk, whichever it is: a folder as the Hub has it (Hugging Face or MLX), a safetensors file or a GGUF.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::gguf::{self, Gguf};
use crate::index;
use crate::joined::Joined;
use crate::mlx_folder;
use crate::packed::{self, Quantization};
use crate::safetensors::Safetensors;
use crate::source::{Opened, Source};
use crate::tensor::TensorSource;

/// The largest `config.json` accepted.
const MAX_CONFIG: u64 = 16 << 20;

/// Files that belong to a model beside weights and `config.json`: what tokenizers and generation read.
pub const SIDE_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
];

/// The opened weights of a model.
#[derive(Debug)]
pub enum Weights {
    /// A folder of safetensors, or one file.
    Safetensors(Safetensors),
    /// A folder of safetensors as MLX has them.
    Mlx(Joined),
    /// A folder of safetensors as compressed-tensors, GPTQ or AWQ have them.
    Packed(Joined),
    /// A GGUF or all its splits.
    Gguf(Gguf),
}

/// A model on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where `config.json` and the tokenizer are, if there are any.
    pub folder: PathBuf,
    /// The weights.
    pub weights: Weights,
}

impl Checkpoint {
    /// Opens a folder, a `*.safetensors` or a `*.gguf` (any of its splits), on this disk or elsewhere. What a file is, its first bytes
    /// say.
    ///
    /// # Errors
    /// [`Error::NoCheckpoint`] with what is there instead and what to do; [`Error::UnknownMagic`]; and whatever the
    /// container's reader finds.
    pub fn open(source: &Source) -> Result<Checkpoint> {
        let (path, storage) = (source.path(), source.storage());
        if path.is_dir() {
            let weights =
                Safetensors::open_folder_in(path, storage.clone()).map_err(|error| match error {
                    Error::NoCheckpoint { .. } => explain(path).unwrap_or(error),
                    other => other,
                })?;
            return Checkpoint::of_safetensors(path.to_owned(), weights);
        }
        let Opened { handle, len, .. } = storage.open(path)?;
        // A bare file name has the empty path as its parent.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.to_owned();
        let mut start = vec![0; len.min(9) as usize];
        handle.read_head_at(&mut start, 0).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        match &start[..] {
            start if start.starts_with(&gguf::MAGIC) => {
                Ok(Checkpoint { folder, weights: Weights::Gguf(Gguf::open_in(path, storage.clone())?) })
            }
            // The length of a header, then the header.
            start if start.get(8) == Some(&b'{') => {
                Checkpoint::of_safetensors(folder, Safetensors::open_file_in(path, storage.clone())?)
            }
            start if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") => {
                let reason = format!("a PyTorch pickle, which is not read: {CONVERT}");
                Err(Error::NoCheckpoint { path: path.to_owned(), reason })
            }
            start => {
                let magic = start.escape_ascii().to_string();
                Err(Error::UnknownMagic { path: path.to_owned(), magic })
            }
        }
    }

    /// A checkpoint's files, as they are or packed, or MLX's, whichever they are.
    fn of_safetensors(folder: PathBuf, stored: Safetensors) -> Result<Checkpoint> {
        let config = folder.join("config.json");
        if packed::has_packed(&stored)
            && let Some(text) = config_text(&config)?
            && let Some(quantization) = Quantization::of(&config, &text)?
            && let Some(join) = quantization.reader()?
        {
            return Ok(Checkpoint { folder, weights: Weights::Packed(join(&quantization, stored)?) });
        }
        let says_mlx = stored.metadata().get("format").is_some_and(|format| format == "mlx");
        if !says_mlx && !mlx_folder::has_packed(&stored) {
            return Ok(Checkpoint { folder, weights: Weights::Safetensors(stored) });
        }
        let quantization = match config_text(&config)? {
            Some(text) => mlx_folder::quantization(&config, &text)?,
            None => None,
        };
        let weights = match (says_mlx, &quantization) {
            (false, None) => Weights::Safetensors(stored),
            _ => Weights::Mlx(mlx_folder::join(&config, stored, quantization.as_ref())?),
        };
        Ok(Checkpoint { folder, weights })
    }

    /// The weights as a source.
    pub fn source(&self) -> &dyn TensorSource {
        match &self.weights {
            Weights::Safetensors(weights) => weights,
            Weights::Mlx(weights) | Weights::Packed(weights) => weights,
            Weights::Gguf(weights) => weights,
        }
    }

    /// The text of `config.json`, if the folder has one. A GGUF has its own metadata and no need of it.
    ///
    /// # Errors
    /// If it can't be read, or is too large to be one.
    pub fn config(&self) -> Result<Option<String>> {
        match &self.weights {
            Weights::Gguf(_) => Ok(None),
            Weights::Safetensors(_) | Weights::Mlx(_) | Weights::Packed(_) => {
                config_text(&self.folder.join("config.json"))
            }
        }
    }

    /// The tokenizer's and the generation's files that are there, for a copy.
    pub fn side_files(&self) -> Vec<PathBuf> {
        SIDE_FILES.iter().map(|name| self.folder.join(name)).filter(|path| path.is_file()).collect()
    }
}

/// The text of a `config.json`; `None` if there is no such file.
fn config_text(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let (_, len) = index::open(path)?;
    if len > MAX_CONFIG {
        return Err(Error::HeaderTooLarge { path: path.to_owned(), len, limit: MAX_CONFIG });
    }
    fs::read_to_string(path).map(Some).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// How to get from pickles to safetensors.
const CONVERT: &str =
    "convert it with transformers (load it, then save_pretrained), which writes safetensors";

/// Why a folder without safetensors is no checkpoint, where its files tell more than that.
fn explain(folder: &Path) -> Option<Error> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let with = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    let reason = if with(&[".safetensors"]).is_some() {
        return None;
    } else if let Some(name) = with(&[".gguf"]) {
        format!("the folder has no safetensors file, but {name}: name that file itself")
    } else if let Some(name) = with(&[".bin", ".pt", ".pth"]) {
        format!("the folder has no safetensors file, only PyTorch pickles ({name}): {CONVERT}")
    } else if names.is_empty() {
        "the folder is empty".to_owned()
    } else {
        let shown: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
        let more = if names.len() > shown.len() { ", …" } else { "" };
        format!("the folder has no safetensors file, only {}{more}", shown.join(", "))
    };
    Some(Error::NoCheckpoint { path: folder.to_owned(), reason })
}

//! The recipe: what becomes what, as text that a person can read and diff. Its hash names the job; the output is a function
//! of the recipe and the source's bytes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A job in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The tool and its version: another version may round otherwise.
    pub tool: String,
    /// `gguf` or `mlx`.
    pub container: String,
    /// The mix or format that was asked for.
    pub format: String,
    /// Overrides, in the order given, as `REGEX=TYPE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// Alignment of tensors in bytes.
    pub align: u64,
    /// Largest file in bytes; none if the container does not split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard_size: Option<u64>,
    /// Layers behind which a file ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shard_after: Vec<u32>,
    /// Whether NaN and infinite weights are let through.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_nonfinite: bool,
    /// The checkpoint's files.
    pub source: Vec<SourceFile>,
    /// Every output tensor and its type, in the order of the file.
    pub tensor: Vec<TensorChoice>,
}

/// One file of the source, without its place on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceFile {
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 over its tensors' names, types, shapes and offsets.
    pub index_sha256: String,
}

/// What one tensor becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorChoice {
    /// The output tensor.
    pub name: String,
    /// Its type.
    pub format: String,
}

impl Recipe {
    /// The text that is hashed and kept beside the unfinished output.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only strings, numbers and lists of tables")
    }

    /// SHA-256 of the text, in hexadecimal.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(self.to_toml()))
    }

    /// The first line in which `other` differs, for a message.
    pub fn difference(&self, other: &str) -> String {
        let mine = self.to_toml();
        let pair = other.lines().zip(mine.lines()).find(|(theirs, mine)| theirs != mine);
        match pair {
            Some((theirs, mine)) => format!("it has `{theirs}`, this command `{mine}`"),
            None => format!("it has {} lines, this command {}", other.lines().count(), mine.lines().count()),
        }
    }
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            tool: "halfbyte 0.1.0".into(),
            container: "gguf".into(),
            format: "q4_k_m".into(),
            overrides: vec!["attn_v=q8_0".into()],
            align: 32,
            shard_size: None,
            shard_after: vec![],
            allow_nonfinite: false,
            source: vec![SourceFile {
                name: "model.safetensors".into(),
                bytes: 10,
                index_sha256: "00".into(),
            }],
            tensor: vec![TensorChoice { name: "output.weight".into(), format: "q6_k".into() }],
        }
    }

    #[test]
    fn the_hash_follows_every_choice() {
        let a = recipe();
        let mut b = recipe();
        assert_eq!(a.hash(), b.hash());
        b.tensor[0].format = "q8_0".into();
        assert_ne!(a.hash(), b.hash());
        assert_eq!(
            b.difference(&a.to_toml()),
            "it has `format = \"q6_k\"`, this command `format = \"q8_0\"`"
        );
    }

    #[test]
    fn the_text_reads_back() {
        let text = recipe().to_toml();
        assert_eq!(toml::from_str::<Recipe>(&text).expect("recipe"), recipe());
    }
}

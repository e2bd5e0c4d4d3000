//! `halfbyte.json`: what a published model is, what it was made from and how, what was measured, and the hash of every file and
//! every tensor. All of it is names, numbers and hashes: nothing says where on somebody's disk anything lay.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::digest::is_sha256;
use crate::error::{Error, Result};
use crate::repo::is_safe;
use crate::{sign, sums};

/// The file's name.
pub const NAME: &str = "halfbyte.json";
/// The version of the form that is written here.
pub const VERSION: u32 = 1;
/// The longest one that is read.
pub const MOST_BYTES: u64 = 64 << 20;

/// What stands in `halfbyte.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this form: 1.
    pub version: u32,
    /// What made the model, with its version.
    pub tool: String,
    /// What it was made from.
    pub source: Source,
    /// The recipe that says what became what.
    pub recipe: Recipe,
    /// `gguf` or `mlx`.
    pub container: String,
    /// The mix or format that most tensors follow.
    pub format: String,
    /// Over all tensors, scales included.
    pub bits_per_weight: f64,
    /// Number of weights.
    pub weights: u64,
    /// The machine it was made to fit.
    pub target: Option<Target>,
    /// The text by which it was rounded; none if it was not calibrated.
    pub calibration: Option<Calibration>,
    /// All published files but this one, its signature and `SHA256SUMS`.
    pub files: Vec<File>,
    /// All tensors, in the order in which they lie.
    pub tensors: Vec<Tensor>,
    /// What was measured of these files; none if nothing was.
    pub verification: Option<Verification>,
}

/// What a model was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it is called.
    pub name: String,
    /// The repository that it came from, `owner/name`, if it came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// That repository's commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Its files with weights.
    pub files: Vec<SourceFile>,
}

/// A file of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes, where a Hub states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SHA-256 over its tensors' names, types, shapes and offsets, as the recipe has it.
    pub index_sha256: String,
}

/// Where the recipe is, and its name as a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The file.
    pub file: String,
    /// SHA-256 of its text.
    pub sha256: String,
}

/// The machine and the use that a model was planned for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The machine.
    pub name: String,
    /// Tokens of context.
    pub context: Option<u64>,
    /// Sequences at a time.
    pub parallel: Option<u64>,
    /// Type of the KV cache.
    pub kv: Option<String>,
}

/// What a model was calibrated on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// SHA-256 of the text.
    pub text_sha256: String,
    /// Tokens of a chunk.
    pub context: u64,
    /// Chunks.
    pub chunks: u64,
    /// How weights were rounded.
    pub rounding: String,
    /// The graphics processor that ran the model, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A file and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name in the folder.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A tensor and its hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name in the container.
    pub name: String,
    /// How it is stored.
    #[serde(rename = "type")]
    pub format: String,
    /// Row-major, outermost dimension first.
    pub shape: Vec<u64>,
    /// Its bytes: in one piece in GGUF; in MLX codes, scales and biases.
    pub planes: Vec<Plane>,
}

/// Where a part of a tensor lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plane {
    /// The file.
    pub file: String,
    /// From the start of the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes.
    pub sha256: String,
}

/// What `halfbyte verify` measured. Divergences are in nats, shares fractions of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// How, in one line.
    pub protocol: String,
    /// On which text.
    pub input: File,
    /// How many tokens were scored.
    pub tokens_scored: u64,
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_error: f64,
    /// What it was compared with; none if with nothing.
    #[serde(flatten)]
    pub divergence: Option<Divergence>,
    /// The measured files: the figures are of these bytes and of no others.
    pub files: Vec<File>,
}

/// How far a model is from its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The source's perplexity.
    pub reference_perplexity: f64,
    /// Mean KL divergence from the source's distribution of the next token.
    pub mean_kld: f64,
    /// Its standard error.
    pub mean_kld_error: f64,
    /// One token in a thousand diverges more.
    pub kld_99_9: f64,
    /// Share of tokens for which both find the same next one most likely.
    pub same_top1: f64,
    /// Root of the mean squared change of the probability of the text's token.
    pub rms_dp: f64,
}

impl Plane {
    /// Its bytes in the file. What is read from a manifest does not overflow: it lies within the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.bytes)
    }
}

impl Manifest {
    /// Reads a text that anybody may have written. `place` is for messages.
    ///
    /// # Errors
    /// [`Error::Listing`] if it is none, or says what can't be.
    pub fn parse(place: &str, text: &[u8]) -> Result<Manifest> {
        let wrong = |problem: String| Error::Listing { file: place.to_owned(), problem };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version: Version = serde_json::from_slice(text)
            .map_err(|error| wrong(format!("it is no manifest of halfbyte's: {error}")))?;
        if version.version != VERSION {
            return Err(wrong(format!(
                "it is of version {}, this halfbyte reads version {VERSION}: use a newer one",
                version.version
            )));
        }
        let manifest: Manifest = serde_json::from_slice(text)
            .map_err(|error| wrong(format!("it is no manifest of halfbyte's: {error}")))?;
        manifest.validate().map_err(wrong)?;
        Ok(manifest)
    }

    /// The text of the file.
    ///
    /// # Errors
    /// [`Error::Listing`] if it would not be read again: a name that could lie outside of the folder, a figure that is no number.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let wrong = |problem: String| Error::Listing { file: NAME.to_owned(), problem };
        self.validate().map_err(wrong)?;
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| wrong(error.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The file of that name.
    pub fn file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The files in which there are tensors.
    pub fn model_files(&self) -> Vec<&File> {
        let names: HashSet<&str> =
            self.tensors.iter().flat_map(|tensor| &tensor.planes).map(|plane| plane.file.as_str()).collect();
        self.files.iter().filter(|file| names.contains(file.name.as_str())).collect()
    }

    /// What was measured, if it was measured of these very files; else why it does not count.
    ///
    /// # Errors
    /// In plain words.
    pub fn verified(&self) -> std::result::Result<&Verification, String> {
        let verification = self.verification.as_ref().ok_or("it was not verified")?;
        for file in self.model_files() {
            match verification.files.iter().find(|measured| measured.name == file.name) {
                Some(measured) if measured == file => {}
                Some(measured) => {
                    return Err(format!(
                        "other bytes were verified: {} had {} bytes and the SHA-256 {} then, and has {} bytes and {} now",
                        file.name, measured.bytes, measured.sha256, file.bytes, file.sha256
                    ));
                }
                None => return Err(format!("{} was not among the files that were verified", file.name)),
            }
        }
        Ok(verification)
    }

    /// Whether all of it can be: names that stay in the folder, hashes that are hashes, tensors that lie in their files.
    fn validate(&self) -> std::result::Result<(), String> {
        let named = |name: &str| {
            if is_safe(name) {
                Ok(())
            } else {
                Err(format!("it names {name:?}, which could lie outside of the folder"))
            }
        };
        let hashed = |of: &str, hash: &str| {
            if is_sha256(hash) { Ok(()) } else { Err(format!("{of} has {hash:?} in the place of a SHA-256")) }
        };
        let mut sizes = HashMap::new();
        for file in &self.files {
            named(&file.name)?;
            hashed(&file.name, &file.sha256)?;
            if [NAME, sign::NAME, sums::NAME].contains(&file.name.as_str()) {
                return Err(format!("it lists {}, which can't have a hash in it", file.name));
            }
            if sizes.insert(file.name.as_str(), file.bytes).is_some() {
                return Err(format!("it lists {} twice", file.name));
            }
        }
        named(&self.recipe.file)?;
        hashed("the recipe", &self.recipe.sha256)?;
        for file in &self.source.files {
            named(&file.name)?;
            hashed(&file.name, &file.index_sha256)?;
            file.sha256.iter().try_for_each(|hash| hashed(&file.name, hash))?;
        }
        if let Some(calibration) = &self.calibration {
            hashed("the calibration's text", &calibration.text_sha256)?;
        }
        for tensor in &self.tensors {
            for plane in &tensor.planes {
                hashed(&tensor.name, &plane.sha256)?;
                let len = sizes.get(plane.file.as_str()).ok_or_else(|| {
                    format!("{} lies in {:?}, which is not listed", tensor.name, plane.file)
                })?;
                if plane.offset.checked_add(plane.bytes).is_none_or(|end| end > *len) {
                    return Err(format!(
                        "{} lies at byte {} of {} and takes {} bytes, but the file has {len}",
                        tensor.name, plane.offset, plane.file, plane.bytes
                    ));
                }
            }
        }
        if let Some(verification) = &self.verification {
            for file in verification.files.iter().chain([&verification.input]) {
                named(&file.name)?;
                hashed(&file.name, &file.sha256)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn hash(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn file(name: &str, bytes: u64, digit: char) -> File {
        File { name: name.into(), bytes, sha256: hash(digit) }
    }

    /// A manifest of a model of one tensor.
    pub(crate) fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            tool: "halfbyte 0.1.0".into(),
            source: Source {
                name: "m".into(),
                repo: Some("o/m".into()),
                commit: Some("c".repeat(40)),
                files: vec![SourceFile {
                    name: "model.safetensors".into(),
                    bytes: 9,
                    sha256: None,
                    index_sha256: hash('1'),
                }],
            },
            recipe: Recipe { file: "recipe.toml".into(), sha256: hash('2') },
            container: "gguf".into(),
            format: "q4_k_m".into(),
            bits_per_weight: 4.5,
            weights: 64,
            target: None,
            calibration: None,
            files: vec![file("m.gguf", 100, '3'), file("recipe.toml", 5, '2')],
            tensors: vec![Tensor {
                name: "a".into(),
                format: "q4_k".into(),
                shape: vec![2, 32],
                planes: vec![Plane { file: "m.gguf".into(), offset: 64, bytes: 36, sha256: hash('4') }],
            }],
            verification: Some(Verification {
                protocol: "16 chunks".into(),
                input: file("t.txt", 3, '5'),
                tokens_scored: 2,
                perplexity: 9.5,
                perplexity_error: 0.5,
                divergence: None,
                files: vec![file("m.gguf", 100, '3')],
            }),
        }
    }

    #[test]
    fn it_reads_back_with_and_without_a_reference() {
        let mut manifest = manifest();
        for divergence in [
            None,
            Some(Divergence {
                reference_perplexity: 9.0,
                mean_kld: 0.01,
                mean_kld_error: 0.001,
                kld_99_9: 0.5,
                same_top1: 0.97,
                rms_dp: 0.02,
            }),
        ] {
            if let Some(verification) = &mut manifest.verification {
                verification.divergence = divergence;
            }
            let text = manifest.to_json().expect("text");
            assert_eq!(Manifest::parse("m", &text).expect("manifest"), manifest);
        }
    }

    #[test]
    fn only_the_measured_bytes_count_as_verified() {
        let mut manifest = manifest();
        assert_eq!(manifest.verified().map(|v| v.perplexity), Ok(9.5));
        manifest.files[0].sha256 = hash('6');
        assert!(manifest.verified().expect_err("other bytes").contains("other bytes were verified: m.gguf"));
        manifest.verification = None;
        assert_eq!(manifest.verified(), Err("it was not verified".into()));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(Change, &str); 9] = [
            (|m| m.files[1].name = "../x".into(), "outside"),
            (|m| m.files[1].sha256 = "A".repeat(64), "in the place of a SHA-256"),
            (|m| m.files[1].name = "m.gguf".into(), "lists m.gguf twice"),
            (|m| m.files[1].name = "SHA256SUMS".into(), "can't have a hash in it"),
            (|m| m.recipe.file = "/etc/passwd".into(), "outside"),
            (|m| m.tensors[0].planes[0].file = "other".into(), "not listed"),
            (|m| m.tensors[0].planes[0].bytes = 37, "the file has 100"),
            (|m| m.tensors[0].planes[0].offset = u64::MAX, "the file has 100"),
            (|m| m.source.files[0].name = "a/../../b".into(), "outside"),
        ];
        for (change, said) in changes {
            let mut manifest = manifest();
            change(&mut manifest);
            let text = serde_json::to_vec(&manifest).expect("text");
            let error = Manifest::parse("p", &text).expect_err(said).to_string();
            assert!(error.starts_with("p: ") && error.contains(said), "{error}");
            assert!(manifest.to_json().is_err());
        }
        assert!(Manifest::parse("p", b"[").is_err());
        let newer = Manifest::parse("p", b"{\"version\": 2}").expect_err("newer").to_string();
        assert!(newer.contains("version 2") && newer.contains("newer"), "{newer}");
    }
}

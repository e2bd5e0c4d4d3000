//! The recipe: what becomes what, as a file that a person can read, edit, diff and commit. Its hash names the job; the output is
//! a function of the recipe and the source's bytes. The same text lies beside an unfinished output, and its hash in the finished
//! one: `sha256sum` of the file gives it. [`recipe_file`](crate::recipe_file) reads one that may have been edited.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::calibrate::Calibration;
use crate::plan::{Container, Options};

/// A job in full.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The tool and its version: another version may round otherwise.
    #[serde(default)]
    pub tool: String,
    /// What is written.
    pub container: Container,
    /// The mix or format, in lower case: the type of every tensor that no rule names.
    pub format: String,
    /// `REGEX=TYPE`: the first that is found in a tensor's name decides.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Alignment of tensors in bytes, where the container lets one choose.
    pub align: Option<u32>,
    /// Largest file in bytes; the container's default if absent.
    pub shard_size: Option<u64>,
    /// Layers behind which a file ends.
    #[serde(default)]
    pub shard_after: Vec<u32>,
    /// Whether NaN and infinite weights are let through.
    #[serde(default)]
    pub allow_nonfinite: bool,
    /// What its weights are rounded by; nothing if it is not calibrated.
    pub calibration: Option<Calibration>,
    /// The importance matrix that the encoders go by, if there is one.
    pub imatrix: Option<ImatrixFile>,
    /// What it was planned for: for the reader.
    pub target: Option<PlannedFor>,
    /// The checkpoint's revision, if it is known.
    pub revision: Option<String>,
    /// The checkpoint's files; none if any will do.
    #[serde(default)]
    pub source: Vec<SourceFile>,
    /// Bytes of all output tensors.
    #[serde(default)]
    pub bytes: u64,
    /// Every output tensor and its type, in the order of the file.
    #[serde(default)]
    pub tensor: Vec<TensorChoice>,
}

/// The machine and the use that a recipe was planned for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFor {
    /// The target.
    pub name: String,
    /// Tokens of context.
    pub context: Option<u64>,
    /// Sequences at a time.
    pub parallel: Option<u64>,
    /// Type of the KV cache.
    pub kv: Option<String>,
}

/// An importance matrix, without its place on this machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImatrixFile {
    /// File name.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// One file of the source, without its place on this machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 over its tensors' names, types, shapes and offsets.
    pub index_sha256: String,
}

/// What one tensor becomes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorChoice {
    /// The output tensor.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub format: String,
    /// Its size in bytes.
    #[serde(default)]
    pub bytes: u64,
}

impl Recipe {
    /// The file's text: the parts that are edited first, then the lists that follow from them, one line for each file and tensor.
    pub fn to_toml(&self) -> String {
        let mut text = Text(HEAD.to_owned());
        text.value("What wrote this: another version may round otherwise.", "tool", quoted(&self.tool));
        text.value(
            "Container: gguf, mlx, compressed-tensors, gptq, gptq-v2 or awq.",
            "container",
            quoted(self.container.name()),
        );
        let about = "A mix or a type, for every tensor that no rule names (`halfbyte formats` lists them).";
        text.value(about, "format", quoted(&self.format));
        let about = "REGEX=TYPE: the first that is found in a tensor's name decides.";
        text.list(about, "rules", self.rules.iter().map(|rule| quoted(rule)));
        if let Some(align) = self.align {
            text.value("Tensors start at multiples of so many bytes.", "align", align);
        }
        if let Some(size) = self.shard_size {
            let about = "The largest file in bytes. Files end with layers, unless one layer is larger.";
            text.value(about, "shard_size", size);
        }
        if !self.shard_after.is_empty() {
            text.value(
                "A file ends behind each of these layers.",
                "shard_after",
                format!("{:?}", self.shard_after),
            );
        }
        if self.allow_nonfinite {
            text.value("NaN and infinite weights are let through.", "allow_nonfinite", true);
        }
        if let Some(calibration) = &self.calibration {
            let about = "The text by whose SHA-256 it is calibrated, and how weights are rounded by it.";
            text.value(about, "calibration", calibration.to_toml());
        }
        if let Some(ImatrixFile { name, sha256 }) = &self.imatrix {
            let about = "The importance matrix: --imatrix gives the file, its name is for the reader.";
            let value = format!("{{ name = {}, sha256 = {} }}", quoted(name), quoted(sha256));
            text.value(about, "imatrix", value);
        }
        if let Some(target) = &self.target {
            text.value("What it was planned for: for the reader alone.", "target", target.to_toml());
        }
        if let Some(revision) = &self.revision {
            text.value("The checkpoint's revision.", "revision", quoted(revision));
        }
        let source = self.source.iter().map(|SourceFile { name, bytes, index_sha256 }| {
            let (name, hash) = (quoted(name), quoted(index_sha256));
            format!("{{ name = {name}, bytes = {bytes}, index_sha256 = {hash} }}")
        });
        text.list("The checkpoint's files. Without this list any checkpoint will do.", "source", source);
        text.value("Bytes of all tensors, made anew when it is run.", "bytes", self.bytes);
        let tensors = self.tensor.iter().map(|TensorChoice { name, format, bytes }| {
            let (name, format) = (quoted(name), quoted(format));
            format!("{{ name = {name}, type = {format}, bytes = {bytes} }}")
        });
        let about = "What the rules give, in the order of the file: checked when it is run, made anew where it is deleted.";
        text.list(about, "tensor", tensors);
        text.0
    }

    /// SHA-256 of the text, in hexadecimal.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(self.to_toml()))
    }

    /// What the user asks for with it, but for the place of the importance matrix, which it does not know.
    pub fn options(&self) -> Options {
        Options {
            container: self.container,
            format: self.format.clone(),
            overrides: self.rules.clone(),
            shard_size: self.shard_size,
            shard_after: self.shard_after.clone(),
            align: self.align,
            allow_nonfinite: self.allow_nonfinite,
            calibration: self.calibration.clone(),
            imatrix: None,
            target: self.target.clone(),
            revision: self.revision.clone(),
            like: None,
        }
    }

    /// The first line in which `other` differs, for a message.
    pub fn difference(&self, other: &str) -> String {
        let mine = self.to_toml();
        let pair = other.lines().zip(mine.lines()).find(|(theirs, mine)| theirs != mine);
        match pair {
            Some((theirs, mine)) => format!("it has `{}`, this command `{}`", theirs.trim(), mine.trim()),
            None => format!("it has {} lines, this command {}", other.lines().count(), mine.lines().count()),
        }
    }
}

impl PlannedFor {
    fn to_toml(&self) -> String {
        let numbers = [("context", self.context), ("parallel", self.parallel)];
        let numbers = numbers.iter().filter_map(|(key, value)| Some(format!(", {key} = {}", (*value)?)));
        let kv = self.kv.iter().map(|kv| format!(", kv = {}", quoted(kv)));
        format!("{{ name = {}{} }}", quoted(&self.name), numbers.chain(kv).collect::<String>())
    }
}

/// The first lines.
const HEAD: &str = "\
# A recipe of halfbyte's: `halfbyte quantize SOURCE --recipe THIS_FILE --out OUT` makes what it says.
# After editing `format` or `rules`, delete the list of tensors at the end, or the lines that the change is about.
";

/// A file under construction.
struct Text(String);

impl Text {
    fn value(&mut self, about: &str, key: &str, value: impl std::fmt::Display) {
        self.0 += &format!("\n# {about}\n{key} = {value}\n");
    }

    fn list(&mut self, about: &str, key: &str, items: impl Iterator<Item = String>) {
        self.0 += &format!("\n# {about}\n{key} = [");
        let before = self.0.len();
        for item in items {
            self.0 += &format!("\n    {item},");
        }
        self.0 += if self.0.len() > before { "\n]\n" } else { "]\n" };
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
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
    use crate::calibrate::Rounding;

    fn recipe() -> Recipe {
        let file = |name: &str| SourceFile { name: name.into(), bytes: 10, index_sha256: "00".into() };
        let tensor =
            |name: &str, format: &str| TensorChoice { name: name.into(), format: format.into(), bytes: 64 };
        Recipe {
            tool: "halfbyte 0.1.0".into(),
            container: Container::Gguf,
            format: "q4_k_m".into(),
            rules: vec![r"^blk\.\d\.attn_v=q8_0".into(), "\"odd'\n\t=q6_k".into()],
            align: Some(16384),
            shard_size: Some(45_000_000_000),
            shard_after: vec![3, 7],
            allow_nonfinite: true,
            calibration: Some(Calibration::new("text", 512, 64, Rounding::Feedback, &verify::Processor::Cpu)),
            imatrix: Some(ImatrixFile { name: "m.imatrix".into(), sha256: "00".into() }),
            target: Some(PlannedFor {
                name: "mac-128".into(),
                context: Some(32768),
                parallel: Some(1),
                kv: Some("q8_0".into()),
            }),
            revision: Some("main".into()),
            source: vec![file("a.safetensors"), file("grün \\ \"b\".safetensors")],
            bytes: 128,
            tensor: vec![tensor("token_embd.weight", "q6_k"), tensor("output.weight", "q8_0")],
        }
    }

    #[test]
    fn the_hash_follows_every_choice() {
        let a = recipe();
        let mut b = recipe();
        assert_eq!(a.hash(), b.hash());
        b.tensor[1].format = "q6_k".into();
        assert_ne!(a.hash(), b.hash());
        let line = |format| format!("`{{ name = \"output.weight\", type = \"{format}\", bytes = 64 }},`");
        assert_eq!(
            b.difference(&a.to_toml()),
            format!("it has {}, this command {}", line("q8_0"), line("q6_k"))
        );
    }

    #[test]
    fn the_text_reads_back() {
        let full = recipe();
        assert_eq!(toml::from_str::<Recipe>(&full.to_toml()).expect("recipe"), full);
        let bare = Recipe {
            rules: vec![],
            align: None,
            shard_size: None,
            shard_after: vec![],
            allow_nonfinite: false,
            calibration: None,
            imatrix: None,
            target: None,
            revision: None,
            source: vec![],
            tensor: vec![],
            ..full
        };
        assert_eq!(toml::from_str::<Recipe>(&bare.to_toml()).expect("recipe"), bare);
    }

    #[test]
    fn a_line_for_each_rule_file_and_tensor() {
        let text = recipe().to_toml();
        for line in [
            r"    '^blk\.\d\.attn_v=q8_0',",
            r#"target = { name = "mac-128", context = 32768, parallel = 1, kv = "q8_0" }"#,
            r#"imatrix = { name = "m.imatrix", sha256 = "00" }"#,
            r#"    { name = "a.safetensors", bytes = 10, index_sha256 = "00" },"#,
            r#"    { name = "token_embd.weight", type = "q6_k", bytes = 64 },"#,
            "shard_after = [3, 7]",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}

//! The form of a file of targets, and what it describes.

use kernels::table;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{
    Backend, Basis, CARD_RESERVE, Device, DeviceKind, Engine, EngineKind, Target, host_reserve, less,
    parse_size,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    #[serde(default)]
    pub engine: Vec<EngineEntry>,
    #[serde(default)]
    pub target: Vec<TargetEntry>,
    #[serde(default)]
    pub macos_limit: Vec<MacosLimit>,
}

/// What macOS lets a GPU take of the memory of some machine, unless told otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MacosLimit {
    pub memory: Bytes,
    pub usable: Bytes,
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EngineEntry {
    pub name: Spanned<String>,
    program: Program,
    backend: Option<Backend>,
    formats: Vec<Spanned<String>>,
    #[serde(default)]
    sources: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
enum Program {
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "mlx")]
    Mlx,
    #[serde(rename = "vllm")]
    Vllm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetEntry {
    pub name: Spanned<String>,
    description: String,
    page: Spanned<Bytes>,
    engines: Spanned<Vec<Spanned<String>>>,
    device: Vec<DeviceEntry>,
    host: Option<DeviceEntry>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceEntry {
    name: Spanned<String>,
    pci: Option<String>,
    kind: DeviceKind,
    memory: Bytes,
    available: Option<Spanned<Bytes>>,
    usable: Option<Spanned<Bytes>>,
    bandwidth: Option<Rate>,
    #[serde(default)]
    source: SourceEntry,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SourceEntry {
    memory: String,
    usable: String,
    bandwidth: String,
}

/// What is wrong, and where in the text.
pub(super) type Wrong = (usize, String);

impl EngineEntry {
    /// The engine, or what is wrong.
    pub fn build(self) -> Result<Engine, Wrong> {
        let start = self.name.span().start;
        let kind = match (self.program, self.backend) {
            (Program::LlamaCpp, Some(backend)) => EngineKind::LlamaCpp(Some(backend)),
            (Program::LlamaCpp, None) => return Err((start, "llama.cpp needs a `backend`".to_owned())),
            (Program::Mlx, None) => EngineKind::Mlx,
            (Program::Mlx, Some(_)) => return Err((start, "mlx has no `backend`".to_owned())),
            (Program::Vllm, None) => EngineKind::Vllm,
            (Program::Vllm, Some(_)) => return Err((start, "vllm has no `backend`".to_owned())),
        };
        let mut formats = Vec::new();
        for name in &self.formats {
            let wrong = |detail| (name.span().start, detail);
            let found = with_variants(self.program, name.get_ref());
            if found.is_empty() {
                return Err(wrong(format!(
                    "there is no format `{}`: `halfbyte formats` lists them",
                    name.get_ref()
                )));
            }
            formats.extend(found);
        }
        Ok(Engine { name: self.name.into_inner(), kind, formats, sources: self.sources })
    }
}

/// The format of this name, with the variants for scales of another type than BF16: MLX runs all of them, vLLM those of 16 bits.
fn with_variants(program: Program, name: &str) -> Vec<&'static kernels::Format> {
    match program {
        Program::LlamaCpp => table::gguf(name).into_iter().collect(),
        Program::Mlx => {
            ["", "-f16", "-f32"].iter().filter_map(|end| table::mlx(&format!("{name}{end}"))).collect()
        }
        Program::Vllm => {
            let variants = ["", "-f16"].map(|end| table::compressed_tensors(&format!("{name}{end}")));
            variants.into_iter().flatten().collect()
        }
    }
}

impl TargetEntry {
    /// The target with its engines among `known`, or what is wrong.
    pub fn build(self, known: &[Engine]) -> Result<Target, Wrong> {
        let start = self.name.span().start;
        let name = self.name.into_inner();
        if name.is_empty()
            || name == "auto"
            || name.contains('+')
            || name.starts_with(|c: char| c.is_ascii_digit())
        {
            return Err((
                start,
                "a name can't be empty or `auto`, hold a `+` or begin with a digit".to_owned(),
            ));
        }
        if self.device.is_empty() {
            return Err((start, "a target needs a [[target.device]]".to_owned()));
        }
        if !self.page.get_ref().0.is_power_of_two() {
            return Err((self.page.span().start, "a page is a power of two".to_owned()));
        }
        if self.engines.get_ref().is_empty() {
            return Err((self.engines.span().start, "a target needs an engine".to_owned()));
        }
        let engine = |name: &Spanned<String>| {
            let found = known.iter().find(|engine| engine.name == *name.get_ref()).cloned();
            found.ok_or_else(|| {
                let names: Vec<&str> = known.iter().map(|engine| engine.name.as_str()).collect();
                (
                    name.span().start,
                    format!("there is no engine `{}`, but {}", name.get_ref(), names.join(", ")),
                )
            })
        };
        let engines = self.engines.get_ref().iter().map(engine).collect::<Result<_, _>>()?;
        let host = match self.host {
            Some(host) if host.kind != DeviceKind::Host => {
                return Err((host.name.span().start, "[target.host] is of the kind `host`".to_owned()));
            }
            Some(host) => Some(host.build()?),
            None => None,
        };
        Ok(Target {
            name,
            description: self.description,
            devices: self.device.into_iter().map(DeviceEntry::build).collect::<Result<_, _>>()?,
            host,
            engines,
            page: self.page.into_inner().0,
            notes: self.notes,
        })
    }
}

impl DeviceEntry {
    fn build(self) -> Result<Device, Wrong> {
        let memory = self.memory.0;
        for part in [&self.available, &self.usable].into_iter().flatten() {
            if part.get_ref().0 > memory {
                return Err((part.span().start, format!("more than its memory of {memory} bytes")));
            }
        }
        let start = self.name.span().start;
        let usable = self.usable.map(|usable| usable.into_inner().0);
        let available = self.available.map(|available| available.into_inner().0);
        let (usable, rule) = match (self.kind, usable, available) {
            (_, Some(usable), None) => (usable, String::new()),
            (DeviceKind::Card, None, available) => {
                (available.unwrap_or(memory).saturating_sub(CARD_RESERVE), less(CARD_RESERVE))
            }
            (DeviceKind::Host, None, None) => {
                (memory.saturating_sub(host_reserve(memory)), less(host_reserve(memory)))
            }
            (DeviceKind::Unified, None, None) => {
                return Err((
                    start,
                    "unified memory needs `usable`: the limit that the system sets".to_owned(),
                ));
            }
            (_, _, Some(_)) => {
                return Err((
                    start,
                    "`available` is for a card without `usable`, which follows from it".to_owned(),
                ));
            }
        };
        let source = self.source;
        Ok(Device {
            name: self.name.into_inner(),
            pci: self.pci,
            kind: self.kind,
            memory,
            usable,
            bandwidth: self.bandwidth.map(|rate| rate.0),
            basis: Basis {
                memory: source.memory,
                usable: if source.usable.is_empty() { rule } else { source.usable + &rule },
                bandwidth: source.bandwidth,
            },
        })
    }
}

/// `512 GiB`, with its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes(pub u64);

/// `819 GB/s`, with its unit.
struct Rate(u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_str(Text("a size with its unit, such as \"512 GiB\""))?;
        with_unit(&text, "a size such as \"512 GiB\"").map(Bytes)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_str(Text("a bandwidth with its unit, such as \"819 GB/s\""))?;
        let Some(bytes) = text.strip_suffix("/s") else {
            return Err(de::Error::custom(format!("`{text}` is no bandwidth such as \"819 GB/s\"")));
        };
        with_unit(bytes, "a bandwidth such as \"819 GB/s\"").map(Rate)
    }
}

fn with_unit<E: de::Error>(text: &str, what: &str) -> Result<u64, E> {
    if !text.ends_with('B') {
        return Err(E::custom(format!("`{text}` is not {what}: the unit is missing")));
    }
    parse_size(text).map_err(E::custom)
}

/// Takes a string and says what it should hold if it is none.
struct Text(&'static str);

impl de::Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

//! Target machines: how much memory a model may take on them, how fast it is read, and which formats their engines run.
//!
//! The presets are [`catalog`]'s, in one data file that a user can extend; [`machine`] describes the machine that this runs on.
//! Figures are what somebody measured or published, with the source beside each; a figure that nobody has published is absent.
//! What follows from others (the reserve on a card) is computed.

pub mod catalog;
mod file;
pub mod machine;
pub mod size;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use kernels::{Format, float, table, w4a16};

use crate::{budget, plan::Container};

pub use catalog::Catalog;
pub use machine::{Os, System};
pub use size::{parse_size, size};

/// Kept free on each card: llama.cpp's own default margin (`--fit-target`, common/common.h).
pub const CARD_RESERVE: u64 = 1 << 30;

/// Kept free of a host's memory for the system and other programs: a sixteenth, and 2 GiB at least.
pub fn host_reserve(memory: u64) -> u64 {
    (memory / 16).max(2 << 30)
}

/// How a reserve is written in a basis.
fn less(reserve: u64) -> String {
    format!(", less {} kept free", size(reserve))
}

/// A machine to make a model for.
#[derive(Clone, Debug)]
pub struct Target {
    /// What `--fit` calls it: `mac-studio-512`.
    pub name: String,
    /// The machine in words.
    pub description: String,
    /// Where weights, KV cache and buffers may lie, at least one. A card with two chips of 48 GB is two devices: each
    /// holds layers of its own.
    pub devices: Vec<Device>,
    /// Memory of the host beside discrete cards, for what does not fit them.
    pub host: Option<Device>,
    /// The engines that may run the model.
    pub engines: Vec<Engine>,
    /// Bytes of a page of memory: what tensors are aligned to, so that a loader can map them without a copy.
    pub page: u64,
    /// What else must be known of this machine.
    pub notes: Vec<String>,
}

/// Memory that one processor reads as its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The chip or card, as the system names it.
    pub name: String,
    /// Its vendor and device on the PCI bus, as `1002:1586`, where that is how Linux knows it.
    pub pci: Option<String>,
    /// What kind of memory it is.
    pub kind: DeviceKind,
    /// Bytes it has.
    pub memory: u64,
    /// Bytes that weights, KV cache and the engine's buffers may take together, at most `memory`.
    pub usable: u64,
    /// Bytes per second that it can read, if known: the maker's figure, which no engine reaches.
    pub bandwidth: Option<u64>,
    /// Where the figures are from.
    pub basis: Basis,
}

/// Where a device's figures are from; empty if nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// Source of [`Device::memory`].
    pub memory: String,
    /// Source of [`Device::usable`].
    pub usable: String,
    /// Source of [`Device::bandwidth`].
    pub bandwidth: String,
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// One memory for the processor and the graphics unit.
    Unified,
    /// A card with a memory of its own.
    Card,
    /// Memory of the host's processor.
    Host,
}

impl DeviceKind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Unified => "unified memory",
            DeviceKind::Card => "card",
            DeviceKind::Host => "host memory",
        }
    }
}

/// What runs a model on the target.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The engine with its backend: `llama.cpp/cuda`, `mlx`.
    pub name: String,
    /// The program, and what it computes with.
    pub kind: EngineKind,
    /// Block formats that it multiplies on the device; another one is computed elsewhere or not at all.
    pub formats: Vec<&'static Format>,
    /// Where that is from.
    pub sources: Vec<String>,
}

/// The program, and what it computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// llama.cpp and what is built on it, with one of its backends; `None` where the device is not known.
    LlamaCpp(Option<Backend>),
    /// MLX and mlx-lm.
    Mlx,
    /// vLLM, on NVIDIA's cards.
    Vllm,
}

/// What llama.cpp computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Apple's GPUs.
    Metal,
    /// NVIDIA's GPUs.
    Cuda,
    /// AMD's GPUs (ROCm); the CUDA backend's sources.
    Hip,
    /// Any maker's GPUs.
    Vulkan,
    /// Intel's GPUs.
    Sycl,
    /// Moore Threads' GPUs; the CUDA backend's sources.
    Musa,
    /// Huawei's Ascend NPUs.
    Cann,
    /// The host's processor.
    Cpu,
}

impl Engine {
    /// What it loads.
    pub fn container(&self) -> Container {
        self.program().container()
    }

    /// The program alone.
    pub fn program(&self) -> budget::Engine {
        match self.kind {
            EngineKind::LlamaCpp(_) => budget::Engine::LlamaCpp,
            EngineKind::Mlx => budget::Engine::Mlx,
            EngineKind::Vllm => budget::Engine::Vllm,
        }
    }

    /// Whether it multiplies this format on the device.
    pub fn runs(&self, format: &Format) -> bool {
        self.formats.iter().any(|known| std::ptr::eq(*known, format))
    }
}

/// The formats of compressed-tensors that vLLM multiplies with its Marlin kernels, and floats of 16 bits: it computes in no other
/// type, so that scales in single precision would be rounded when they are loaded.
///
/// Source: `MARLIN_SUPPORTED_GROUP_SIZES` and `query_marlin_supported_quant_types` in
/// `vllm/model_executor/layers/quantization/utils/marlin_utils.py`.
pub fn marlin() -> Vec<&'static Format> {
    let runs = |format: &&Format| match w4a16::scales_of(format) {
        Some(scales) => format.planes.len() == 2 && [&float::BF16, &float::F16].contains(&scales),
        None => [&float::BF16, &float::F16].contains(format),
    };
    table::COMPRESSED_TENSORS.iter().copied().filter(runs).collect()
}

impl Target {
    /// Bytes that weights, KV cache and buffers may take on all devices together, the host's memory left out.
    pub fn usable(&self) -> u64 {
        self.devices.iter().map(|device| device.usable).fold(0, u64::saturating_add)
    }

    /// The formats of a container that every engine of this target which loads it runs, in the order of the first one's list;
    /// empty if none loads it.
    pub fn formats(&self, container: Container) -> Vec<&'static Format> {
        let mut engines = self.engines.iter().filter(|engine| engine.container() == container);
        let Some(first) = engines.next() else {
            return Vec::new();
        };
        let others: Vec<&Engine> = engines.collect();
        first
            .formats
            .iter()
            .copied()
            .filter(|format| others.iter().all(|engine| engine.runs(format)))
            .collect()
    }

    /// Whether a tensor of this format runs on the target, whichever of its engines loads the container.
    pub fn runs(&self, container: Container, format: &Format) -> bool {
        self.formats(container).iter().any(|known| std::ptr::eq(*known, format))
    }
}

/// What can be wrong with a target.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file of targets can't be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of targets is wrong.
    #[error("{path}, line {line}: {detail}")]
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, with the key.
        detail: String,
    },
    /// Nothing is called so.
    #[error(
        "there is no target `{name}`{}. `halfbyte targets` lists them; a size such as 37GiB and `auto` (this machine) do too",
        nearest(near)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that are like it; empty if none is.
        near: Vec<String>,
    },
    /// A size that can't be read, or host memory beside what has no card.
    #[error("--fit {text}: {detail}")]
    Fit {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The system does not tell what it has.
    #[error("--fit auto: {0}. Name a target (`halfbyte targets` lists them) or a size such as 37GiB")]
    Machine(String),
}

fn nearest(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(", ")) }
}

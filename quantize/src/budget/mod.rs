//! How many bytes a model takes when it runs, from headers alone: weights, the cache of what was read, the engine's buffers, and
//! what is to stay free.
//!
//! - [`kv`]: the cache of each layer, exact.
//! - [`buffers`]: the engine's buffers, as ranges with their basis.
//! - [`vllm`]: what vLLM does differently: it takes a share of each card, divides tensors among cards, and repacks them.

pub mod buffers;
pub mod kv;
pub mod vllm;

use std::ops::Add;

use crate::{
    error::{Error, Result},
    plan::Container,
};

pub use buffers::{Buffer, Device, buffers};
pub use kv::{LayerCache, cache};

/// Tokens that llama.cpp computes at once (`--ubatch-size`).
const MICRO_BATCH: u64 = 512;

/// What runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// llama.cpp and what is built on it.
    LlamaCpp,
    /// MLX and mlx-lm.
    Mlx,
    /// vLLM.
    Vllm,
}

impl Engine {
    /// As the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::LlamaCpp => "llama.cpp",
            Engine::Mlx => "mlx",
            Engine::Vllm => "vllm",
        }
    }

    /// What is written for it.
    pub fn container(self) -> Container {
        match self {
            Engine::LlamaCpp => Container::Gguf,
            Engine::Mlx => Container::Mlx,
            Engine::Vllm => Container::CompressedTensors,
        }
    }
}

/// The type of the cache's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits.
    F16,
    /// 8 bits and a scale for each block; in vLLM FP8 with one scale for all (`--kv-cache-dtype fp8`).
    Q8_0,
    /// 4 bits and a scale for each block.
    Q4_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];

    /// As the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none of that name.
    pub fn find(name: &str) -> Result<KvType> {
        let names = KvType::ALL.map(KvType::name);
        let problem =
            || Error::Usage(format!("no cache type is called `{name}`; known are {}", names.join(", ")));
        KvType::ALL.into_iter().find(|kv| kv.name() == name.to_ascii_lowercase()).ok_or_else(problem)
    }
}

/// How a model is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// By what.
    pub engine: Engine,
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences at the same time.
    pub parallel: u64,
    /// Type of the cache.
    pub kv: KvType,
}

impl Run {
    fn check(&self) -> Result<()> {
        let count = |what: &str, n: u64| match n {
            1..=0xffff_ffff => Ok(()),
            _ => Err(Error::Usage(format!("{what} is {n}, not a number from 1 to 4294967295"))),
        };
        count("the context", self.context)?;
        count("the number of parallel sequences", self.parallel)
    }

    /// The type of the cache as its engine calls it.
    pub fn kv_name(&self) -> &'static str {
        match (self.engine, self.kv) {
            (Engine::Vllm, KvType::Q8_0) => "fp8",
            (_, kv) => kv.name(),
        }
    }

    /// Tokens that llama.cpp computes at once: no more than there are cells.
    fn micro_batch(&self) -> u64 {
        MICRO_BATCH.min(self.context.saturating_mul(self.parallel))
    }
}

/// Bytes that are known up to a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// At least.
    pub low: u64,
    /// At most.
    pub high: u64,
}

impl Bytes {
    /// Bytes that are known exactly.
    pub fn exactly(bytes: u64) -> Bytes {
        Bytes { low: bytes, high: bytes }
    }
}

impl Add for Bytes {
    type Output = Bytes;

    fn add(self, other: Bytes) -> Bytes {
        Bytes { low: self.low.saturating_add(other.low), high: self.high.saturating_add(other.high) }
    }
}

/// What one device must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of the tensors that are placed there: exact.
    pub weights: u64,
    /// Bytes of the cache of the layers that are placed there: exact.
    pub cache: u64,
    /// The engine's buffers.
    pub buffers: Vec<Buffer>,
    /// Bytes that are to stay free.
    pub reserve: u64,
}

impl Budget {
    /// That of a device which holds `weights` bytes of tensors and the cache of some `layers`.
    pub fn new<'a>(
        weights: u64,
        layers: impl IntoIterator<Item = &'a LayerCache>,
        buffers: Vec<Buffer>,
        reserve: u64,
    ) -> Budget {
        let cache = layers.into_iter().map(|layer| layer.bytes).fold(0, u64::saturating_add);
        Budget { weights, cache, buffers, reserve }
    }

    /// All buffers together.
    pub fn buffer_bytes(&self) -> Bytes {
        self.buffers.iter().fold(Bytes::default(), |sum, buffer| sum + buffer.bytes)
    }

    /// Everything together.
    pub fn total(&self) -> Bytes {
        let exact = [self.weights, self.cache, self.reserve].map(Bytes::exactly);
        exact.into_iter().fold(self.buffer_bytes(), Add::add)
    }

    /// By how many bytes the total's upper end is more than `capacity`: 0 if the model fits.
    pub fn excess(&self, capacity: u64) -> u64 {
        self.total().high.saturating_sub(capacity)
    }

    /// Whether the model fits, even if all buffers are as large as they can be.
    pub fn fits(&self, capacity: u64) -> bool {
        self.excess(capacity) == 0
    }
}

/// `what` is more bytes than 64 bits can count.
fn beyond(what: &str) -> Error {
    Error::Usage(format!(
        "{what} is larger than any memory: give a smaller context or fewer parallel sequences"
    ))
}

#[cfg(test)]
mod tests;

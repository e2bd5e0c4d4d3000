//! The cache of each layer, byte for byte as the engine allocates it.
//!
//! llama.cpp (`src/llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`, `llama-kv-cache-dsa.cpp`, `llama-memory-recurrent.cpp`,
//! `llama_model::create_memory` in `llama-model.cpp`) allocates everything when it starts. Each of `parallel` sequences has
//! `context` cells of its own: `llama-server -c CONTEXT·PARALLEL -np PARALLEL`, where that many slots share the context out among
//! them and the cache isn't unified. Flash attention is on, which is its default and what a quantized cache needs.
//!
//! mlx-lm (`mlx_lm/models/cache.py`, `make_cache` in `mlx_lm/models/*.py`) lets the cache grow: counted is what it holds once
//! `context` tokens of each sequence have been read in steps of [`PREFILL_STEP`]. Keys and values are in the model's own type, of
//! 16 bits; its quantized cache has groups of 64, each with a scale and a bias of 16 bits (`--kv-bits 8`, `--kv-bits 4`).
//!
//! vLLM fills what is left of its share of a card with blocks of [`BLOCK`] tokens. Counted are those that `parallel` sequences of
//! `context` tokens need (`max_memory_usage_bytes` of each `KVCacheSpec` in `vllm/v1/kv_cache_interface.py`), and the one block that
//! stays empty (`null_block` in `vllm/v1/core/block_pool.py`). A layer with a window keeps it and the tokens that are computed at
//! once. A delta network keeps two states, where prefixes are cached (`mamba_cache_mode` "align", which is its default).

use verify::{
    families::memory::{Memory, memory},
    hyper::Hyper,
};

use super::{Engine, KvType, Run, beyond};
use crate::error::{Error, Result};

/// llama.cpp and MLX allocate cells by so many.
const CELLS: u64 = 256;

/// Tokens of a block of vLLM's (`CacheConfig.DEFAULT_BLOCK_SIZE` in `vllm/config/cache.py`).
const BLOCK: u64 = 16;

/// States that vLLM keeps for each sequence.
const VLLM_STATES: u64 = 2;

/// Tokens that mlx-lm computes at once while it reads a prompt (`prefill_step_size` in `mlx_lm/generate.py`).
pub const PREFILL_STEP: u64 = 2048;

/// Group of mlx-lm's quantized cache (`--kv-group-size`).
const MLX_GROUP: u64 = 64;

/// What one layer's cache takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCache {
    /// The layer, counted from 0.
    pub layer: usize,
    /// What it keeps. A window that the engine doesn't make use of is not there.
    pub memory: Memory,
    /// Tokens for which each sequence has room; 0 if there is no cache that grows with them.
    pub cells: u64,
    /// Bytes for all sequences together.
    pub bytes: u64,
}

impl LayerCache {
    /// In a word or two, for tables.
    pub fn kind(&self) -> &'static str {
        match self.memory {
            Memory::Heads { window: None, .. } => "full attention",
            Memory::Heads { window: Some(_), .. } => "sliding window",
            Memory::Of(_) => "another layer's",
            Memory::Latent { indexer: None, .. } => "latent",
            Memory::Latent { indexer: Some(_), .. } => "latent, indexer",
            Memory::State { .. } => "linear attention",
        }
    }
}

/// The cache of each layer of a model. The sum of all bytes does not overflow.
///
/// # Errors
/// If a hyper-parameter is missing or can't be, if the engine can't run the model with a cache of that type, or if there is
/// more than fits 64 bits.
pub fn cache(hyper: &Hyper, run: &Run) -> Result<Vec<LayerCache>> {
    run.check()?;
    let mut sum = 0u64;
    let layers = memory(hyper)?.into_iter().enumerate().map(|(layer, memory)| {
        let memory = run.engine.held(&hyper.arch, memory);
        let cells = run.cells(memory)?;
        let per_token = run.bytes_per_token(hyper, memory)?;
        let values = per_token.checked_mul(cells);
        let state = match memory {
            // In single precision, but for the convolution's inputs in mlx-lm and vLLM.
            Memory::State { convolution, state } => {
                let one = if run.engine == Engine::LlamaCpp { 4 } else { 2 };
                let copies = if run.engine == Engine::Vllm { VLLM_STATES } else { 1 };
                let convolution = (convolution as u64).checked_mul(one);
                let both = convolution.zip((state as u64).checked_mul(4)).and_then(|(a, b)| a.checked_add(b));
                both.and_then(|both| both.checked_mul(copies))
            }
            _ => Some(0),
        };
        let empty = match run.engine {
            Engine::Vllm if cells > 0 => per_token.saturating_mul(BLOCK),
            _ => 0,
        };
        let bytes = values
            .zip(state)
            .and_then(|(a, b)| a.checked_add(b)?.checked_mul(run.parallel)?.checked_add(empty));
        let bytes = bytes.filter(|&bytes| {
            let all = sum.checked_add(bytes);
            sum = all.unwrap_or(0);
            all.is_some()
        });
        Ok(LayerCache { layer, memory, cells, bytes: bytes.ok_or_else(|| beyond("the cache"))? })
    });
    layers.collect()
}

impl Engine {
    /// What the engine keeps where a layer has to keep `memory`.
    fn held(self, arch: &str, memory: Memory) -> Memory {
        let has_window = match self {
            // It reads no window of Mistral's first version, and switches Phi 3's off.
            Engine::LlamaCpp => ["gemma2", "gemma3", "gemma4", "gpt-oss"].contains(&arch),
            // Those with a `RotatingKVCache`; for Gemma 2 it has none.
            Engine::Mlx => ["gemma3", "gemma4", "gpt-oss"].contains(&arch),
            Engine::Vllm => true,
        };
        match memory {
            Memory::Heads { heads, key, value, .. } if !has_window => {
                Memory::Heads { heads, key, value, window: None }
            }
            other => other,
        }
    }
}

impl Run {
    /// Tokens that each sequence has room for.
    fn cells(&self, memory: Memory) -> Result<u64> {
        let step = if self.engine == Engine::Vllm { BLOCK } else { CELLS };
        let padded = |cells: u64| cells.checked_next_multiple_of(step).ok_or_else(|| beyond("the context"));
        let all = padded(self.context)?;
        let window = match memory {
            Memory::Of(_) | Memory::State { .. } => return Ok(0),
            Memory::Heads { window: Some(window), .. } => window as u64,
            _ => return Ok(all),
        };
        match self.engine {
            // A micro-batch is written before the oldest tokens are forgotten.
            Engine::LlamaCpp => Ok(padded(all.min(window.saturating_add(self.micro_batch())))?),
            Engine::Mlx => Ok(self.context.min(window.saturating_add(PREFILL_STEP - 1))),
            // A block more, for a window that begins within one.
            Engine::Vllm => {
                let kept = window.saturating_sub(1).saturating_add(self.batched_tokens());
                Ok(padded(self.context.min(kept))?.saturating_add(BLOCK))
            }
        }
    }

    /// Bytes of one sequence's cache for each of its cells.
    fn bytes_per_token(&self, hyper: &Hyper, memory: Memory) -> Result<u64> {
        // With an indexer mlx-lm passes over it and quantizes nothing.
        let is_passed_over =
            self.engine == Engine::Mlx && matches!(memory, Memory::Latent { indexer: Some(_), .. });
        let kv = if is_passed_over { KvType::F16 } else { self.kv };
        let row = |heads: usize, length: usize| {
            let (heads, length) = (heads as u64, length as u64);
            let (block, bytes) = kv.block(self.engine);
            if !length.is_multiple_of(block) {
                return Err(Error::Usage(format!(
                    "a cache in {} has blocks of {block} values, which heads of {length} can't be cut into: choose f16",
                    kv.name()
                )));
            }
            heads.checked_mul(length / block * bytes).ok_or_else(|| beyond("the cache"))
        };
        if self.engine == Engine::Vllm && kv != KvType::F16 {
            vllm_quantizes(kv, memory)?;
        }
        let unquantizable = || {
            let problem = format!("mlx-lm can't quantize the cache of {}, which has", hyper.arch);
            Error::Usage(format!("{problem} sliding windows or latents: choose f16"))
        };
        let plain = self.engine != Engine::Mlx || kv == KvType::F16;
        match memory {
            Memory::Of(_) | Memory::State { .. } => Ok(0),
            Memory::Latent { .. } | Memory::Heads { window: Some(_), .. } if !plain => Err(unquantizable()),
            // `gemma2.py` multiplies keys itself.
            Memory::Heads { .. } if !plain && hyper.arch == "gemma2" => Err(unquantizable()),
            Memory::Heads { heads, key, value, .. } => {
                let both = row(heads, key)?.checked_add(row(heads, value)?);
                both.ok_or_else(|| beyond("the cache"))
            }
            // One key of latent and rotated dimensions, of which values are a view; the same bytes in mlx-lm's two parts.
            Memory::Latent { latent, rotated, indexer } => {
                let indexer = row(1, indexer.unwrap_or(0))?;
                // mlx-lm 0.32 keeps values for the indexer's keys too, all 0.
                let indexer = if self.engine == Engine::Mlx { indexer.saturating_mul(2) } else { indexer };
                let both = row(1, latent.saturating_add(rotated))?.checked_add(indexer);
                both.ok_or_else(|| beyond("the cache"))
            }
        }
    }
}

/// Whether vLLM has a cache of this type for such a layer. With latents its kernels for cards of this catalog take 16 bits alone
/// (`TritonMLAImpl` in `vllm/v1/attention/backends/mla/triton_mla.py`).
fn vllm_quantizes(kv: KvType, memory: Memory) -> Result<()> {
    let problem = match (kv, memory) {
        (KvType::Q4_0, _) => "vLLM has no cache of 4 bits in blocks: choose f16, or q8_0 for its fp8",
        (_, Memory::Latent { .. }) => "vLLM keeps latents in 16 bits on these cards: choose f16",
        _ => return Ok(()),
    };
    Err(Error::Usage(problem.to_owned()))
}

impl KvType {
    /// Values of a block and its bytes.
    fn block(self, engine: Engine) -> (u64, u64) {
        match (self, engine) {
            (KvType::F16, _) => (1, 2),
            // ggml's blocks: codes and a scale of 16 bits.
            (KvType::Q8_0, Engine::LlamaCpp) => (32, 32 + 2),
            (KvType::Q4_0, Engine::LlamaCpp) => (32, 16 + 2),
            (KvType::Q8_0, Engine::Mlx) => (MLX_GROUP, MLX_GROUP + 4),
            (KvType::Q4_0, Engine::Mlx) => (MLX_GROUP, MLX_GROUP / 2 + 4),
            // FP8 with one scale for all; 4 bits were refused.
            (KvType::Q8_0 | KvType::Q4_0, Engine::Vllm) => (1, 1),
        }
    }
}

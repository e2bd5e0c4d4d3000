//! The engine's buffers beside weights and cache. They are not known exactly from headers: each is a range with its basis.
//!
//! **llama.cpp** reserves one compute buffer for each device when it starts, for a graph of 512 tokens and a full cache
//! (`llama_context::sched_reserve` in `src/llama-context.cpp`). In it are the masks of attention (`build_attn_inp_kq_mask` in
//! `src/llama-graph.cpp`: 16 bits for each cell and token; flash attention keeps no scores) and, in single precision, what one step
//! of a layer reads and writes at once. The lower end is the largest such step; ggml's allocator (`ggml/src/ggml-alloc.c`) also
//! holds what later steps need and can't fill every gap, for which the upper end has a factor that was measured.
//!
//! **mlx-lm** computes [`PREFILL_STEP`] tokens of a prompt at once, in 16 bits (`generate_step` in `mlx_lm/generate.py`), and a layer's
//! cache is copied when it grows. What MLX has freed it keeps for later, but gives it back before memory runs out
//! (`mlx/backend/metal/allocator.cpp`), so that isn't counted.
//!
//! **vLLM**'s are [`vllm`]'s.

use verify::{
    families::memory::{Memory, memory},
    hyper::Hyper,
};

use super::{Bytes, Engine, KvType, Run, beyond, cache, kv::PREFILL_STEP, vllm};
use crate::error::Result;

/// Upper over lower end of what a step holds, in tenths.
pub(super) const HELD_TENTHS: u128 = 25;

/// Copies that llama.cpp keeps of what passes from one device to the next (`GGML_SCHED_MAX_COPIES`).
const PIPELINE_COPIES: u128 = 4;

/// What a driver takes of a card's memory before anything is allocated: the CUDA context, 120 to 550 MB
/// (<https://github.com/ggml-org/llama.cpp/pull/20595>; 451 MiB on an RTX 4090 in <https://github.com/ggml-org/llama.cpp/pull/15860>).
const DRIVER: Bytes = Bytes { low: 120_000_000, high: 550_000_000 };

/// One buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What it is for.
    pub name: &'static str,
    /// Its size.
    pub bytes: Bytes,
    /// Where the numbers come from, for the screen.
    pub basis: String,
}

/// What of a device its buffers depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// A card with memory of its own, of which its driver takes some.
    pub is_card: bool,
    /// It is one of several that share the layers.
    pub shares_layers: bool,
    /// Bytes of the largest tensor in host memory that the device computes with: the experts of one projection. llama.cpp copies
    /// it over when 32 tokens or more are computed at once.
    pub largest_on_host: u64,
}

/// The buffers of one device that computes a model's layers.
///
/// # Errors
/// As [`cache`], and if a hyper-parameter that the buffers depend on is missing.
pub fn buffers(hyper: &Hyper, run: &Run, device: &Device) -> Result<Vec<Buffer>> {
    let model = Model::read(hyper, run)?;
    let mut all = match run.engine {
        Engine::LlamaCpp => llama_cpp(&model, run, device)?,
        Engine::Mlx => mlx(&model, run)?,
        Engine::Vllm => vllm::buffers(hyper, &model, run, 1)?,
    };
    if device.is_card {
        all.push(driver());
    }
    Ok(all)
}

/// What a card's driver takes.
pub(super) fn driver() -> Buffer {
    let basis = "the CUDA context of one process, as users measured it on several cards".to_owned();
    buffer("driver", DRIVER, basis)
}

/// What the sizes of buffers are made of. All factors are below 2³² and the cache below 2⁶⁴ bytes, so that no product overflows.
pub(super) struct Model {
    pub width: u128,
    pub vocabulary: u128,
    /// Heads of queries.
    pub heads: u128,
    /// Values for each token that the largest step of a layer reads and writes, besides the stream.
    pub step: u128,
    /// What the layers keep, each kind once, with the cells of one sequence and the bytes of all.
    kept: Vec<(Memory, u128, u64)>,
    /// Heads of the indexer.
    indexer_heads: u128,
}

impl Model {
    pub fn read(hyper: &Hyper, run: &Run) -> Result<Model> {
        let heads = hyper.count("attention.head_count")? as u128;
        let width = hyper.count("embedding_length")? as u128;
        let mut kept: Vec<(Memory, u128, u64)> = Vec::new();
        for layer in cache(hyper, run)? {
            match kept.iter_mut().find(|(memory, ..)| *memory == layer.memory) {
                Some((.., bytes)) => *bytes = layer.bytes.max(*bytes),
                None => kept.push((layer.memory, layer.cells.into(), layer.bytes)),
            }
        }
        let indexer_heads = hyper.optional_count("attention.indexer.head_count")?.unwrap_or(0) as u128;
        let mut steps = vec![feed_forward(hyper, width)?];
        for (memory, ..) in &kept {
            steps.push(match *memory {
                Memory::Heads { heads: kv, key, value, .. } => {
                    heads * key as u128 + kv as u128 * (key + value) as u128
                }
                Memory::Of(_) => 0,
                // Queries in the latent, and what attention makes of them; or the indexer's queries.
                Memory::Latent { latent, rotated, indexer } => {
                    let indexer = 2 * indexer_heads * indexer.unwrap_or(0) as u128;
                    indexer.max(heads * (2 * latent + rotated) as u128)
                }
                Memory::State { .. } => delta(hyper)?,
            });
        }
        let step = steps.into_iter().max().unwrap_or(0);
        Ok(Model { width, vocabulary: hyper.vocabulary()? as u128, heads, step, kept, indexer_heads })
    }

    /// Values for each token: the stream, its norm, and the largest step.
    fn values(&self) -> u128 {
        2 * self.width + self.step
    }
}

/// Gate and up projection; of a mixture those of the chosen experts, or one of them with what comes down again.
fn feed_forward(hyper: &Hyper, width: u128) -> Result<u128> {
    let layers = memory(hyper)?.len();
    let dense = match hyper.has("feed_forward_length") {
        true => hyper.counts("feed_forward_length", layers)?.into_iter().max().unwrap_or(0) as u128,
        false => 0,
    };
    let Some(used) = hyper.optional_count("expert_used_count")? else { return Ok(2 * dense) };
    let expert = hyper.optional_count("expert_feed_forward_length")?.map_or(dense, |inner| inner as u128);
    Ok((2 * dense).max(used as u128 * (2 * expert).max(expert + width)))
}

/// Queries, keys and values of a delta network before and after the short convolution, and its gate.
fn delta(hyper: &Hyper) -> Result<u128> {
    let count = |key| hyper.count(key).map(|count| count as u128);
    let values = count("ssm.inner_size")?;
    let columns = 2 * count("ssm.group_count")? * count("ssm.state_size")? + values;
    Ok(2 * columns + values)
}

fn llama_cpp(model: &Model, run: &Run, device: &Device) -> Result<Vec<Buffer>> {
    let tokens = u128::from(run.micro_batch());
    let logits = 4 * model.vocabulary;
    // A mask for each size of cache, and for an indexer its own, with the scores and what becomes of them.
    let mut masks: u128 = 0;
    let (mut indexer_low, mut indexer_high): (u128, u128) = (0, 0);
    let mut counted = Vec::new();
    for &(memory, cells, _) in &model.kept {
        let window = matches!(memory, Memory::Heads { window: Some(_), .. });
        if cells > 0 && !counted.contains(&window) {
            counted.push(window);
            masks += 2 * cells * tokens;
        }
        if let Memory::Latent { indexer: Some(_), .. } = memory {
            (indexer_low, indexer_high) = (6 * cells * tokens, 24 * cells * tokens);
        }
    }
    let values = 4 * tokens * model.values();
    let copies = if device.shares_layers { PIPELINE_COPIES } else { 1 };
    let low = masks + indexer_low + values;
    // All logits where a tool asks for them (llama-perplexity, llama-cli); the server asks for one of each sequence.
    let high = (masks + 4 * tokens * model.width) * copies
        + indexer_high
        + (values * HELD_TENTHS / 10).max(tokens * logits + values);
    let basis = format!(
        "{tokens} tokens of {} values in the largest step, up to {}.{} times that; masks of {masks} bytes; flash attention",
        model.values(),
        HELD_TENTHS / 10,
        HELD_TENTHS % 10
    );
    let mut all = vec![
        buffer(
            "output",
            exactly(logits * u128::from(run.parallel))?,
            "logits of one token of each sequence".into(),
        ),
        buffer("compute", range(low, high)?, basis),
    ];
    if device.largest_on_host > 0 {
        let one = u128::from(device.largest_on_host);
        let basis = "experts of one projection, copied from host memory for prompts".to_owned();
        all.push(buffer("weights from the host", range(one, 2 * one)?, basis));
    }
    Ok(all)
}

fn mlx(model: &Model, run: &Run) -> Result<Vec<Buffer>> {
    let tokens = u128::from(run.context.min(PREFILL_STEP)) * u128::from(run.parallel);
    let context = u128::from(run.context);
    let values = 2 * tokens * model.values();
    let (mut scores_low, mut scores_high): (u128, u128) = (0, 0);
    for &(memory, cells, _) in &model.kept {
        let (low, high) = match memory {
            // Fused for these lengths (`has_fused_kernel` in `mlx/backend/metal/scaled_dot_product_attention.cpp`), not when
            // quantized.
            Memory::Heads { key, value, .. } => {
                let is_fused = key == value && [64, 72, 80, 96, 128, 192, 256].contains(&key);
                let one = 2 * model.heads * tokens * cells;
                if is_fused && run.kv == KvType::F16 { (0, 0) } else { (one, 2 * one) }
            }
            // Scores of the rotated dimensions, masked; keys and values of all heads (`mlx_lm/models/deepseek_v3.py`).
            Memory::Latent { latent, indexer, .. } => {
                let one = 2 * model.heads * tokens * context;
                let heads = 4 * model.heads * context * u128::from(run.parallel) * latent as u128;
                let indexer = if indexer.is_some() { 2 * model.indexer_heads * tokens * context } else { 0 };
                (one + indexer, 2 * one + 2 * indexer + heads)
            }
            Memory::Of(_) | Memory::State { .. } => (0, 0),
        };
        (scores_low, scores_high) = (scores_low.max(low), scores_high.max(high));
    }
    let grown = model.kept.iter().map(|&(.., bytes)| u128::from(bytes)).max().unwrap_or(0);
    let logits = 4 * model.vocabulary * u128::from(run.parallel);
    let step = format!("{tokens} tokens of a prompt at once");
    Ok(vec![
        buffer("logits", range(logits, 2 * logits)?, "logits and ln p of one token of each sequence".into()),
        buffer(
            "activations",
            range(values, values * HELD_TENTHS / 10)?,
            format!("{step}, {} values each in the largest step", model.values()),
        ),
        buffer("scores", range(scores_low, scores_high)?, format!("{step}, where attention isn't fused")),
        buffer("growth", range(0, grown)?, "one layer's cache, copied when it grows".into()),
    ])
}

pub(super) fn buffer(name: &'static str, bytes: Bytes, basis: String) -> Buffer {
    Buffer { name, bytes, basis }
}

pub(super) fn range(low: u128, high: u128) -> Result<Bytes> {
    let count = |bytes: u128| u64::try_from(bytes).map_err(|_| beyond("a buffer"));
    Ok(Bytes { low: count(low)?, high: count(high)? })
}

pub(super) fn exactly(bytes: u128) -> Result<Bytes> {
    range(bytes, bytes)
}

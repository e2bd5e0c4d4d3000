//! What vLLM takes of a card.
//!
//! It takes a share of each card, loads the weights, repacks them for its Marlin kernels, runs the model once on as many tokens as it
//! will ever compute at once, and fills what is then left of its share with blocks for keys and values
//! (`Worker.determine_available_memory` in `vllm/v1/worker/gpu_worker.py`). So two peaks must fit: weights with what repacking holds
//! besides, and weights with the cache and the engine's buffers. Several cards divide heads and projections among them; norms, routers
//! and the down-projections of latent attention are on all of them. Nothing lies in the host's memory.
//!
//! Paths are those of vllm-project/vllm on GitHub, read in 2026.

use std::collections::BTreeMap;

use formats::{OutputTensor, output::Class};
use kernels::{Format, w4a16};
use verify::{families::memory::Memory, hyper::Hyper};

use super::{
    Budget, Buffer, Bytes, LayerCache, Run,
    buffers::{HELD_TENTHS, Model, buffer, driver, exactly, range},
};
use crate::{
    error::{Error, Result},
    scheme::fused,
    target::{CARD_RESERVE, Device, DeviceKind},
};

/// Percent of a card that vLLM is told to take: its default until 2026, since then 92 (`gpu_memory_utilization` in
/// `vllm/config/cache.py`). The rest is for what it doesn't measure.
const SHARE: u64 = 90;

/// Tokens that are computed at once: vLLM's default for a server on cards of less than 70 GiB (`get_batch_defaults` in
/// `vllm/engine/arg_utils.py`); on others it is told so, for more takes memory from the cache.
const BATCHED_TOKENS: u64 = 2048;

/// Of Marlin's partial sums: multiprocessors of the largest card (RTX PRO 6000: 188), rows and columns of a tile
/// (`max_c_tmp_size` in `csrc/quantization/marlin/marlin.cu`), with experts four blocks on each (`csrc/moe/marlin_moe_wna16/ops.cu`).
const PROCESSORS: u128 = 192;
const TILE: u128 = 64 * 256;
const EXPERT_BLOCKS: u128 = 4;

/// Bytes of the locks of one linear, a word for each multiprocessor (`marlin_make_workspace_new` in
/// `vllm/model_executor/layers/quantization/utils/marlin_utils.py`), as PyTorch rounds them up.
const LOCKS: u128 = 1024;

/// What Marlin's kernels want of a row (`GPTQ_MARLIN_MIN_THREAD_K` in `marlin_utils.py`).
const ROW: u64 = 128;

/// One CUDA graph: 24 to 28 MiB for each size (vllm-project/vllm, pull request 22897), 0.17 GiB for 7 and 0.36 GiB for 16
/// (noonghunna/club-3090, issue 127; gpustack/runner, pull request 251). Newer versions capture decoding twice, whole and in pieces.
const GRAPH: Bytes = Bytes { low: 23 << 20, high: 2 * (28 << 20) };

/// What cards that work together take for NCCL: 1.79 GiB more on each of two than on one (vllm-project/vllm, pull request 10511).
const NCCL: Bytes = Bytes { low: 0, high: 1_922_000_000 };

/// Tokens of a context that latent attention unfolds at once, at most (`determine_chunked_prefill_workspace_size` in
/// `vllm/model_executor/layers/attention/mla_attention.py`).
const UNFOLDED: u64 = 64 << 10;

impl Run {
    /// Tokens that vLLM computes at once: one of each sequence at least.
    pub fn batched_tokens(&self) -> u64 {
        BATCHED_TOKENS.max(self.parallel)
    }
}

/// What vLLM is told to take of a device, in percent of what it has; and the bytes that this is.
pub fn share(device: &Device) -> (u64, u64) {
    let percent = (u128::from(device.usable) * 100 / u128::from(device.memory.max(1))) as u64;
    let percent = percent.min(SHARE);
    // A driver shows less than makers state.
    let shown = match device.kind {
        DeviceKind::Card => device.memory.min(device.usable.saturating_add(CARD_RESERVE)),
        DeviceKind::Unified | DeviceKind::Host => device.usable,
    };
    let part = |percent: u64, bytes: u64| (u128::from(bytes) * u128::from(percent) / 100) as u64;
    (percent, part(percent, device.memory).min(part(SHARE, shown)))
}

/// Refuses a model that can't be divided among so many cards.
///
/// # Errors
/// [`Error::Usage`] with what can't be divided.
pub fn check_cards(hyper: &Hyper, cache: &[LayerCache], cards: u64) -> Result<()> {
    let refuse = |what: &str, count: u64| {
        let problem = format!(
            "vLLM can't divide {count} {what} among {cards} cards: choose a target of so many cards that it can, or --engine llama.cpp"
        );
        Err(Error::Usage(problem))
    };
    let heads = hyper.count("attention.head_count")? as u64;
    if !heads.is_multiple_of(cards) {
        return refuse("heads", heads);
    }
    for layer in cache {
        match layer.memory {
            Memory::Heads { heads, .. } => {
                let heads = heads as u64;
                if !heads.is_multiple_of(cards) && !cards.is_multiple_of(heads) {
                    return refuse("heads of keys", heads);
                }
            }
            Memory::State { .. } => {
                let heads = hyper.count("ssm.group_count")? as u64;
                if !heads.is_multiple_of(cards) {
                    return refuse("heads of linear attention", heads);
                }
            }
            Memory::Of(_) | Memory::Latent { .. } => {}
        }
    }
    Ok(())
}

/// What one of some cards holds of a model's tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of what latent attention absorbs into queries and values, in 16 bits: a copy, if the linear is quantized
    /// (`process_weights_after_loading` in `vllm/model_executor/layers/attention/mla_attention.py`).
    pub absorbed: u64,
    /// Bytes that are there besides while weights are repacked, after loading and before there is a cache.
    pub repacking: Bytes,
    /// Linears with codes, but for experts.
    pub linears: u64,
    /// Whether experts have codes.
    pub has_experts: bool,
}

impl Loaded {
    /// Of tensors with so many bytes each in their formats, on each of `cards`.
    pub fn new(
        outputs: &[OutputTensor],
        bytes: &[u64],
        formats: &[&'static Format],
        cache: &[LayerCache],
        cards: u64,
    ) -> Loaded {
        let kv_heads = cache.iter().filter_map(|layer| match layer.memory {
            Memory::Heads { heads, .. } => Some(heads as u64),
            _ => None,
        });
        let kv_heads = kv_heads.min().unwrap_or(cards).min(cards);
        let mut loaded = Loaded::default();
        // What is fused is repacked as one.
        let mut linears: BTreeMap<_, u64> = BTreeMap::new();
        let (mut experts, mut orders): (BTreeMap<_, u64>, u64) = (BTreeMap::new(), 0);
        for (index, output) in outputs.iter().enumerate().filter(|(_, output)| is_loaded(output, cache.len()))
        {
            let parts = match output.class {
                Class::AttnK | Class::AttnV => kv_heads,
                class if is_on_all(class) => 1,
                _ => cards,
            };
            let part = bytes[index].div_ceil(parts);
            loaded.weights += part;
            if w4a16::scales_of(formats[index]).is_none() {
                continue;
            }
            if output.class.is_routed_expert() {
                *experts.entry(output.layer).or_default() += part;
                orders += orders_of(output, cards);
                continue;
            }
            loaded.linears += 1;
            if matches!(output.class, Class::AttnKB | Class::AttnVB) {
                loaded.absorbed += (2 * output.elements()).div_ceil(parts);
            }
            let codes = formats[index].plane_bytes(0, output.elements()).unwrap_or(0).div_ceil(parts);
            let set = fused(output.class).map_or((index, 0), |set| (outputs.len(), set + 1));
            *linears.entry((output.layer, set)).or_default() += codes;
        }
        let largest = linears.into_values().max().unwrap_or(0);
        loaded.has_experts = !experts.is_empty();
        let experts = experts.into_values().max().unwrap_or(0);
        // A linear's codes are transposed first, and stay until both are done (`MarlinLinearKernel.process_weights_after_loading` in
        // `vllm/model_executor/layers/quantization/kernels/mixed_precision/marlin.py`). Experts of a layer are repacked whole; until
        // their turn comes, each layer holds orders of its columns that are never used (`create_weights` in
        // `compressed_tensors_moe_wna16_marlin.py`).
        let high = (2 * largest).max(if loaded.has_experts { experts + orders } else { 0 });
        loaded.repacking = Bytes { low: largest.max(experts), high };
        loaded
    }
}

/// Two orders of 32 bits for each input of an expert.
fn orders_of(output: &OutputTensor, cards: u64) -> u64 {
    match output.class {
        Class::ExpertDown => 8 * output.columns().div_ceil(cards),
        Class::ExpertGate => 8 * output.columns(),
        _ => 0,
    }
}

/// Whether every card has all of such a tensor.
fn is_on_all(class: Class) -> bool {
    matches!(
        class,
        Class::Vector
            | Class::Other
            | Class::Router
            | Class::RouterBias
            | Class::Decay
            | Class::AttnQA
            | Class::AttnKvA
    )
}

/// Layers that predict further tokens are not loaded, unless they are asked for. Encoders are, and have layers of their own, in
/// whatever number.
fn is_loaded(output: &OutputTensor, layers: usize) -> bool {
    let is_encoder = output.name.contains("vision") || output.name.contains("audio");
    let mut parts = output.name.split('.').skip_while(|part| *part != "layers").skip(1);
    let is_beyond =
        parts.next().and_then(|part| part.parse().ok()).is_some_and(|layer: usize| layer >= layers);
    let predicts = output.name.split('.').any(|part| part == "mtp") || is_beyond;
    is_encoder || !predicts
}

/// What of a layer's cache is on each of `cards`: heads are divided, latents are on all of them.
pub fn part(layer: &LayerCache, cards: u64) -> LayerCache {
    let parts = match layer.memory {
        Memory::Heads { heads, .. } => cards.min(heads as u64).max(1),
        Memory::State { .. } => cards,
        Memory::Of(_) | Memory::Latent { .. } => 1,
    };
    LayerCache { bytes: layer.bytes.div_ceil(parts), ..*layer }
}

/// Everything on each of `cards`.
///
/// # Errors
/// As [`cache`](super::cache()), and if there is more than fits 64 bits.
pub fn budget(hyper: &Hyper, run: &Run, cache: &[LayerCache], loaded: &Loaded, cards: u64) -> Result<Budget> {
    let cache: Vec<LayerCache> = cache.iter().map(|layer| part(layer, cards)).collect();
    let mut all = buffers(hyper, &Model::read(hyper, run)?, run, cards)?;
    let padding = padding(&cache);
    if padding > 0 {
        let basis = "layers that groups of equal length lack".to_owned();
        all.push(buffer("padding", Bytes::exactly(padding), basis));
    }
    if loaded.linears > 0 {
        let locks = LOCKS * u128::from(loaded.linears);
        let blocks = if loaded.has_experts { EXPERT_BLOCKS } else { 1 };
        let sums = 4 * PROCESSORS * blocks * TILE;
        let basis = "Marlin's locks, and sums in single precision of up to 192 multiprocessors".to_owned();
        all.push(buffer("workspace", range(locks, locks + sums)?, basis));
    }
    if loaded.absorbed > 0 {
        let basis = "projections that latent attention absorbs, in 16 bits".to_owned();
        all.push(buffer("absorbed", Bytes::exactly(loaded.absorbed), basis));
    }
    if cards > 1 {
        all.push(buffer("communication", NCCL, "NCCL, as it was measured on two cards".to_owned()));
    }
    // Only what more there is than what comes later: they are never there together.
    let later = Budget::new(0, &cache, all.clone(), 0).total();
    let Bytes { low, high } = loaded.repacking;
    let more = Bytes { low: low.saturating_sub(later.low), high: high.saturating_sub(later.high) };
    let basis = format!("{high} bytes while weights are repacked, before there are cache and other buffers");
    all.push(buffer("repacking", more, basis));
    all.push(driver());
    Ok(Budget::new(loaded.weights, &cache, all, 0))
}

/// Bytes of the layers that are missing in the last group of each kind. Kinds of attention have groups of the same number of layers,
/// and every block has room for a whole group: as many as the rarest kind has, or as the most frequent if that has less than half more
/// (`_get_kv_cache_groups_uniform_page_size` in `vllm/v1/core/kv_cache_utils.py`).
fn padding(cache: &[LayerCache]) -> u64 {
    let mut kinds: Vec<(Memory, u64, u64)> = Vec::new();
    for layer in cache.iter().filter(|layer| layer.bytes > 0) {
        match kinds.iter_mut().find(|(memory, ..)| *memory == layer.memory) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((layer.memory, 1, layer.bytes)),
        }
    }
    let counts = || kinds.iter().map(|&(_, count, _)| count);
    let (Some(least), Some(most)) = (counts().min(), counts().max()) else { return 0 };
    let group = if kinds.len() > 1 && 2 * most < 3 * least { most } else { least };
    kinds.iter().map(|&(_, count, bytes)| (count.next_multiple_of(group) - count).saturating_mul(bytes)).sum()
}

/// What the profiled run and the captured graphs take on each of `cards`.
pub(super) fn buffers(hyper: &Hyper, model: &Model, run: &Run, cards: u64) -> Result<Vec<Buffer>> {
    let (tokens, sequences) = (u128::from(run.batched_tokens()), u128::from(run.parallel));
    let values = 2 * model.width + model.step.div_ceil(u128::from(cards));
    let activations = 2 * tokens * values;
    let logits = model.vocabulary * sequences;
    let graphs = u128::from(graph_sizes(run.parallel));
    let mut all = vec![
        buffer(
            "activations",
            range(activations, activations * HELD_TENTHS / 10)?,
            format!(
                "{tokens} tokens of {values} values in 16 bits in the largest step, up to 2.5 times that"
            ),
        ),
        buffer(
            "logits",
            range(4 * logits, 24 * logits)?,
            "of one token of each sequence, in single precision; sorted and with probabilities".into(),
        ),
        buffer(
            "graphs",
            range(graphs * u128::from(GRAPH.low), graphs * u128::from(GRAPH.high))?,
            format!("CUDA graphs of {graphs} sizes, as users' logs show them"),
        ),
    ];
    if let (Some(latent), Some(key), Some(value)) = (
        hyper.optional_count("attention.kv_lora_rank")?,
        hyper.optional_count("attention.key_length_mla")?,
        hyper.optional_count("attention.value_length_mla")?,
    ) {
        let rotated = hyper.count("rope.dimension_count")?;
        let context = run.context.saturating_mul(8).max(run.parallel.saturating_mul(4 * 16));
        let context = u128::from(context.min(UNFOLDED).max(run.parallel.saturating_mul(16)));
        let heads = model.heads.div_ceil(u128::from(cards)) * (key.saturating_sub(rotated) + value) as u128;
        let bytes = 2 * context * (heads + (latent + rotated) as u128);
        let basis = format!("latents of {context} tokens, and the keys and values that they unfold to");
        all.push(buffer("context", exactly(bytes)?, basis));
    }
    Ok(all)
}

/// Sizes of batches that graphs are captured of: 1, 2, 4, every eighth to 256, every sixteenth to 512, up to twice the sequences
/// (`_set_cudagraph_sizes` in `vllm/config/vllm.py`).
fn graph_sizes(sequences: u64) -> u64 {
    let most = sequences.saturating_mul(2).min(512);
    [1, 2, 4].iter().filter(|&&size| size <= most).count() as u64
        + most.min(256) / 8
        + most.saturating_sub(256) / 16
}

/// Refuses codes that Marlin's kernels don't take on each of several cards, which share the inputs of some linears out among them.
///
/// # Errors
/// [`Error::Usage`] with the tensor.
pub fn check_rows(outputs: &[OutputTensor], formats: &[&'static Format], cards: u64) -> Result<()> {
    let divided =
        |class| matches!(class, Class::AttnOutput | Class::FfnDown | Class::SharedDown | Class::ExpertDown);
    for (output, format) in
        outputs.iter().zip(formats).filter(|(_, format)| w4a16::scales_of(format).is_some())
    {
        let (columns, cards) = (output.columns(), if divided(output.class) { cards } else { 1 });
        let least = if output.class.is_routed_expert() { 64 } else { ROW }.max(format.block as u64);
        if !columns.is_multiple_of(cards * least) {
            return Err(Error::Usage(format!(
                "vLLM's kernels for {} want rows of a multiple of {least} on each card, and {} has {columns} for {cards}",
                format.name, output.name
            )));
        }
    }
    Ok(())
}

/// The run with no more tokens than vLLM allows: what the model was made for, times what its rotations are stretched by
/// (`_get_and_verify_max_len` in `vllm/config/model.py`).
///
/// # Errors
/// If metadata can't be.
pub fn allowed(hyper: &Hyper, run: &Run) -> Result<Run> {
    let Some(made_for) = hyper.optional_count("context_length")? else { return Ok(*run) };
    // YaRN stretches what the model was first trained on; Gemma 3 is made for what it says.
    let made_for = hyper.optional_count("rope.scaling.original_context_length")?.unwrap_or(made_for);
    let factor = hyper.optional_number("rope.scaling.factor")?.filter(|_| !hyper.arch.starts_with("gemma3"));
    let stretched = factor.unwrap_or(1.0).max(1.0);
    Ok(Run { context: run.context.min((made_for as f64 * stretched) as u64), ..*run })
}

/// The engine's options.
pub fn flags(run: &Run, percent: u64, cards: u64) -> Vec<String> {
    let mut flags: Vec<String> = Vec::new();
    let mut add = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    add("--max-model-len", run.context.to_string());
    add("--gpu-memory-utilization", format!("{}.{:02}", percent / 100, percent % 100));
    add("--max-num-seqs", run.parallel.to_string());
    add("--max-num-batched-tokens", run.batched_tokens().to_string());
    if run.kv_name() != "f16" {
        add("--kv-cache-dtype", run.kv_name().to_owned());
    }
    if cards > 1 {
        add("--tensor-parallel-size", cards.to_string());
    }
    flags
}

#[cfg(test)]
mod tests;

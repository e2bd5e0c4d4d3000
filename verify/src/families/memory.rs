//! What each layer keeps of the tokens it has seen, from hyper-parameters alone: what fills an engine's cache. The kinds of layers
//! are told apart by the functions that read the graphs.

use super::attention::plain;
use super::{common, gemma, gemma4, gpt_oss, llama, qwen3_5};
use crate::error::{Error, Result};
use crate::hyper::Hyper;
use crate::ops::Attention;

/// Models with more layers are refused (llama.cpp: `LLAMA_MAX_LAYERS`).
const MOST_LAYERS: usize = 512;

/// What a layer keeps, in values for each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// For each token a key and a value of each head.
    Heads {
        /// Heads of keys and values.
        heads: usize,
        /// Length of a key.
        key: usize,
        /// Length of a value.
        value: usize,
        /// Only so many tokens are attended to, if not all.
        window: Option<usize>,
    },
    /// Nothing: it attends to what that layer keeps.
    Of(usize),
    /// For each token what the keys and values of all heads come from (multi-head latent attention).
    Latent {
        /// Length of the latent.
        latent: usize,
        /// Rotated dimensions of the keys.
        rotated: usize,
        /// Length of the indexer's key, of which there is one for each token, where the layer has an indexer.
        indexer: Option<usize>,
    },
    /// The state of a delta network, however many tokens there were.
    State {
        /// Inputs of the short convolution: the last tokens but the newest, times columns.
        convolution: usize,
        /// Keys × values of all heads.
        state: usize,
    },
}

/// What each layer of a model keeps; layers for predicting further tokens (MTP) are left out.
///
/// # Errors
/// [`Error::NoGraph`] for a family that isn't known; [`Error::Hyper`] if a hyper-parameter is missing or can't be.
pub fn memory(hyper: &Hyper) -> Result<Vec<Memory>> {
    let count = common::blocks(hyper)?;
    // Before anything is made for each layer.
    if count > MOST_LAYERS {
        return Err(hyper
            .error("block_count", format!("is {count}, more layers than the {MOST_LAYERS} of llama.cpp")));
    }
    let width = hyper.count("embedding_length")?;
    let with_windows = |windows: Vec<Option<usize>>| {
        let attention = plain(hyper, width)?;
        Ok(windows.into_iter().map(|window| heads(&Attention { window, ..attention.clone() })).collect())
    };
    match hyper.arch.as_str() {
        "llama" | "qwen2" | "qwen3" | "qwen3moe" | "phi3" | "smollm3" | "olmo2" | "glm4moe"
        | "minimax-m2" => Ok(vec![heads(&llama::attention(hyper, width)?); count]),
        "deepseek2" | "mistral4" | "glm-dsa" => latents(hyper, count),
        "gemma2" | "gemma3" => with_windows(gemma::layer_windows(hyper, count)?),
        "gpt-oss" => with_windows(gpt_oss::layer_windows(hyper, count)?),
        "gemma4" => {
            let one = |(attention, source)| match source {
                Some(layer) => Memory::Of(layer),
                None => heads(&attention),
            };
            Ok(gemma4::attentions(hyper, count)?.into_iter().map(one).collect())
        }
        "qwen35" | "qwen35moe" => {
            let (state, attention) = (delta(hyper)?, heads(&plain(hyper, width)?));
            let one = |has_state| if has_state { state } else { attention };
            Ok(qwen3_5::has_state(hyper, count)?.into_iter().map(one).collect())
        }
        arch => Err(Error::NoGraph { arch: arch.to_owned() }),
    }
}

fn heads(attention: &Attention) -> Memory {
    let &Attention { kv_heads, key, value, window, .. } = attention;
    Memory::Heads { heads: kv_heads, key, value, window }
}

fn latents(hyper: &Hyper, count: usize) -> Result<Vec<Memory>> {
    let latent = hyper.count("attention.kv_lora_rank")?;
    let rotated = hyper.count("rope.dimension_count")?;
    let has_indexer = indexers(hyper, count)?;
    let key = hyper.optional_count("attention.indexer.key_length")?;
    let one = |has_indexer| Memory::Latent { latent, rotated, indexer: key.filter(|_| has_indexer) };
    Ok(has_indexer.into_iter().map(one).collect())
}

/// Which layers run an indexer of their own (llama.cpp: `llama_model_glm_dsa::load_arch_hparams`): stated; or all, but of GLM 5.2,
/// known by its context of 2²⁰ tokens, the first two and then every fourth.
fn indexers(hyper: &Hyper, count: usize) -> Result<Vec<bool>> {
    if let Some(flags) = hyper.flags("attention.indexer.types", count)? {
        return Ok(flags);
    }
    let is_long = hyper.optional_count("context_length")?.is_some_and(|length| length >= 1 << 20);
    Ok((0..count).map(|layer| !is_long || layer < 2 || layer % 4 == 2).collect())
}

fn delta(hyper: &Hyper) -> Result<Memory> {
    let sizes = qwen3_5::DeltaSizes::read(hyper)?;
    let columns = sizes.key_heads.checked_mul(2 * sizes.key).and_then(|keys| keys.checked_add(sizes.values));
    let convolution = columns.and_then(|columns| columns.checked_mul(sizes.taps - 1));
    match convolution.zip(sizes.key.checked_mul(sizes.values)) {
        Some((convolution, state)) => Ok(Memory::State { convolution, state }),
        None => Err(hyper.error("ssm.conv_kernel", "times the keys and values is more than any memory")),
    }
}

#[cfg(test)]
mod tests {
    use formats::gguf::Metadata;

    use super::*;

    fn hyper(arch: &str, counts: &[(&str, u32)]) -> Hyper {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", arch);
        for (key, count) in counts {
            metadata.set(format!("{arch}.{key}"), *count);
        }
        Hyper::new(metadata, "model").expect("architecture")
    }

    const SMALL: [(&str, u32); 4] = [
        ("block_count", 4),
        ("embedding_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];

    #[test]
    fn windows_are_where_the_graph_has_them() {
        let window = |memory: Memory| match memory {
            Memory::Heads { heads: 2, key: 16, value: 16, window } => window,
            other => panic!("{other:?}"),
        };
        let model = |arch: &str, more: &[(&str, u32)]| {
            let found = memory(&hyper(arch, &[&SMALL[..], more].concat())).expect("memory");
            found.into_iter().map(window).collect::<Vec<_>>()
        };
        assert_eq!(model("llama", &[]), [None; 4]);
        assert_eq!(model("gemma2", &[]), [Some(4096), None, Some(4096), None]);
        assert_eq!(model("gpt-oss", &[("attention.sliding_window", 8)]), [Some(8), None, Some(8), None]);
        let pattern = [("attention.sliding_window", 8), ("attention.sliding_window_pattern", 3)];
        assert_eq!(model("gemma3", &pattern), [Some(8), Some(8), None, Some(8)]);
    }

    #[test]
    fn layers_for_further_tokens_are_left_out() {
        let found = memory(&hyper("glm4moe", &[&SMALL[..], &[("nextn_predict_layers", 1)]].concat()));
        assert_eq!(found.expect("memory").len(), 3);
    }

    #[test]
    fn indexers_are_where_llama_cpp_has_them() {
        let mla = [
            &SMALL[..],
            &[
                ("attention.kv_lora_rank", 32),
                ("rope.dimension_count", 8),
                ("attention.indexer.key_length", 16),
            ],
        ]
        .concat();
        let of = |more: &[(&str, u32)]| {
            let many = [&mla[..], &[("block_count", 8)], more].concat();
            let is =
                |kept: Memory| matches!(kept, Memory::Latent { latent: 32, rotated: 8, indexer: Some(16) });
            memory(&hyper("glm-dsa", &many)).expect("memory").into_iter().map(is).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [true; 8]);
        assert_eq!(of(&[("context_length", 1 << 20)]), [true, true, true, false, false, false, true, false]);
    }

    #[test]
    fn what_cant_be_is_refused() {
        let problem = |arch: &str, more: &[(&str, u32)]| {
            memory(&hyper(arch, &[&SMALL[..], more].concat())).expect_err("refused").to_string()
        };
        assert!(problem("llama", &[("block_count", u32::MAX)]).contains("is 4294967295, more layers than"));
        assert!(problem("llama", &[("attention.head_count_kv", 0)]).contains("is 0 for 4 heads"));
        assert!(problem("mamba", &[]).contains("`mamba`"));
        let sizes =
            ["ssm.state_size", "ssm.group_count", "ssm.inner_size", "ssm.time_step_rank", "ssm.conv_kernel"];
        let huge: Vec<_> = sizes.iter().map(|&key| (key, u32::MAX)).collect();
        assert!(problem("qwen35", &huge).contains("more than any memory"));
    }
}

//! SmolLM3: Llama's graph without rotation in every fourth layer.

use super::builder::Builder;
use super::{Family, Target, llama};
use crate::config::ModelConfig;
use crate::error::Result;

pub(super) const SMOLLM3: Family =
    Family { model_type: "smollm3", arch: "smollm3", tensors, metadata: llama::metadata };

/// What llama.cpp's graph has built in.
const INTERVAL: u32 = 4;

fn tensors(b: &mut Builder) -> Result<()> {
    if b.target == Target::Gguf {
        check_interval(b.config)?;
    }
    llama::tensors(b)
}

/// Layers without rotation are where llama.cpp expects them. (In `no_rope_layers`, which comes before the interval, 1 stands for
/// a layer with it.)
fn check_interval(config: &ModelConfig) -> Result<()> {
    let rotates = |layer: u32, interval: u32| !(layer + 1).is_multiple_of(interval);
    let (key, same) = if let Some(list) = config.keys.integers("no_rope_layers")? {
        let expected = (0..config.layers).map(|layer| u32::from(rotates(layer, INTERVAL)));
        ("no_rope_layers", list.into_iter().eq(expected))
    } else {
        let key = "no_rope_layer_interval";
        (key, config.keys.optional_size(key)?.is_none_or(|interval| interval == u64::from(INTERVAL)))
    };
    if same {
        return Ok(());
    }
    let problem = format!(
        "asks for something else than no rotation in every {INTERVAL}th layer, which llama.cpp's smollm3 can't run"
    );
    Err(config.error(key, problem))
}

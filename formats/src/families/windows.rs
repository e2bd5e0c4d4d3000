//! Layers whose attention sees only a window of the last tokens, between layers that see all.

use super::Keys;
use crate::config::ModelConfig;
use crate::error::Result;

/// For each layer, whether its attention has a window: by `layer_types`, or where the file has none, all but every
/// `sliding_window_pattern`-th (`period` if the file doesn't say either).
///
/// # Errors
/// If `layer_types` names another kind of layer, or has not one for each layer.
pub(super) fn windows(config: &ModelConfig, period: u64) -> Result<Vec<bool>> {
    let Some(types) = config.keys.texts("layer_types")? else {
        let period = config.keys.optional_size("sliding_window_pattern")?.unwrap_or(period);
        return Ok((1..=u64::from(config.layers)).map(|n| !n.is_multiple_of(period)).collect());
    };
    if types.len() as u64 != u64::from(config.layers) {
        let problem = format!("has {} entries for {} layers", types.len(), config.layers);
        return Err(config.error("layer_types", problem));
    }
    let has_window = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => {
            let problem = format!("has `{other}`; known are sliding_attention, full_attention");
            Err(config.error("layer_types", problem))
        }
    };
    types.iter().map(has_window).collect()
}

/// States window and pattern for the architectures of which llama.cpp reads the pattern as one number: every n-th layer sees
/// all.
///
/// # Errors
/// If the layers have no such pattern.
pub(super) fn periodic(config: &ModelConfig, period: u64, keys: &mut Keys) -> Result<()> {
    let Some(size) = config.sliding_window else { return Ok(()) };
    let windows = windows(config, period)?;
    let first_full = windows.iter().position(|window| !window);
    // 0: all layers have a window.
    let period = first_full.map_or(0, |layer| layer as u64 + 1);
    let expected = |layer: usize| period == 0 || !(layer as u64 + 1).is_multiple_of(period);
    if let Some(layer) = (0..windows.len()).find(|&layer| windows[layer] != expected(layer)) {
        let problem =
            format!("breaks the pattern of every {period}-th layer at layer {layer}, as llama.cpp can't");
        return Err(config.error("layer_types", problem));
    }
    keys.count("attention.sliding_window", size)?;
    keys.count("attention.sliding_window_pattern", period)
}

//! Gemma 3: five of six layers have a window and a rotary base of their own; queries and keys are normed.

use super::builder::{Builder, RotaryOrder};
use super::common::Attention;
use super::{Family, Keys, gemma};
use crate::config::ModelConfig;
use crate::error::Result;

pub(super) const GEMMA3: Family = Family { model_type: "gemma3_text", arch: "gemma3", tensors, metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    gemma::tensors(b, &Attention { order: RotaryOrder::Halves, bias: false, qk_norm: true })
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    gemma::metadata(config, 6, keys)?;
    keys.number("rope.freq_base_swa", local_theta(config)?);
    Ok(())
}

/// Base of the rotary frequencies in layers with a window.
pub(super) fn local_theta(config: &ModelConfig) -> Result<f64> {
    let local = match config.keys.object("rope_parameters")? {
        Some(parameters) => parameters.object("sliding_attention")?,
        None => None,
    };
    let theta = match local {
        Some(local) => local.number("rope_theta")?,
        None => config.keys.number("rope_local_base_freq")?,
    };
    Ok(theta.unwrap_or(10_000.0))
}

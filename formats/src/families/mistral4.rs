//! Mistral 4: DeepSeek's latent attention, whose queries grow with the logarithm of the position, and a softmax router.

use super::builder::Builder;
use super::{Family, Keys, mla};
use crate::config::{ModelConfig, RopeScaling, Scoring};
use crate::error::Result;

pub(super) const MISTRAL4: Family = Family { model_type: "mistral4", arch: "mistral4", tensors, metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    mla::model(b, false, |_, _| Ok(()))
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    mla::metadata(config, keys, Scoring::Softmax)?;
    // The query at position p is multiplied by 1 + β · ln(1 + ⌊p / original context⌋).
    if let (Some(beta), RopeScaling::Yarn { original, .. }) = (temperature(config)?, &config.rope.scaling) {
        keys.number("attention.temperature_scale", beta);
        keys.count("attention.temperature_length", *original)?;
    }
    Ok(())
}

fn temperature(config: &ModelConfig) -> Result<Option<f64>> {
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(rope) = config.keys.object(key)? {
            return rope.number("llama_4_scaling_beta");
        }
    }
    Ok(None)
}

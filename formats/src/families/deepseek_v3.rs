//! DeepSeek V3 and R1: latent attention, a few dense layers, then experts with one shared among all tokens.

use super::builder::Builder;
use super::{Family, Keys, mla};
use crate::config::{ModelConfig, Scoring};
use crate::error::Result;

pub(super) const DEEPSEEK_V3: Family =
    Family { model_type: "deepseek_v3", arch: "deepseek2", tensors, metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    mla::model(b, true, |_, _| Ok(()))
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    mla::metadata(config, keys, Scoring::Sigmoid)
}

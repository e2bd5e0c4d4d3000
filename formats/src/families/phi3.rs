//! Phi 3, 3.5 and 4: Llama's graph with queries, keys and values in one matrix, and gate and up in another.
//!
//! Past the context of pretraining the long versions turn their heads by other frequencies (LongRoPE): both lists of divisors
//! are tensors in GGUF, and llama.cpp chooses by the context it is given (mlx-lm always takes the list for long ones). Their
//! sliding window is stated, but neither consumer applies it.

use super::builder::{Builder, Dim, same};
use super::{Family, Keys, common};
use crate::config::{ModelConfig, RopeScaling};
use crate::error::Result;
use crate::output::Class;

pub(super) const PHI3: Family = Family { model_type: "phi3", arch: "phi3", tensors, metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    let config = b.config;
    check_factors(config)?;
    let (hidden, inner) = (config.hidden_dim(), Dim(config.intermediate, "intermediate_size"));
    let both = Dim(2 * inner.0, "2 · intermediate_size");
    common::model(b, |b, _| {
        common::fused_attention(b)?;
        common::mlp_norm(b)?;
        b.linear(Class::FfnUp, same("mlp.gate_up_proj", "ffn_up"), both, hidden)?;
        b.linear(Class::FfnDown, same("mlp.down_proj", "ffn_down"), hidden, inner)
    })
}

/// There is a divisor for each pair of rotated dimensions.
fn check_factors(config: &ModelConfig) -> Result<()> {
    let RopeScaling::LongRope { short, long, .. } = &config.rope.scaling else { return Ok(()) };
    let pairs = config.rotary_width(1.0) / 2;
    for (key, list) in [("short_factor", short), ("long_factor", long)] {
        if list.len() as u64 != pairs {
            let problem =
                format!("has {} numbers, but a head {pairs} pairs of rotated dimensions", list.len());
            return Err(config.error(key, problem));
        }
    }
    Ok(())
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    common::metadata(config, keys)?;
    keys.count("rope.dimension_count", config.rotary_width(1.0))?;
    // 0 is how the converter says that there is none.
    keys.count("attention.sliding_window", config.sliding_window.unwrap_or(0))
}

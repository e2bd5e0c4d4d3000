//! MiniMax M2: grouped-query attention that rotates a part of each head and norms queries and keys over all heads together;
//! experts in every layer, chosen by sigmoid scores plus a bias.

use super::builder::{Builder, Dim, RotaryOrder};
use super::common::{self, Attention};
use super::{Family, Keys, mixtral};
use crate::config::{ModelConfig, Moe, Scoring};
use crate::error::Result;

pub(super) const MINIMAX_M2: Family =
    Family { model_type: "minimax_m2", arch: "minimax-m2", tensors, metadata };

fn moe(config: &ModelConfig) -> Result<&Moe> {
    config.moe.as_ref().ok_or_else(|| config.error("num_local_experts", "is missing"))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let moe = moe(b.config)?;
    let experts = Dim(moe.experts, "num_local_experts");
    common::model(b, |b, _| {
        common::attention(b, &Attention { order: RotaryOrder::Halves, bias: false, qk_norm: false })?;
        common::whole_qk_norm(b)?;
        common::mlp_norm(b)?;
        mixtral::mixture(b, moe)?;
        common::router_bias(b, "block_sparse_moe.e_score_correction_bias", experts)
    })
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    let moe = moe(config)?;
    common::metadata(config, keys)?;
    keys.count("expert_feed_forward_length", moe.intermediate)?;
    common::gating(moe.scoring.unwrap_or(Scoring::Sigmoid), keys)?;
    let rotated = config.keys.optional_size("rotary_dim")?;
    keys.count("rope.dimension_count", rotated.unwrap_or(config.rotary_width(1.0)))
}

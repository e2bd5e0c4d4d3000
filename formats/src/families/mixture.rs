//! DeepSeek V3's mixture, which other families took over: routed experts in all layers but the first, and one for all tokens.

use super::builder::{Builder, Dim, same};
use super::{Keys, common};
use crate::config::{Moe, Scoring};
use crate::error::Result;
use crate::output::Class;

/// Routed experts, and one for all tokens. mlx-lm's routers with a correction bias are no `Linear`.
pub(super) fn tensors(b: &mut Builder, moe: &Moe, bias: bool) -> Result<()> {
    let (hidden, experts) = (b.config.hidden_dim(), Dim(moe.experts, "n_routed_experts"));
    b.router(same("mlp.gate", "ffn_gate_inp"), experts, hidden, !bias)?;
    if bias {
        common::router_bias(b, "mlp.gate.e_score_correction_bias", experts)?;
    }
    common::experts(b, moe)?;
    if moe.shared > 0 {
        let inner = Dim(moe.intermediate * moe.shared, "moe_intermediate_size · n_shared_experts");
        b.linear(Class::SharedGate, same("mlp.shared_experts.gate_proj", "ffn_gate_shexp"), inner, hidden)?;
        b.linear(Class::SharedUp, same("mlp.shared_experts.up_proj", "ffn_up_shexp"), inner, hidden)?;
        b.linear(Class::SharedDown, same("mlp.shared_experts.down_proj", "ffn_down_shexp"), hidden, inner)?;
    }
    Ok(())
}

/// Its hyper-parameters; `scoring` is how the family's router scores where the file doesn't say.
pub(super) fn metadata(moe: &Moe, keys: &mut Keys, scoring: Scoring) -> Result<()> {
    keys.count("leading_dense_block_count", moe.first_dense.into())?;
    keys.count("expert_feed_forward_length", moe.intermediate)?;
    keys.count("expert_shared_count", moe.shared)?;
    common::gating(moe.scoring.unwrap_or(scoring), keys)?;
    keys.number("expert_weights_scale", moe.scale.unwrap_or(1.0));
    keys.flag("expert_weights_norm", moe.normalize.unwrap_or(true));
    Ok(())
}

//! Mixtral: Llama's attention, and experts in every layer.

use super::builder::{Builder, Dim, Module, same};
use super::{Family, common, llama};
use crate::config::Moe;
use crate::error::Result;
use crate::output::Class;

pub(super) const MIXTRAL: Family =
    Family { model_type: "mixtral", arch: "llama", tensors, metadata: llama::metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    let moe = b.config.moe.as_ref().ok_or_else(|| b.config.error("num_local_experts", "is missing"))?;
    common::model(b, |b, _| {
        common::attention(b, &llama::ATTENTION)?;
        common::mlp_norm(b)?;
        mixture(b, moe)
    })
}

/// Router and experts.
pub(super) fn mixture(b: &mut Builder, moe: &Moe) -> Result<()> {
    let experts = Dim(moe.experts, "num_local_experts");
    let (hidden, inner) = (b.config.hidden_dim(), Dim(moe.intermediate, "intermediate_size"));
    b.router(same("block_sparse_moe.gate", "ffn_gate_inp"), experts, hidden, true)?;
    for (class, source, mlx, gguf, rows, columns) in [
        (Class::ExpertGate, "w1", "block_sparse_moe.switch_mlp.gate_proj", "ffn_gate_exps", inner, hidden),
        (Class::ExpertUp, "w3", "block_sparse_moe.switch_mlp.up_proj", "ffn_up_exps", inner, hidden),
        (Class::ExpertDown, "w2", "block_sparse_moe.switch_mlp.down_proj", "ffn_down_exps", hidden, inner),
    ] {
        let one = |expert| format!("block_sparse_moe.experts.{expert}.{source}");
        b.experts(class, one, Module { source, mlx, gguf }, experts.0, rows, columns)?;
    }
    Ok(())
}

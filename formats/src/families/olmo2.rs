//! OLMo 2: norms come after attention and after the MLP, none before; queries and keys are normed over all heads together.

use super::Family;
use super::builder::{Builder, RotaryOrder, same};
use super::common::{self, Attention};
use crate::error::Result;

pub(super) const OLMO2: Family =
    Family { model_type: "olmo2", arch: "olmo2", tensors, metadata: common::metadata };

fn tensors(b: &mut Builder) -> Result<()> {
    let hidden = b.config.hidden_dim();
    common::model(b, |b, _| {
        common::projections(b, &Attention { order: RotaryOrder::Halves, bias: false, qk_norm: false })?;
        common::whole_qk_norm(b)?;
        b.norm(same("post_attention_layernorm", "post_attention_norm"), hidden)?;
        common::mlp(b)?;
        b.norm(same("post_feedforward_layernorm", "post_ffw_norm"), hidden)
    })
}

//! The order of a GGUF file's tensors: that in which llama.cpp's graphs read them (`src/models/*.cpp`), so that what is loaded
//! together lies together and a file that is mapped and run is read from front to back. llama-quantize orders by block and then
//! by name, the head before the first block; llama.cpp's converter keeps the checkpoint's order. All of them load alike.

use crate::output::OutputTensor;

/// What comes before the blocks. Names are without their `.weight`, `.bias` or `.scale`.
const BEFORE: &[&str] = &[
    "token_embd",
    "per_layer_token_embd",
    "per_layer_model_proj",
    "per_layer_proj_norm",
    "rope_freqs",
    "rope_factors_long",
    "rope_factors_short",
];

/// What is in a block. (The graphs read up-projections before gates or after them: both come before `down`.)
const BLOCK: &[&str] = &[
    "attn_norm",
    "attn_q_a",
    "attn_q_a_norm",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.k_norm",
    "indexer.proj",
    "attn_q_b",
    "attn_qkv",
    "attn_gate",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_q_norm",
    "attn_k_norm",
    "attn_kv_a_mqa",
    "attn_kv_a_norm",
    "attn_k_b",
    "attn_sinks",
    "attn_v_b",
    "ssm_beta",
    "ssm_alpha",
    "ssm_dt",
    "ssm_a",
    "ssm_conv1d",
    "ssm_norm",
    "ssm_out",
    "attn_output",
    "post_attention_norm",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "post_ffw_norm_1",
    "ffn_gate_inp",
    "exp_probs_b",
    "pre_ffw_norm_2",
    "ffn_gate_exps",
    "ffn_gate_up_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "post_ffw_norm_2",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ffn_gate_inp_shexp",
    "post_ffw_norm",
    "inp_gate",
    "proj",
    "post_norm",
    "layer_output_scale",
];

/// Before it come those of a block's tensors that only architectures unknown here have: most of them take attention's place.
const UNKNOWN: &str = "attn_output";

/// What comes after the blocks.
const AFTER: &[&str] = &["output_norm", "output"];

/// Sorts tensors with GGUF's names into the order of execution: embedding, blocks, final norm, head. Tensors whose names are
/// not known keep their order among themselves.
pub fn sort(tensors: &mut [OutputTensor]) {
    tensors.sort_by_cached_key(|tensor| {
        let (role, suffix) = split(tensor);
        let place = |list: &[&str], role: &str| list.iter().position(|known| *known == role);
        // Part, block, role, and for the unknown and what comes after a role's weight a place behind.
        match (tensor.layer, place(AFTER, role)) {
            (Some(layer), _) => match place(BLOCK, role) {
                Some(rank) => (1, layer, 2 * rank + 1, suffix != "weight"),
                None => (1, layer, 2 * place(BLOCK, UNKNOWN).unwrap_or_default(), false),
            },
            (None, Some(rank)) => (2, 0, rank, suffix != "weight"),
            (None, None) => (0, 0, place(BEFORE, role).unwrap_or(BEFORE.len()), suffix != "weight"),
        }
    });
}

/// A tensor's name within its block: what it is, and whether it is a weight, a bias or a scale.
fn split(tensor: &OutputTensor) -> (&str, &str) {
    let name = tensor.name.as_str();
    let inner = match tensor.layer {
        Some(_) => name.splitn(3, '.').nth(2).unwrap_or(name),
        None => name,
    };
    inner.rsplit_once('.').unwrap_or((inner, "weight"))
}

#[cfg(test)]
pub(crate) fn is_known(tensor: &OutputTensor) -> bool {
    let (role, _) = split(tensor);
    let lists = if tensor.layer.is_some() { [BLOCK, &[]] } else { [BEFORE, AFTER] };
    lists.concat().contains(&role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Class, Content};

    fn sorted(names: &[&str]) -> Vec<String> {
        let tensor = |name: &&str| OutputTensor {
            name: (*name).to_owned(),
            shape: vec![1],
            class: Class::Other,
            layer: name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok()),
            quantizable: true,
            content: Content::Values(vec![0.0]),
        };
        let mut tensors: Vec<_> = names.iter().map(tensor).collect();
        sort(&mut tensors);
        tensors.into_iter().map(|tensor| tensor.name).collect()
    }

    #[test]
    fn llama_quantizes_order_becomes_that_of_execution() {
        let found = sorted(&[
            "output.weight",
            "output_norm.weight",
            "rope_freqs.weight",
            "token_embd.weight",
            "blk.10.attn_k.bias",
            "blk.10.attn_k.weight",
            "blk.10.attn_norm.weight",
            "blk.2.attn_output.weight",
            "blk.2.exp_probs_b.bias",
            "blk.2.ffn_down_exps.weight",
            "blk.2.ffn_gate_exps.weight",
            "blk.2.ffn_gate_inp.weight",
            "blk.2.ffn_norm.weight",
            "blk.2.ffn_up_exps.weight",
            "blk.2.ffn_up_shexp.weight",
            "blk.2.indexer.attn_q_b.weight",
            "blk.2.attn_q_b.weight",
        ]);
        assert_eq!(
            found,
            [
                "token_embd.weight",
                "rope_freqs.weight",
                "blk.2.indexer.attn_q_b.weight",
                "blk.2.attn_q_b.weight",
                "blk.2.attn_output.weight",
                "blk.2.ffn_norm.weight",
                "blk.2.ffn_gate_inp.weight",
                "blk.2.exp_probs_b.bias",
                "blk.2.ffn_gate_exps.weight",
                "blk.2.ffn_up_exps.weight",
                "blk.2.ffn_down_exps.weight",
                "blk.2.ffn_up_shexp.weight",
                "blk.10.attn_norm.weight",
                "blk.10.attn_k.weight",
                "blk.10.attn_k.bias",
                "output_norm.weight",
                "output.weight",
            ]
        );
    }

    #[test]
    fn what_is_unknown_keeps_its_order() {
        let found = sorted(&[
            "new.weight",
            "token_embd.weight",
            "a.weight",
            "blk.0.ffn_up.weight",
            "blk.0.time_mix_w2",
            "blk.0.time_mix_w1",
            "blk.0.attn_norm.weight",
        ]);
        let block =
            ["blk.0.attn_norm.weight", "blk.0.time_mix_w2", "blk.0.time_mix_w1", "blk.0.ffn_up.weight"];
        assert_eq!(found[..3], ["token_embd.weight", "new.weight", "a.weight"]);
        assert_eq!(found[3..], block);
    }
}

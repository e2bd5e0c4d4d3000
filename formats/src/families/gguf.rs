//! A GGUF file as the source: its tensors keep their names; their types change, and their order becomes that of execution.

use crate::order;
use crate::output::{Class, Content, Map, OutputTensor, Part};
use crate::tensor::{TensorId, TensorSource};

/// One output tensor for each of the source's, in order of execution.
pub fn gguf_tensors(source: &dyn TensorSource) -> Vec<OutputTensor> {
    let tensors = source.tensors().iter().enumerate();
    let mut outputs: Vec<_> = tensors
        .map(|(id, meta)| {
            let part = Part {
                source: TensorId(id),
                columns: meta.columns(),
                rows: 0..meta.rows(),
                map: Map::Identity,
            };
            let class = class(&meta.name, meta.shape.len());
            OutputTensor {
                name: meta.name.clone(),
                shape: meta.shape.clone(),
                class,
                layer: meta.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok()),
                quantizable: quantizable(&meta.name, class),
                content: Content::Parts(vec![part]),
            }
        })
        .collect();
    order::sort(&mut outputs);
    outputs
}

/// What a GGUF tensor is for, by its name (`gguf-py/gguf/constants.py`, `TENSOR_NAMES`).
fn class(name: &str, dimensions: usize) -> Class {
    let role = name.strip_prefix("blk.").and_then(|rest| Some(rest.split_once('.')?.1)).unwrap_or(name);
    match role {
        "exp_probs_b.bias" => Class::RouterBias,
        _ if dimensions < 2 || !role.ends_with(".weight") || role.ends_with("_norm.weight") => Class::Vector,
        "token_embd.weight" | "per_layer_token_embd.weight" => Class::Embedding,
        "output.weight" => Class::Output,
        "ffn_gate_inp.weight" => Class::Router,
        "attn_q.weight" => Class::AttnQ,
        "attn_k.weight" => Class::AttnK,
        "attn_v.weight" => Class::AttnV,
        "attn_qkv.weight" => Class::AttnQkv,
        "attn_output.weight" => Class::AttnOutput,
        "attn_q_a.weight" => Class::AttnQA,
        "attn_q_b.weight" => Class::AttnQB,
        "attn_kv_a_mqa.weight" => Class::AttnKvA,
        "attn_k_b.weight" => Class::AttnKB,
        "attn_v_b.weight" => Class::AttnVB,
        "ffn_gate.weight" => Class::FfnGate,
        "ffn_up.weight" => Class::FfnUp,
        "ffn_down.weight" => Class::FfnDown,
        "ffn_gate_shexp.weight" => Class::SharedGate,
        "ffn_up_shexp.weight" => Class::SharedUp,
        "ffn_down_shexp.weight" => Class::SharedDown,
        "ffn_gate_exps.weight" | "ffn_gate_up_exps.weight" => Class::ExpertGate,
        "ffn_up_exps.weight" => Class::ExpertUp,
        "ffn_down_exps.weight" => Class::ExpertDown,
        _ => Class::Other,
    }
}

/// Whether llama.cpp's graphs take the tensor in a quantized type (`tensor_allows_quantization` in `llama-quant.cpp`).
fn quantizable(name: &str, class: Class) -> bool {
    const SMALL: &[&str] = &[
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv",
        "attn_rel_b",
        "position_embd",
        "token_types",
        "tid2eid",
        "indexer.k_proj",
        "indexer.q_proj",
        "time_mix_first",
        "time_mix_w",
        "time_mix_a",
        "time_mix_g1",
        "time_mix_g2",
        "time_mix_v0",
        "time_mix_v1",
        "time_mix_v2",
        "time_mix_decay_w",
        "time_mix_lerp_fused",
    ];
    match class {
        Class::Vector | Class::RouterBias | Class::Router => false,
        Class::Other => !SMALL.iter().any(|part| name.contains(part)),
        _ => true,
    }
}

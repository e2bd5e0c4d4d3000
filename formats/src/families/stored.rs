//! The tensors of a model that keeps the checkpoint's own names and shapes.

use super::{Target, builder::part, plan};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::output::{Class, Content, Map, OutputTensor, Part};
use crate::scales;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// Every tensor of the checkpoint as it is, for a container of Hugging Face's names: those of the language model in order of
/// execution, then what else there is (encoders, layers that predict further tokens). Only the linears of attention and of MLPs can
/// be quantized. Experts that lie stacked in one tensor become a matrix each, under the names that such models have where they don't.
/// Scales, and a head that is the embedding, are left out.
///
/// # Errors
/// As [`plan`], and [`Error::Config`](crate::Error::Config) for experts that are stacked in another way than most.
pub fn as_stored(config: &ModelConfig, source: &dyn TensorSource) -> Result<Vec<OutputTensor>> {
    let mut is_listed = vec![false; source.tensors().len()];
    let mut tensors = Vec::new();
    // Of the two containers the one whose values are the checkpoint's.
    for output in plan(config, source, Target::Mlx)? {
        let Content::Parts(parts) = &output.content else { continue };
        for (number, part) in parts.iter().enumerate() {
            let meta = source.meta(part.source);
            if output.class.is_routed_expert() && meta.shape.len() != 2 {
                let Some(expert) = expert(&output, number, part, meta) else {
                    let problem = format!(
                        "has experts that are stacked in one tensor, {} {:?}, in a way of its own; consumers of such containers \
                         want a matrix for each, named as they know it: choose --to gguf or --to mlx",
                        meta.name, meta.shape
                    );
                    return Err(config.error("model_type", problem));
                };
                is_listed[part.source.0] = true;
                tensors.push(expert);
            } else if !std::mem::replace(&mut is_listed[part.source.0], true) {
                tensors.push(whole(source, part.source, output.class, output.layer));
            }
        }
    }
    for (id, meta) in source.tensors().iter().enumerate() {
        let weight = scales::weight_of(source, &meta.name);
        let is_scale = weight.is_some_and(|weight| source.meta(weight).dtype == Dtype::F8E4M3)
            || (config.quantization.is_some() && scales::is_of_activations(&meta.name));
        let is_tied_head = config.tie == Some(true) && meta.name.ends_with("lm_head.weight");
        let is_left_out = is_scale || is_tied_head || meta.name.ends_with(".rotary_emb.inv_freq");
        if !is_listed[id] && !is_left_out {
            tensors.push(whole(source, TensorId(id), Class::Other, None));
        }
    }
    Ok(tensors)
}

/// A tensor of the checkpoint as it is.
fn whole(source: &dyn TensorSource, id: TensorId, class: Class, layer: Option<u32>) -> OutputTensor {
    let meta = source.meta(id);
    let matrix = meta.name.ends_with(".weight") && meta.shape.len() == 2;
    let content = Content::Parts(vec![part(id, meta.columns(), 0..meta.rows())]);
    let (name, shape) = (meta.name.clone(), meta.shape.clone());
    let quantizable = matrix && is_of_block(class);
    OutputTensor { name, shape, class, layer, quantizable, content }
}

/// One of the experts that lie in `mlp.experts.gate_up_proj` or `mlp.experts.down_proj`, row by row, as transformers stores them since
/// version 5; `None` if it lies otherwise.
fn expert(stack: &OutputTensor, number: usize, part: &Part, meta: &TensorMeta) -> Option<OutputTensor> {
    let (layer, _) = meta.name.rsplit_once(".mlp.experts.").filter(|(_, stacked)| {
        part.map == Map::Identity && ["gate_up_proj", "down_proj"].contains(stacked)
    })?;
    let projection = match stack.class {
        Class::ExpertGate => "gate_proj",
        Class::ExpertUp => "up_proj",
        _ => "down_proj",
    };
    Some(OutputTensor {
        name: format!("{layer}.mlp.experts.{number}.{projection}.weight"),
        shape: vec![part.rows.end - part.rows.start, part.columns],
        class: stack.class,
        layer: stack.layer,
        quantizable: true,
        content: Content::Parts(vec![part.clone()]),
    })
}

/// Whether it is a linear of attention or of an MLP, experts among them.
fn is_of_block(class: Class) -> bool {
    match class {
        Class::Embedding
        | Class::Output
        | Class::Vector
        | Class::Other
        | Class::RouterBias
        | Class::Decay
        | Class::Router => false,
        Class::AttnQ
        | Class::AttnK
        | Class::AttnV
        | Class::AttnQkv
        | Class::AttnOutput
        | Class::AttnQA
        | Class::AttnQB
        | Class::AttnKvA
        | Class::AttnKB
        | Class::AttnVB
        | Class::FfnGate
        | Class::FfnUp
        | Class::FfnDown
        | Class::SharedGate
        | Class::SharedUp
        | Class::SharedDown
        | Class::ExpertGate
        | Class::ExpertUp
        | Class::ExpertDown => true,
    }
}

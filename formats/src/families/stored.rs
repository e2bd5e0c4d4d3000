//! The tensors of a model that keeps the checkpoint's own names and shapes.

use super::{Target, builder::part, plan};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::output::{Class, Content, OutputTensor};
use crate::scales;
use crate::tensor::{Dtype, TensorId, TensorSource};

/// Every tensor of the checkpoint as it is, for a container of Hugging Face's names: those of the language model in order of
/// execution, then what else there is (encoders, layers that predict further tokens). Only the linears of attention and of MLPs can
/// be quantized. Scales, and a head that is the embedding, are left out.
///
/// # Errors
/// As [`plan`], and [`Error::Config`](crate::Error::Config) for experts that lie stacked in one tensor.
pub fn as_stored(config: &ModelConfig, source: &dyn TensorSource) -> Result<Vec<OutputTensor>> {
    let mut is_listed = vec![false; source.tensors().len()];
    let mut tensors = Vec::new();
    let mut list = |id: TensorId, class: Class, layer: Option<u32>| {
        let meta = source.meta(id);
        if std::mem::replace(&mut is_listed[id.0], true) {
            return;
        }
        let matrix = meta.name.ends_with(".weight") && meta.shape.len() == 2;
        let content = Content::Parts(vec![part(id, meta.columns(), 0..meta.rows())]);
        let (name, shape) = (meta.name.clone(), meta.shape.clone());
        let quantizable = matrix && is_of_block(class);
        tensors.push(OutputTensor { name, shape, class, layer, quantizable, content });
    };
    // Of the two containers the one whose values are the checkpoint's.
    for output in plan(config, source, Target::Mlx)? {
        let Content::Parts(parts) = &output.content else { continue };
        for part in parts {
            let meta = source.meta(part.source);
            if output.class.is_routed_expert() && meta.shape.len() != 2 {
                let problem = format!(
                    "has experts that are stacked in one tensor, {} {:?}; consumers of compressed-tensors want a matrix for \
                     each, and the checkpoint's tensors are only taken as they are: choose --to gguf or --to mlx",
                    meta.name, meta.shape
                );
                return Err(config.error("model_type", problem));
            }
            list(part.source, output.class, output.layer);
        }
    }
    for (id, meta) in source.tensors().iter().enumerate() {
        let weight = scales::weight_of(source, &meta.name);
        let is_scale = weight.is_some_and(|weight| source.meta(weight).dtype == Dtype::F8E4M3)
            || (config.quantization.is_some() && scales::is_of_activations(&meta.name));
        let is_tied_head = config.tie == Some(true) && meta.name.ends_with("lm_head.weight");
        if !is_scale && !is_tied_head && !meta.name.ends_with(".rotary_emb.inv_freq") {
            list(TensorId(id), Class::Other, None);
        }
    }
    Ok(tensors)
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

//! [`Builder`]: collects a family's output tensors, checking each source tensor's presence and shape on the way.

use std::ops::Range;

use super::Target;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::order;
use crate::output::{Class, Content, Map, OutputTensor, Part};
use crate::scales;
use crate::tensor::{TensorId, TensorSource};

/// A dimension and the configuration's words for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dim(pub u64, pub &'static str);

/// The three names of a module, within its block if there is one. The source's and MLX's have no `.weight`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module<'a> {
    /// In the checkpoint.
    pub source: &'a str,
    /// In an MLX folder.
    pub mlx: &'a str,
    /// In a GGUF file.
    pub gguf: &'a str,
}

/// A module that MLX calls what the checkpoint calls it.
pub(super) fn same<'a>(source: &'a str, gguf: &'a str) -> Module<'a> {
    Module { source, mlx: source, gguf }
}

/// Which rotary order the GGUF architecture's graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotaryOrder {
    /// Dimension i turns with i + n/2, as in the checkpoint (llama.cpp: NEOX).
    Halves,
    /// Dimension 2i turns with 2i + 1 (llama.cpp: NORM).
    Pairs,
}

/// Where a checkpoint keeps its language model, if it is a part of something that also sees or hears: what stands for
/// `model.`, and what comes before the head's name.
const NESTED: &[(&str, &str)] =
    &[("model.language_model.", ""), ("language_model.model.", "language_model.")];

pub(super) struct Builder<'a> {
    pub config: &'a ModelConfig,
    pub target: Target,
    /// What MLX's names begin with: where mlx-lm's model holds the language model as one of its parts, that part's name.
    pub mlx_root: &'static str,
    source: &'a dyn TensorSource,
    /// The entry of [`NESTED`] that the checkpoint follows.
    nested: Option<(&'static str, &'static str)>,
    layer: Option<u32>,
    /// What becomes of a norm's gain.
    pub norms: Map,
    used: Vec<bool>,
    tensors: Vec<OutputTensor>,
}

impl<'a> Builder<'a> {
    pub fn new(config: &'a ModelConfig, source: &'a dyn TensorSource, target: Target) -> Builder<'a> {
        let used = vec![false; source.tensors().len()];
        let is_nested =
            |(model, _): &&(&str, &str)| source.find(&format!("{model}embed_tokens.weight")).is_some();
        let nested = NESTED.iter().find(is_nested).copied();
        let mlx_root = if nested.is_some() { "language_model." } else { "" };
        let norms = Map::Identity;
        Builder { config, target, mlx_root, source, nested, layer: None, norms, used, tensors: Vec::new() }
    }

    /// From now on, norms are those of a model that multiplies by 1 + gain. GGUF has the sum.
    pub fn norms_plus_one(&mut self) {
        if self.target == Target::Gguf {
            self.norms = Map::PlusOne;
        }
    }

    /// Whether the source is an MLX folder: names are MLX's, experts are stacked, and what mlx-lm's `sanitize` does to values
    /// is done.
    pub fn source_is_mlx(&self) -> bool {
        self.source.is_mlx()
    }

    /// What the source calls a module.
    fn source_module<'m>(&self, module: Module<'m>) -> &'m str {
        if self.source_is_mlx() { module.mlx } else { module.source }
    }

    /// From now on, names are within this block (or the model itself).
    pub fn enter(&mut self, layer: Option<u32>) {
        self.layer = layer;
    }

    /// Whether the checkpoint has such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.source.find(&self.source_name(name)).is_some()
    }

    /// The checkpoint's name of a tensor.
    fn source_name(&self, name: &str) -> String {
        let name = self.plain_name(name);
        match (self.nested, name.strip_prefix("model.")) {
            (None, _) => name,
            (Some((model, _)), Some(rest)) => format!("{model}{rest}"),
            (Some((_, head)), None) => format!("{head}{name}"),
        }
    }

    /// Its name in a checkpoint that is a language model and nothing else.
    fn plain_name(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("model.layers.{layer}.{name}"),
            None => name.to_owned(),
        }
    }

    /// The target's name of a tensor.
    pub fn name(&self, module: Module, suffix: &str, quantizable: bool) -> String {
        match (self.target, self.layer) {
            (Target::Gguf, Some(layer)) => format!("blk.{layer}.{}{suffix}", module.gguf),
            (Target::Gguf, None) => format!("{}{suffix}", module.gguf),
            (Target::Mlx, _) => {
                let suffix = if quantizable { "" } else { suffix };
                format!("{}{}{suffix}", self.mlx_root, self.plain_name(module.mlx))
            }
        }
    }

    /// Looks a source tensor up and checks its shape.
    pub fn take(&mut self, name: &str, shape: &[Dim]) -> Result<TensorId> {
        let name = self.source_name(name);
        let Some(id) = self.source.find(&name) else {
            let hint =
                "the configuration asks for it; is a shard missing, or is this another model's config.json?"
                    .into();
            return Err(Error::MissingTensor { name, hint });
        };
        let found = &self.source.meta(id).shape;
        let expected: Vec<u64> = shape.iter().map(|dim| dim.0).collect();
        if *found != expected {
            let reason = shape.iter().map(|dim| dim.1).collect::<Vec<_>>().join(", ");
            return Err(Error::Shape { name, found: found.clone(), expected, reason });
        }
        self.used[id.0] = true;
        Ok(id)
    }

    /// Adds an output tensor.
    pub fn push(&mut self, name: String, class: Class, quantizable: bool, shape: &[u64], content: Content) {
        let (layer, shape) = (self.layer, shape.to_vec());
        self.tensors.push(OutputTensor { name, shape, class, layer, quantizable, content });
    }

    /// A norm's gain.
    pub fn norm(&mut self, module: Module, size: Dim) -> Result<()> {
        let name = self.name(module, ".weight", false);
        let id = self.take(&format!("{}.weight", self.source_module(module)), &[size])?;
        let gain = Part { map: self.norms, ..part(id, size.0, 0..1) };
        self.push(name, Class::Vector, false, &[size.0], Content::Parts(vec![gain]));
        Ok(())
    }

    /// Leaves a tensor out that some checkpoints have though the model doesn't use it.
    pub fn skip(&mut self, name: &str) {
        if let Some(id) = self.source.find(&self.source_name(name)) {
            self.used[id.0] = true;
        }
    }

    /// A vector, whose elements are reordered per head if `heads` are given.
    pub fn vector(
        &mut self,
        source: &str,
        name: String,
        class: Class,
        size: Dim,
        heads: Option<u64>,
    ) -> Result<()> {
        let id = self.take(source, &[size])?;
        let parts = match heads {
            None => vec![part(id, size.0, 0..1)],
            Some(heads) => rotary_parts(id, 1, heads, size.0 / heads),
        };
        self.push(name, class, false, &[size.0], Content::Parts(parts));
        Ok(())
    }

    /// A matrix [rows, columns], and its bias if the checkpoint has one.
    pub fn linear(&mut self, class: Class, module: Module, rows: Dim, columns: Dim) -> Result<()> {
        self.matrix(class, module, rows, columns, true, None)
    }

    /// The same for queries and keys: rows are reordered per head where the target's graph wants it.
    pub fn rotary(
        &mut self,
        class: Class,
        module: Module,
        heads: u64,
        rows: Dim,
        columns: Dim,
        order: RotaryOrder,
    ) -> Result<()> {
        let reorder = self.target == Target::Gguf && order == RotaryOrder::Pairs;
        self.matrix(class, module, rows, columns, true, reorder.then_some(heads))
    }

    /// A router's matrix. GGUF and some of MLX's models run it in full precision only.
    pub fn router(&mut self, module: Module, rows: Dim, columns: Dim, quantizable: bool) -> Result<()> {
        self.matrix(Class::Router, module, rows, columns, quantizable, None)
    }

    /// A matrix that llama.cpp doesn't quantize but mlx-lm does.
    pub fn unquantized_in_gguf(&mut self, module: Module, rows: Dim, columns: Dim) -> Result<()> {
        let quantizable = self.target == Target::Mlx;
        self.matrix(Class::Other, module, rows, columns, quantizable, None)
    }

    fn matrix(
        &mut self,
        class: Class,
        module: Module,
        rows: Dim,
        columns: Dim,
        quantizable: bool,
        heads: Option<u64>,
    ) -> Result<()> {
        let source = self.source_module(module);
        let id = self.take(&format!("{source}.weight"), &[rows, columns])?;
        let parts = match heads {
            None => vec![part(id, columns.0, 0..rows.0)],
            Some(heads) => rotary_parts(id, columns.0, heads, rows.0 / heads),
        };
        let name = self.name(module, ".weight", quantizable);
        self.push(name, class, quantizable, &[rows.0, columns.0], Content::Parts(parts));
        let bias = format!("{source}.bias");
        if self.has(&bias) {
            let name = self.name(module, ".bias", false);
            self.vector(&bias, name, Class::Vector, rows, heads)?;
        }
        Ok(())
    }

    /// The matrices of all experts, stacked: [experts, rows, columns]. `source` names one expert's; in an MLX folder they are
    /// stacked already.
    pub fn experts(
        &mut self,
        class: Class,
        source: impl Fn(u64) -> String,
        module: Module,
        experts: u64,
        rows: Dim,
        columns: Dim,
    ) -> Result<()> {
        if self.source_is_mlx() {
            return self.stacked(class, module, [Dim(experts, "number of experts"), rows, columns]);
        }
        let mut parts = Vec::new();
        for expert in 0..experts {
            let id = self.take(&format!("{}.weight", source(expert)), &[rows, columns])?;
            parts.push(part(id, columns.0, 0..rows.0));
        }
        let name = self.name(module, ".weight", true);
        self.push(name, class, true, &[experts, rows.0, columns.0], Content::Parts(parts));
        Ok(())
    }

    /// Matrices that the source has under MLX's name and in the shape wanted.
    pub fn stacked(&mut self, class: Class, module: Module, shape: [Dim; 3]) -> Result<()> {
        let id = self.take(&format!("{}.weight", module.mlx), &shape)?;
        let [count, rows, columns] = shape.map(|dim| dim.0);
        let name = self.name(module, ".weight", true);
        let parts = vec![part(id, columns, 0..count * rows)];
        self.push(name, class, true, &[count, rows, columns], Content::Parts(parts));
        Ok(())
    }

    /// A matrix per head (or expert), cut from the rows of one source tensor: of each head's `stride` rows those in `rows`.
    #[expect(clippy::too_many_arguments, reason = "what, called what, from where, and how")]
    pub fn per_head(
        &mut self,
        class: Class,
        module: Module,
        id: TensorId,
        heads: u64,
        stride: u64,
        rows: Range<u64>,
        columns: u64,
        map: Map,
    ) {
        let cut = |head: u64| head * stride + rows.start..head * stride + rows.end;
        let part = |head| Part { source: id, columns, rows: cut(head), map };
        let (rows, columns) = part(0).output_shape();
        let name = self.name(module, ".weight", true);
        self.push(name, class, true, &[heads, rows, columns], Content::Parts((0..heads).map(part).collect()));
    }

    /// The collected tensors in order of execution, if nothing of the checkpoint is left over.
    pub fn finish(mut self) -> Result<Vec<OutputTensor>> {
        let is_left = |(id, used): (usize, &bool)| {
            let name = &self.source.meta(TensorId(id)).name;
            (!used && !self.is_scale_of_used(name) && !self.is_left_out(name)).then_some(name.as_str())
        };
        let left: Vec<&str> = self.used.iter().enumerate().filter_map(is_left).collect();
        if left.is_empty() {
            if self.target == Target::Gguf {
                order::sort(&mut self.tensors);
            }
            return Ok(self.tensors);
        }
        let names = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let family = self.config.model_type.clone();
        Err(Error::UnknownTensors { family, count: left.len(), names })
    }

    /// FP8: the scales belong to their weight.
    fn is_scale_of_used(&self, name: &str) -> bool {
        scales::weight_of(self.source, name).is_some_and(|id| self.used[id.0])
    }

    /// What converted models do without: rotary tables that old checkpoints stored, the head of a model that uses its
    /// embedding for it, the layers that predict further tokens (MTP), which neither consumer needs for plain generation,
    /// the encoders of images and sound beside a language model, and scales of activations.
    fn is_left_out(&self, name: &str) -> bool {
        let config = self.config;
        let (model, head) = self.nested.unwrap_or(("model.", ""));
        let inner = name.strip_prefix(model);
        let layer = inner
            .and_then(|rest| rest.strip_prefix("layers."))
            .and_then(|rest| rest.split_once('.')?.0.parse::<u32>().ok());
        let mtp = config.layers..config.layers.saturating_add(config.mtp_layers);
        let is_head = name.strip_prefix(head).is_some_and(|name| name == "lm_head.weight");
        name.ends_with(".rotary_emb.inv_freq")
            || (config.quantization.is_some() && scales::is_of_activations(name))
            || (is_head && config.tie == Some(true))
            || layer.is_some_and(|layer| mtp.contains(&layer))
            || name.starts_with("mtp.")
            || (self.nested.is_some() && inner.is_none() && !is_head)
    }
}

/// Rows of a tensor as they are.
pub(super) fn part(source: TensorId, columns: u64, rows: Range<u64>) -> Part {
    Part { source, columns, rows, map: Map::Identity }
}

fn rotary_parts(source: TensorId, columns: u64, heads: u64, head: u64) -> Vec<Part> {
    let rows = |i: u64| i * head..(i + 1) * head;
    (0..heads).map(|i| Part { source, columns, rows: rows(i), map: Map::InterleaveHalves }).collect()
}

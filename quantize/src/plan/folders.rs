//! Jobs whose output is a folder of safetensors.

use std::fs;
use std::path::{Path, PathBuf};

use formats::{
    Layout, ModelConfig,
    families::{self, Target},
    folder,
    layout::OutputFile,
    linears::{self, Packing},
    mlx,
    output::{Class, OutputTensor},
};
use kernels::{Format, table, w4a16_asym};

use super::{Container, Model, Options, Plan, recipe, warnings, weighted};
use crate::{
    error::{Error, Result},
    job::Job,
    lossless::{self, Offer},
    mix::{self, ModelFacts},
    overrides::Overrides,
    recipe::Recipe,
    scheme::{linear_formats, own_float},
    store::Destination,
};

pub(super) fn checkpoint_to_mlx(
    model: Model,
    side_files: &[PathBuf],
    out: &Path,
    options: &Options,
) -> Result<Job> {
    let Model { source, config, scales, .. } = model;
    let outputs = families::plan(&config, source.as_ref(), Target::Mlx)?;
    let overrides = Overrides::mlx(&options.overrides)?;
    let weighted = weighted(options, |all| {
        all.over_checkpoint(&outputs, &families::plan(&config, source.as_ref(), Target::Gguf)?)
    })?;
    let facts = ModelFacts { importance: weighted.is_some(), ..ModelFacts::of_config(&config) };
    let choices = if options.is_lossless()? {
        let offer = Offer { container: "mlx", formats: table::MLX, one_for_all: false, rows: 1 };
        let plain = |tensor: &OutputTensor| Ok(mix::mlx_plain(tensor, config.dtype));
        lossless::choose(&offer, &outputs, (source.as_ref(), &scales), plain)?
    } else {
        mix::mlx_formats(&options.format, &outputs, config.dtype, &overrides)?
    };
    let recipe = recipe(options, source.as_ref(), &outputs, &choices, weighted.as_ref())?;
    let hash = recipe.hash();

    let tensors: Vec<mlx::Tensor<'_>> = outputs
        .iter()
        .zip(&choices.formats)
        .map(|(output, format)| mlx::Tensor {
            name: &output.name,
            module: output.quantizable,
            layer: output.layer,
            shape: &output.shape,
            format,
        })
        .collect();
    let metadata = [("halfbyte.recipe", hash.as_str())];
    let layout = mlx::layout(&tensors, &shards(&recipe, mlx::SHARD_SIZE, &metadata))?;
    let layout =
        with_side_files(layout, side_files, &config, |text| mlx::config(&config.path, text, &tensors))?;
    let warnings = warnings(options, source.as_ref(), &outputs, &choices.formats, weighted.as_ref());
    let plan = Plan { source, scales, outputs, weighted, facts, choices, recipe, warnings };
    Ok(plan.placed(layout, Destination::Folder(out.to_owned())))
}

/// To one of the containers that keep the checkpoint's own names.
pub(super) fn checkpoint_to_linears(
    model: Model,
    packing: &'static Packing,
    side_files: &[PathBuf],
    out: &Path,
    options: &Options,
) -> Result<Job> {
    let Model { source, config, scales, .. } = model;
    let outputs = families::as_stored(&config, source.as_ref())?;
    let overrides = Overrides::packed(&options.overrides, packing)?;
    let weighted = weighted(options, |all| {
        all.over_checkpoint(&outputs, &families::plan(&config, source.as_ref(), Target::Gguf)?)
    })?;
    let facts = ModelFacts { importance: weighted.is_some(), ..ModelFacts::of_config(&config) };
    let choices = if options.is_lossless()? {
        let offer = Offer {
            container: options.container.name(),
            formats: packing.formats,
            one_for_all: true,
            rows: packing.rows,
        };
        let plain = |tensor: &OutputTensor| own_float(tensor, source.as_ref());
        lossless::choose(&offer, &outputs, (source.as_ref(), &scales), plain)?
    } else {
        linear_formats(packing, &options.format, &outputs, source.as_ref(), config.dtype, &overrides)?
    };
    let recipe = recipe(options, source.as_ref(), &outputs, &choices, weighted.as_ref())?;
    let hash = recipe.hash();

    let all = outputs.iter().zip(&choices.formats);
    let tensors: Vec<_> = all.map(|(output, format)| tensor(output, format)).collect();
    let metadata = [("halfbyte.recipe", hash.as_str())];
    let layout = packing.layout(&tensors, &shards(&recipe, linears::SHARD_SIZE, &metadata))?;
    let layout =
        with_side_files(layout, side_files, &config, |text| packing.config(&config.path, text, &tensors))?;
    let mut warnings = warnings(options, source.as_ref(), &outputs, &choices.formats, weighted.as_ref());
    warnings.extend(experts_astray(options.container, &outputs, &choices.formats));
    let plan = Plan { source, scales, outputs, weighted, facts, choices, recipe, warnings };
    Ok(plan.placed(layout, Destination::Folder(out.to_owned())))
}

/// An output as a tensor of these containers.
pub(super) fn tensor<'a>(output: &'a OutputTensor, format: &'static Format) -> linears::Tensor<'a> {
    linears::Tensor {
        name: &output.name,
        linear: output.shape.len() == 2 && output.class != Class::Embedding,
        layer: output.layer,
        shape: &output.shape,
        format,
    }
}

/// A warning if there are experts that not every consumer loads (seen with transformers 5.19).
fn experts_astray(
    container: Container,
    outputs: &[OutputTensor],
    formats: &[&'static Format],
) -> Option<String> {
    let mut experts = outputs.iter().zip(formats).filter(|(output, _)| output.class.is_routed_expert());
    let (_, format) = experts.find(|(_, format)| format.block > 1)?;
    let advice = "if it is to load this model, choose --to compressed-tensors --format w4a16-g128";
    match container {
        Container::CompressedTensors if w4a16_asym::scales_of(format).is_none() => None,
        Container::CompressedTensors => {
            Some(format!("transformers can't load experts with zero points: {advice}"))
        }
        _ => Some(format!(
            "transformers does not load the experts of {} folders: it leaves them random, with no more than a warning; {advice}",
            container.title()
        )),
    }
}

/// How a folder is cut into shards.
fn shards<'a>(recipe: &'a Recipe, size: u64, metadata: &'a [(&'a str, &'a str)]) -> folder::Options<'a> {
    let shard_size = recipe.shard_size.unwrap_or(size);
    folder::Options { shard_size, shard_after: &recipe.shard_after, metadata }
}

/// A folder's layout with the tokenizer's files and its configuration, made of the source's text.
fn with_side_files(
    mut layout: Layout,
    side_files: &[PathBuf],
    config: &ModelConfig,
    text: impl FnOnce(&str) -> formats::Result<String>,
) -> Result<Layout> {
    let mut side_file = |path: &Path, text: Vec<u8>| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        layout.files.push(OutputFile { name, len: text.len() as u64, header: text });
    };
    for path in side_files {
        side_file(path, fs::read(path).map_err(Error::io(path))?);
    }
    // Last: a folder is a model once it has its configuration.
    let source = fs::read_to_string(&config.path).map_err(Error::io(&config.path))?;
    side_file(&config.path, text(&source)?.into_bytes());
    Ok(layout)
}

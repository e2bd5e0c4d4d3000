//! From a source and the user's wishes to a [`Job`]: headers are read, weights are not.

mod folders;

use std::path::{Path, PathBuf};

use formats::{
    Content, Dtype, Layout, ModelConfig, OutputTensor, Source, TensorSource,
    checkpoint::{Checkpoint, Weights},
    families::{self, Target},
    gguf::{self, Gguf, Metadata},
    linears,
    metadata::{self, Provenance},
    mlx,
    renamed::Renamed,
    scales::{DEFAULT_BLOCK, Scales},
};
use kernels::{Format, float, moves::may_move, table};
use sha2::{Digest, Sha256};

use crate::{
    calibrate::Calibration,
    error::{Choice, Error, Result},
    job::Job,
    lossless::{self, LOSSLESS, Offer},
    mix::{self, Choices, Mix, ModelFacts},
    overrides::Overrides,
    recipe::{PlannedFor, Recipe, SourceFile, TensorChoice, hex},
    scheme::own_float,
    store::Destination,
    weighted::Weighted,
};

pub use crate::container::Container;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The container.
    pub container: Container,
    /// The mix or format.
    pub format: String,
    /// `REGEX=TYPE`, in the order given.
    pub overrides: Vec<String>,
    /// Largest file in bytes, if not the container's default.
    pub shard_size: Option<u64>,
    /// Layers behind which a file ends in any case: where one device's part ends and the next one's begins.
    pub shard_after: Vec<u32>,
    /// Alignment of tensors, if not the default of 32 (GGUF only).
    pub align: Option<u32>,
    /// Whether NaN and infinite weights are let through.
    pub allow_nonfinite: bool,
    /// What its weights are rounded by.
    pub calibration: Option<Calibration>,
    /// The importance matrix to encode by, in one of llama.cpp's forms.
    pub imatrix: Option<PathBuf>,
    /// What it is planned for: it stands in the recipe and decides nothing.
    pub target: Option<PlannedFor>,
    /// The checkpoint's revision, if it is known: it stands in the recipe and decides nothing.
    pub revision: Option<String>,
    /// Of a converted source, the checkpoint that it was made of: the source then has its names, configuration and tokenizer.
    pub like: Option<Source>,
}

impl Options {
    /// A format without any wish besides.
    pub fn new(container: Container, format: &str) -> Options {
        Options {
            container,
            format: format.to_owned(),
            overrides: Vec::new(),
            shard_size: None,
            shard_after: Vec::new(),
            align: None,
            allow_nonfinite: false,
            calibration: None,
            imatrix: None,
            target: None,
            revision: None,
            like: None,
        }
    }

    /// The alignment, where the container lets one choose.
    fn alignment(&self) -> Result<Option<u32>> {
        let wrong = |detail: String| Err(Error::Choice { choice: Choice::Align, detail });
        match (self.container, self.align) {
            (container, Some(_)) if container.is_folder() => wrong(
                "a folder of safetensors leaves no choice: its tensors start at multiples of 64 bytes".into(),
            ),
            (container, None) if container.is_folder() => Ok(None),
            (_, Some(align)) if !align.is_power_of_two() => wrong(format!("{align} is no power of two")),
            (_, align) => Ok(Some(align.unwrap_or(GGUF_ALIGN))),
        }
    }

    /// Whether quantized weights are to stay as they are.
    fn is_lossless(&self) -> Result<bool> {
        let is_lossless = self.format.eq_ignore_ascii_case(LOSSLESS);
        if is_lossless && (!self.overrides.is_empty() || self.imatrix.is_some() || self.calibration.is_some())
        {
            return Err(Error::Usage(format!(
                "the format `{LOSSLESS}` leaves nothing to choose or to round: no --tensor, --imatrix or --calibrate goes with it"
            )));
        }
        Ok(is_lossless)
    }

    /// The layers behind which a file ends, in order, if the model has them all.
    fn cuts(&self, outputs: &[OutputTensor]) -> Result<Vec<u32>> {
        let last = outputs.iter().filter_map(|output| output.layer).max();
        if let Some(at) = self.shard_after.iter().position(|layer| Some(*layer) > last) {
            let layers = last.map_or(0, |last| u64::from(last) + 1);
            let detail = format!("there is no layer {}, but {layers}, counted from 0", self.shard_after[at]);
            return Err(Error::Choice { choice: Choice::ShardAfter(at), detail });
        }
        let mut cuts = self.shard_after.clone();
        cuts.sort_unstable();
        cuts.dedup();
        Ok(cuts)
    }
}

/// Shards of a GGUF are this large unless asked otherwise: below the Hub's recommendation of 48 GB.
const GGUF_SHARD: u64 = 45_000_000_000;
const GGUF_ALIGN: u32 = 32;
/// What wrote the file: another version may round otherwise.
const TOOL: &str = concat!("halfbyte ", env!("CARGO_PKG_VERSION"));

impl Job {
    /// Plans the conversion of `source` (a checkpoint's folder or a GGUF file, on this disk or elsewhere) to `out`.
    ///
    /// # Errors
    /// If the source is unreadable, damaged, contradicts its configuration or belongs to an unknown family; if the format or
    /// an override is not known.
    pub fn plan(source: &Source, out: &Path, options: &Options) -> Result<Job> {
        // A recipe says what it was made for, as far as that is known.
        let revision = options.revision.clone().or_else(|| source.origin().map(ToString::to_string));
        let options = &Options { revision, ..options.clone() };
        let checkpoint = Checkpoint::open(source)?;
        if let Some(like) = &options.like {
            let like = Checkpoint::open(like)?;
            let side_files = like.side_files();
            return Model::renamed(source, checkpoint.weights, &like)?.to(
                options.container,
                &side_files,
                out,
                options,
            );
        }
        let side_files = checkpoint.side_files();
        let Checkpoint { folder, weights } = checkpoint;
        match (options.container, weights) {
            (container, Weights::Safetensors(weights)) => {
                Model::new(folder, Box::new(weights))?.to(container, &side_files, out, options)
            }
            (container, Weights::Mlx(_)) if container.packing().is_some() => Err(Error::Usage(format!(
                "{source}: {} keeps a checkpoint's own names, and an MLX folder has others. Give the checkpoint that it was made \
                 from, or name that with `halfbyte convert --like`",
                container.name()
            ))),
            (container, Weights::Mlx(weights) | Weights::Packed(weights)) => {
                Model::new(folder, Box::new(weights))?.to(container, &side_files, out, options)
            }
            (Container::Gguf, Weights::Gguf(weights)) => gguf_to_gguf(weights, out, options),
            (_, Weights::Gguf(_)) => Err(Error::Usage(format!(
                "{source}: a folder for {} is made from a checkpoint's folder, not from a GGUF file, whose configuration and \
                 tokenizer are in another form. Give the checkpoint that the GGUF was made from, or name that with \
                 `halfbyte convert --like`",
                options.container.name()
            ))),
        }
    }
}

/// A checkpoint in Hugging Face's form, or an MLX folder.
struct Model {
    folder: PathBuf,
    source: Box<dyn TensorSource>,
    config: ModelConfig,
    scales: Scales,
}

impl Model {
    fn new(folder: PathBuf, source: Box<dyn TensorSource>) -> Result<Model> {
        let config = ModelConfig::read(&folder)?;
        let block = config.quantization.as_ref().and_then(|quantization| quantization.weight_block);
        let scales = Scales::find(source.as_ref(), block.unwrap_or(DEFAULT_BLOCK))?;
        Ok(Model { folder, source, config, scales })
    }

    /// The weights of a converted model as the checkpoint `like` had them.
    fn renamed(source: &Source, made: Weights, like: &Checkpoint) -> Result<Model> {
        let (made, target): (Box<dyn TensorSource>, _) = match made {
            Weights::Gguf(made) => (Box::new(made), Target::Gguf),
            Weights::Mlx(made) => (Box::new(made), Target::Mlx),
            Weights::Safetensors(_) | Weights::Packed(_) => {
                return Err(Error::Usage(format!(
                    "{source} has a checkpoint's names already: leave --like out"
                )));
            }
        };
        let config = ModelConfig::read(&like.folder)?;
        let outputs = families::plan(&config, like.source(), target)?;
        let renamed = Renamed::new(source.path(), made, like.source(), &outputs)?;
        Model::new(like.folder.clone(), Box::new(renamed))
    }

    fn to(self, container: Container, side_files: &[PathBuf], out: &Path, options: &Options) -> Result<Job> {
        match container.packing() {
            Some(packing) => folders::checkpoint_to_linears(self, packing, side_files, out, options),
            None if container.is_folder() => folders::checkpoint_to_mlx(self, side_files, out, options),
            None => checkpoint_to_gguf(self, out, options),
        }
    }
}

fn checkpoint_to_gguf(model: Model, out: &Path, options: &Options) -> Result<Job> {
    let Model { folder, source, config, scales } = model;
    let outputs = families::plan(&config, source.as_ref(), Target::Gguf)?;
    let weighted = weighted(options, |all| all.over_gguf(&outputs))?;
    let facts = ModelFacts { importance: weighted.is_some(), ..ModelFacts::of_config(&config) };
    let (choices, file_type) = gguf_choices(options, &outputs, &facts, source.as_ref(), &scales)?;
    let recipe = recipe(options, source.as_ref(), &outputs, &choices, weighted.as_ref())?;
    let hash = recipe.hash();
    let provenance = Provenance { tool: TOOL, recipe: &hash, file_type };
    let mut metadata = metadata::of_checkpoint(&folder, &config, &outputs, &provenance)?;
    state_imatrix(&mut metadata, weighted.as_ref());
    let warnings = warnings(options, source.as_ref(), &outputs, &choices.formats, weighted.as_ref());
    Plan { source, scales, outputs, weighted, facts, choices, recipe, warnings }.into_gguf(&metadata, out)
}

fn gguf_to_gguf(source: Gguf, out: &Path, options: &Options) -> Result<Job> {
    let outputs = families::gguf_tensors(&source);
    let scales = Scales::find(&source, DEFAULT_BLOCK)?;
    let weighted = weighted(options, |all| all.over_gguf(&outputs))?;
    let facts = ModelFacts { importance: weighted.is_some(), ..ModelFacts::of_metadata(source.metadata()) };
    let (choices, file_type) = gguf_choices(options, &outputs, &facts, &source, &scales)?;
    let recipe = recipe(options, &source, &outputs, &choices, weighted.as_ref())?;
    let hash = recipe.hash();
    let provenance = Provenance { tool: TOOL, recipe: &hash, file_type };
    let mut metadata = metadata::of_gguf(source.metadata(), &provenance);
    state_imatrix(&mut metadata, weighted.as_ref());
    let warnings = warnings(options, &source, &outputs, &choices.formats, weighted.as_ref());
    Plan { source: Box::new(source), scales, outputs, weighted, facts, choices, recipe, warnings }
        .into_gguf(&metadata, out)
}

/// The type of each tensor of a GGUF, and llama.cpp's number for them all.
fn gguf_choices(
    options: &Options,
    outputs: &[OutputTensor],
    facts: &ModelFacts,
    source: &dyn TensorSource,
    scales: &Scales,
) -> Result<(Choices, u32)> {
    let overrides = Overrides::gguf(&options.overrides)?;
    if options.is_lossless()? {
        let offer = Offer { container: "gguf", formats: table::GGUF, one_for_all: false, rows: 1 };
        let plain = |tensor: &OutputTensor| {
            if tensor.quantizable { own_float(tensor, source) } else { Ok(&float::F32) }
        };
        let choices = lossless::choose(&offer, outputs, (source, scales), plain)?;
        let file_type = mix::file_type(outputs, &choices.formats);
        return Ok((choices, file_type));
    }
    let mix = Mix::find(&options.format)?;
    Ok((mix::choose(mix, outputs, facts, &overrides)?, mix.file_type))
}

/// The importance matrix, laid over the outputs, if one is to be used.
fn weighted(options: &Options, over: impl FnOnce(Weighted) -> Result<Weighted>) -> Result<Option<Weighted>> {
    options.imatrix.as_ref().map(|path| over(Weighted::read(path)?)).transpose()
}

/// The keys by which llama.cpp tells what a file was quantized with (`tools/quantize/quantize.cpp`).
fn state_imatrix(metadata: &mut Metadata, weighted: Option<&Weighted>) {
    let Some(weighted) = weighted else { return };
    let importance = weighted.importance();
    metadata.set("quantize.imatrix.file", weighted.file().name);
    metadata.set_some("quantize.imatrix.dataset", importance.datasets.first().cloned());
    metadata.set("quantize.imatrix.entries_count", importance.tensors.len() as u32);
    metadata.set_some("quantize.imatrix.chunks_count", Some(importance.chunks).filter(|&chunks| chunks > 0));
}

/// What the user should know before the job is run.
fn warnings(
    options: &Options,
    source: &dyn TensorSource,
    outputs: &[OutputTensor],
    formats: &[&'static Format],
    weighted: Option<&Weighted>,
) -> Vec<String> {
    let unweighted = weighted.and_then(|weighted| unweighted(weighted, outputs, formats));
    let requantized = || requantized(source, outputs, formats);
    let is_lossless = options.format.eq_ignore_ascii_case(LOSSLESS);
    (!is_lossless).then(requantized).flatten().into_iter().chain(unweighted).collect()
}

/// A warning if quantized tensors have no entry in the importance matrix.
fn unweighted(weighted: &Weighted, outputs: &[OutputTensor], formats: &[&'static Format]) -> Option<String> {
    let quantized = outputs.iter().zip(formats).enumerate().filter(|(_, (_, format))| format.block > 1);
    let (covered, missing): (Vec<_>, Vec<_>) = quantized.partition(|(index, _)| weighted.covers(*index));
    let name = |(_, (output, _)): &(usize, (&OutputTensor, _))| output.name.clone();
    let names: Vec<String> = missing.iter().take(3).map(name).collect();
    (!missing.is_empty()).then(|| {
        format!(
            "{} of {} quantized tensors are not, or not wholly, in {}: {}{}. Their columns count alike",
            missing.len(),
            missing.len() + covered.len(),
            weighted.file().name,
            names.join(", "),
            if missing.len() > names.len() { ", …" } else { "" }
        )
    })
}

/// A warning if quantized tensors are to be quantized again.
fn requantized(
    source: &dyn TensorSource,
    outputs: &[OutputTensor],
    formats: &[&'static Format],
) -> Option<String> {
    let again = outputs.iter().zip(formats).filter_map(|(output, format)| {
        let Content::Parts(parts) = &output.content else { return None };
        let id = parts.first()?.source;
        let meta = source.meta(id);
        let again = source.decoded_from(id).is_some()
            // What may move mostly does.
            || matches!(meta.dtype, Dtype::Block(from) if from.block > 1 && from != *format && !may_move(from, format));
        (again && format.block > 1).then_some(&meta.name)
    });
    let (count, first) = again.fold((0, None), |(n, first), name| (n + 1, first.or(Some(name))));
    first.map(|first| {
        format!(
            "{count} tensors (first {first}) are quantized already: quantizing them again adds to the damage. \
             Give the full-precision checkpoint if you have it"
        )
    })
}

/// A job before its bytes have their places.
struct Plan {
    source: Box<dyn TensorSource>,
    scales: Scales,
    outputs: Vec<OutputTensor>,
    weighted: Option<Weighted>,
    facts: ModelFacts,
    choices: Choices,
    recipe: Recipe,
    warnings: Vec<String>,
}

impl Plan {
    fn into_gguf(self, metadata: &Metadata, out: &Path) -> Result<Job> {
        let tensors: Vec<gguf::write::Tensor<'_>> = self
            .outputs
            .iter()
            .zip(&self.choices.formats)
            .map(|(output, format)| gguf::write::Tensor {
                name: &output.name,
                layer: output.layer,
                shape: &output.shape,
                format,
            })
            .collect();
        // Only `.gguf` is an ending: `llama-3.1-8b` has none.
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".gguf").unwrap_or(&name).to_owned();
        let out = out.with_file_name(format!("{stem}.gguf"));
        let file = gguf::write::Options {
            stem: &stem,
            alignment: self.recipe.align.unwrap_or(GGUF_ALIGN),
            shard_size: self.recipe.shard_size,
            shard_after: &self.recipe.shard_after,
        };
        let layout = gguf::write::layout(metadata, &tensors, &file)?;
        let dir = out.parent().map(Path::to_owned).unwrap_or_default();
        Ok(self.placed(layout, Destination::Files { path: out, dir }))
    }

    fn placed(self, layout: Layout, destination: Destination) -> Job {
        Job {
            source: self.source,
            scales: self.scales,
            outputs: self.outputs,
            formats: self.choices.formats,
            weighted: self.weighted,
            facts: self.facts,
            layout,
            recipe: self.recipe,
            destination,
            fallbacks: self.choices.fallbacks,
            warnings: self.warnings,
        }
    }
}

fn recipe(
    options: &Options,
    source: &dyn TensorSource,
    outputs: &[OutputTensor],
    choices: &Choices,
    weighted: Option<&Weighted>,
) -> Result<Recipe> {
    let tensor: Vec<TensorChoice> = outputs
        .iter()
        .zip(&choices.formats)
        .map(|(output, format)| {
            // The layout refuses what has no size.
            let plane = |plane| format.plane_bytes(plane, output.elements()).unwrap_or(0);
            let bytes = match options.container.packing() {
                Some(packing) => packing.tensor_bytes(&folders::tensor(output, format)).unwrap_or(0),
                None => (0..format.planes.len()).map(plane).sum(),
            };
            TensorChoice { name: output.name.clone(), format: format.name.to_owned(), bytes }
        })
        .collect();
    let shard_size = match options.container {
        Container::Gguf => GGUF_SHARD,
        Container::Mlx => mlx::SHARD_SIZE,
        _ => linears::SHARD_SIZE,
    };
    Ok(Recipe {
        tool: TOOL.to_owned(),
        container: options.container,
        format: options.format.to_ascii_lowercase(),
        rules: options.overrides.clone(),
        align: options.alignment()?,
        // TOML's integers end there.
        shard_size: Some(options.shard_size.unwrap_or(shard_size).min(i64::MAX as u64)),
        shard_after: options.cuts(outputs)?,
        allow_nonfinite: options.allow_nonfinite,
        calibration: options.calibration.clone(),
        imatrix: weighted.map(Weighted::file),
        target: options.target.clone(),
        revision: options.revision.clone(),
        source: source_files(source),
        bytes: tensor.iter().map(|tensor| tensor.bytes).sum(),
        tensor,
    })
}

/// The source's files without their place on this machine.
fn source_files(source: &dyn TensorSource) -> Vec<SourceFile> {
    let mut hashes = vec![Sha256::new(); source.files().len()];
    for tensor in source.tensors() {
        let line = format!("{}\t{:?}\t{:?}\t{}\n", tensor.name, tensor.dtype, tensor.shape, tensor.offset);
        hashes[tensor.file].update(line);
    }
    source
        .files()
        .iter()
        .zip(hashes)
        .map(|(file, sha)| SourceFile {
            name: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: file.len,
            index_sha256: hex(&sha.finalize()),
        })
        .collect()
}

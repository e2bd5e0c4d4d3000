//! From a source and the user's wishes to a [`Job`]: headers are read, weights are not.

use std::{fs, path::Path};

use formats::{
    Layout, ModelConfig, OutputTensor, TensorSource,
    config::FloatType,
    families::{self, Target},
    gguf::{self, Metadata},
    layout::OutputFile,
    mlx,
    safetensors::Safetensors,
    scales::{DEFAULT_BLOCK, Scales},
    tokenizer,
};
use kernels::{Format, float};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
    job::Job,
    recipe::{Recipe, SourceFile, TensorChoice, hex},
    store::Destination,
};

/// The container to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A GGUF file, or its shards.
    Gguf,
    /// An MLX folder.
    Mlx,
}

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
    /// Alignment of tensors, if not the default of 32 (GGUF only).
    pub align: Option<u32>,
    /// Whether NaN and infinite weights are let through.
    pub allow_nonfinite: bool,
}

/// Shards of a GGUF are this large unless asked otherwise: below the Hub's recommendation of 48 GB.
const GGUF_SHARD: u64 = 45_000_000_000;
const GGUF_ALIGN: u32 = 32;
/// Files of a checkpoint that an MLX folder needs besides `config.json`.
const SIDE_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

impl Job {
    /// Plans the conversion of `source` (a checkpoint's folder or a GGUF file) to `out`.
    ///
    /// # Errors
    /// If the source is unreadable, damaged, contradicts its configuration or belongs to an unknown family; if the format or
    /// an override is not known.
    pub fn plan(source: &Path, out: &Path, options: &Options) -> Result<Job> {
        let is_gguf = fs::metadata(source).map_err(Error::io(source))?.is_file();
        match (options.container, is_gguf) {
            (Container::Gguf, false) => checkpoint_to_gguf(source, out, options),
            (Container::Gguf, true) => gguf_to_gguf(source, out, options),
            (Container::Mlx, false) => checkpoint_to_mlx(source, out, options),
            (Container::Mlx, true) => Err(Error::Usage(format!(
                "{}: an MLX folder is made from a checkpoint's folder, not from a GGUF file, whose configuration and \
                 tokenizer are in another form. Give the checkpoint that the GGUF was made from",
                source.display()
            ))),
        }
    }
}

/// What every container needs to know of a checkpoint's folder.
struct Checkpoint {
    source: Safetensors,
    config: ModelConfig,
    scales: Scales,
}

impl Checkpoint {
    fn open(folder: &Path) -> Result<Checkpoint> {
        let source = Safetensors::open_folder(folder)?;
        let config = ModelConfig::read(folder)?;
        let block = config.quantization.as_ref().and_then(|quantization| quantization.weight_block);
        let scales = Scales::find(&source, block.unwrap_or(DEFAULT_BLOCK))?;
        Ok(Checkpoint { source, config, scales })
    }
}

fn checkpoint_to_gguf(folder: &Path, out: &Path, options: &Options) -> Result<Job> {
    let Checkpoint { source, config, scales } = Checkpoint::open(folder)?;
    let outputs = families::plan(&config, &source, Target::Gguf)?;
    let formats = choose(&options.format, &outputs)?;
    let recipe = recipe(options, &source, &outputs, &formats);
    let mut metadata = families::gguf_metadata(&config)?;
    metadata.set("general.quantization_version", 2u32);
    metadata.set("halfbyte.recipe", recipe.hash());
    metadata.extend(tokenizer::gguf_metadata(folder, &config)?);
    let plan = Plan { source: Box::new(source), scales, outputs, formats, recipe, warnings: Vec::new() };
    plan.into_gguf(&metadata, out, options)
}

fn gguf_to_gguf(path: &Path, out: &Path, options: &Options) -> Result<Job> {
    let source = gguf::Gguf::open(path)?;
    let outputs = families::gguf_tensors(&source);
    let formats = choose(&options.format, &outputs)?;
    let recipe = recipe(options, &source, &outputs, &formats);
    let mut metadata = source.metadata().clone();
    metadata.set("halfbyte.recipe", recipe.hash());
    let scales = Scales::find(&source, DEFAULT_BLOCK)?;
    let warnings = requantizing(&source, &outputs, &formats);
    let plan = Plan { source: Box::new(source), scales, outputs, formats, recipe, warnings };
    plan.into_gguf(&metadata, out, options)
}

fn checkpoint_to_mlx(folder: &Path, out: &Path, options: &Options) -> Result<Job> {
    let Checkpoint { source, config, scales } = Checkpoint::open(folder)?;
    let outputs = families::plan(&config, &source, Target::Mlx)?;
    let plain: &'static Format = match config.dtype {
        Some(FloatType::F32) => &float::F32,
        Some(FloatType::F16) => &float::F16,
        Some(FloatType::Bf16) | None => &float::BF16,
    };
    let formats = choose_mlx(&options.format, plain, &outputs)?;
    let recipe = recipe(options, &source, &outputs, &formats);
    let hash = recipe.hash();

    let tensors: Vec<mlx::Tensor<'_>> = outputs
        .iter()
        .zip(&formats)
        .map(|(output, format)| mlx::Tensor {
            name: &output.name,
            module: output.quantizable,
            shape: &output.shape,
            format,
        })
        .collect();
    let shard_size = options.shard_size.unwrap_or(mlx::SHARD_SIZE);
    let metadata = [("halfbyte.recipe", hash.as_str())];
    let mut layout = mlx::layout(&tensors, &mlx::Options { scales: plain, shard_size, metadata: &metadata })?;
    for name in SIDE_FILES {
        let path = folder.join(name);
        match fs::read(&path) {
            Ok(text) => layout.files.push(side_file(name, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&path)(error)),
        }
    }
    let config_path = folder.join("config.json");
    let text = fs::read_to_string(&config_path).map_err(Error::io(&config_path))?;
    layout.files.push(side_file("config.json", mlx::config(&config_path, &text, &tensors)?.into_bytes()));
    let plan = Plan { source: Box::new(source), scales, outputs, formats, recipe, warnings: Vec::new() };
    Ok(plan.placed(layout, Destination::Folder(out.to_owned())))
}

fn side_file(name: &str, text: Vec<u8>) -> OutputFile {
    OutputFile { name: name.to_owned(), len: text.len() as u64, header: text }
}

/// A job before its bytes have their places.
struct Plan {
    source: Box<dyn TensorSource>,
    scales: Scales,
    outputs: Vec<OutputTensor>,
    formats: Vec<&'static Format>,
    recipe: Recipe,
    warnings: Vec<String>,
}

impl Plan {
    fn into_gguf(self, metadata: &Metadata, out: &Path, options: &Options) -> Result<Job> {
        let tensors: Vec<gguf::write::Tensor<'_>> = self
            .outputs
            .iter()
            .zip(&self.formats)
            .map(|(output, format)| gguf::write::Tensor { name: &output.name, shape: &output.shape, format })
            .collect();
        // Only `.gguf` is an ending: `llama-3.1-8b` has none.
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".gguf").unwrap_or(&name).to_owned();
        let out = out.with_file_name(format!("{stem}.gguf"));
        let file = gguf::write::Options {
            stem: &stem,
            alignment: options.align.unwrap_or(GGUF_ALIGN),
            shard_size: Some(options.shard_size.unwrap_or(GGUF_SHARD)),
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
            formats: self.formats,
            layout,
            recipe: self.recipe,
            destination,
            fallbacks: Vec::new(),
            warnings: self.warnings,
        }
    }
}

fn choose(name: &str, outputs: &[OutputTensor]) -> Result<Vec<&'static Format>> {
    let wanted = kernels::table::gguf(name)
        .filter(|format| format.encode.is_some())
        .ok_or_else(|| Error::Usage(format!("{name} is no format; see `halfbyte formats`")))?;
    Ok(outputs
        .iter()
        .map(|output| match output {
            output if !output.quantizable => &float::F32,
            output if wanted.holds_row(output.columns()) => wanted,
            _ => &float::F16,
        })
        .collect())
}

fn choose_mlx(name: &str, plain: &'static Format, outputs: &[OutputTensor]) -> Result<Vec<&'static Format>> {
    let wanted = kernels::table::mlx(name)
        .filter(|format| format.encode.is_some())
        .ok_or_else(|| Error::Usage(format!("{name} is no format; see `halfbyte formats`")))?;
    Ok(outputs
        .iter()
        .map(|output| match output {
            output if output.class == formats::output::Class::RouterBias => &float::F32,
            output if output.quantizable && wanted.holds_row(output.columns()) => wanted,
            _ => plain,
        })
        .collect())
}

fn requantizing(
    source: &dyn TensorSource,
    outputs: &[OutputTensor],
    formats: &[&'static Format],
) -> Vec<String> {
    let _ = (source, outputs, formats);
    Vec::new()
}

fn recipe(
    options: &Options,
    source: &dyn TensorSource,
    outputs: &[OutputTensor],
    formats: &[&'static Format],
) -> Recipe {
    let tensor = outputs.iter().zip(formats);
    Recipe {
        tool: concat!("halfbyte ", env!("CARGO_PKG_VERSION")).to_owned(),
        container: match options.container {
            Container::Gguf => "gguf",
            Container::Mlx => "mlx",
        }
        .to_owned(),
        format: options.format.to_ascii_lowercase(),
        overrides: options.overrides.clone(),
        align: u64::from(options.align.unwrap_or(GGUF_ALIGN)),
        shard_size: options.shard_size,
        allow_nonfinite: options.allow_nonfinite,
        source: source_files(source),
        tensor: tensor
            .map(|(output, format)| TensorChoice {
                name: output.name.clone(),
                format: format.name.to_owned(),
            })
            .collect(),
    }
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

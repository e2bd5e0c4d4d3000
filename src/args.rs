//! The command line's grammar and help.

mod converting;
mod machines;
mod publishing;

use std::path::PathBuf;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand, ValueEnum, builder::RangedU64ValueParser};

use crate::text::parse_bytes;
pub use converting::Convert;
pub use machines::{Devices, OnDevice, Targets};
pub use publishing::{Check, Publish, ToHub};

/// Makes large language models fit the machine their owner has.
#[derive(Parser)]
#[command(name = "halfbyte", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Fetch a model from the Hub into the cache, checked
    Fetch(Fetch),
    /// Make a model fit a machine: plan, quantize, verify, and write its card
    Shrink(Shrink),
    /// What of a model fits a machine, how good and how fast it would be, from headers alone
    Plan(Plan),
    /// Turn a checkpoint into a GGUF file (llama.cpp), an MLX folder (mlx-lm) or one of compressed-tensors, GPTQ or AWQ (vLLM)
    Quantize(Quantize),
    /// Move a quantized model into another container without a loss: the same codes and scales
    Convert(Convert),
    /// Measure perplexity and divergence from the original, from the written bytes
    Verify(Verify),
    /// Put what `shrink` made on the Hugging Face Hub, with its proof
    Publish(Publish),
    /// See whether a folder or a repository is what was published: every hash, the recipe, the signature
    Check(Check),
    /// Show what a checkpoint, a GGUF file or an MLX folder holds
    Inspect(Inspect),
    /// List the formats and mixes that can be written
    Formats(Formats),
    /// List the machines that a model can be made for
    Targets(Targets),
    /// List the graphics processors of this machine, and see whether they compute rightly
    Devices(Devices),
}

/// The container to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Container {
    /// A file, or several shards, for llama.cpp and all that builds on it
    Gguf,
    /// A folder for mlx-lm
    Mlx,
    /// A folder for vLLM, SGLang and transformers
    CompressedTensors,
    /// A folder in GPTQ's first version, for the same and for what only knows GPTQ
    Gptq,
    /// The same in its second version, for GPTQModel alone: everything loads the first
    GptqV2,
    /// A folder in AWQ's GEMM form, for the same and for what only knows AWQ
    Awq,
}

impl From<Container> for quantize::plan::Container {
    fn from(container: Container) -> Self {
        match container {
            Container::Gguf => Self::Gguf,
            Container::Mlx => Self::Mlx,
            Container::CompressedTensors => Self::CompressedTensors,
            Container::Gptq => Self::Gptq,
            Container::GptqV2 => Self::GptqV2,
            Container::Awq => Self::Awq,
        }
    }
}

/// The program that is to run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// llama.cpp and what is built on it: GGUF
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// MLX and mlx-lm: an MLX folder
    Mlx,
    /// vLLM: a folder of compressed-tensors
    Vllm,
}

impl From<Engine> for quantize::budget::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::LlamaCpp => Self::LlamaCpp,
            Engine::Mlx => Self::Mlx,
            Engine::Vllm => Self::Vllm,
        }
    }
}

/// A model, a machine, and how it is to run there.
#[derive(ClapArgs)]
pub struct Fit {
    /// Folder of a Hugging Face checkpoint (safetensors, config.json, tokenizer), a GGUF file, or a repository on the Hub
    /// (OWNER/NAME[@REVISION], hf:OWNER/NAME)
    pub source: PathBuf,
    /// Machine: a name of `halfbyte targets`, `auto` for this one, a size such as 37GiB, or a card with host memory
    /// such as vram-48+384GiB
    #[arg(long, value_name = "TARGET")]
    pub fit: Option<String>,
    /// Ceiling for the files themselves
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_size: Option<u64>,
    /// What is to run it there, which decides the container [default: llama.cpp, or mlx where the target has nothing else]
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Container to write, which decides the engine; --engine and this say the same
    #[arg(long, value_enum)]
    pub to: Option<Container>,
    /// Tokens of context that each sequence has
    #[arg(long, value_name = "N", default_value = "8192", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub context: u64,
    /// Sequences that run at the same time
    #[arg(long, value_name = "K", default_value = "1", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    pub parallel: u64,
    /// Type of the KV cache: f16, q8_0 (in vLLM: fp8) or q4_0 (not in vLLM)
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub kv: String,
    /// More targets (TOML, see `halfbyte targets`)
    #[arg(long, value_name = "FILE")]
    pub target_file: Option<PathBuf>,
}

/// A text to calibrate on, and what is done with it.
#[derive(ClapArgs)]
pub struct Calibrate {
    /// Run the model over this text (not one to verify on): a plan measures with it what each type costs each tensor, and
    /// weights are rounded by what they are multiplied with
    #[arg(long, alias = "calibrated", value_name = "TEXT")]
    pub calibrate: Option<String>,
    /// How weights are rounded: to the nearest code, by scales searched under importance, or with error feedback
    /// [default: feedback with --calibrate, nearest without]
    #[arg(long, value_enum, requires = "calibrate")]
    pub rounding: Option<Rounding>,
    /// Chunks of the text to calibrate on, taken at even distances
    #[arg(long, value_name = "N", default_value = "64", requires = "calibrate")]
    pub calibration_chunks: usize,
    /// Tokens of such a chunk
    #[arg(long, value_name = "N", default_value = "512", requires = "calibrate")]
    pub calibration_context: usize,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rounding {
    /// Each to the nearest code
    Nearest,
    /// Scales searched for the least error weighted by importance
    Search,
    /// Each column takes up the error of those before it
    Feedback,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte shrink ./Llama-3.1-70B --fit vram-48 --out llama-70b
  halfbyte shrink ./DeepSeek-R1 --fit mac-studio-512 --context 32768 --out r1
  halfbyte shrink ./Qwen3-30B-A3B --fit mac-48 --engine mlx --out qwen3-mlx
  halfbyte shrink ./Llama-3.1-70B --fit vram-48 --engine vllm --out llama-70b-w4a16
  halfbyte shrink deepseek-ai/DeepSeek-R1 --fit mac-studio-512 --disk 20GB --out r1
  halfbyte shrink deepseek-ai/DeepSeek-R1 --fit mac-studio-512 --disk 50GB --publish me/R1-GGUF --no-verify --out r1
  halfbyte shrink ./model --max-size 4GiB --text my-domain.txt --out small

A run that is killed or stopped with Ctrl-C goes on where it was when the same command is run again.
Exit codes: 0 done, 1 failed or does not fit, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Shrink {
    #[command(flatten)]
    pub fit: Fit,
    /// Folder for the model, its card, recipe, report and checksums
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Text to verify on [default: the first chapters of a novel, which comes with the tool and is put beside the model]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// How many chunks of 512 tokens to verify on [default: 16]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub chunks: Option<usize>,
    /// Of a Hub repository: do not fetch it into the cache, but pass its weights through so many bytes of the disk
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub disk: Option<u64>,
    #[command(flatten)]
    pub calibrate: Calibrate,
    #[command(flatten)]
    pub on: OnDevice,
    #[command(flatten)]
    pub to_hub: ToHub,
    /// Do not verify
    #[arg(long, conflicts_with_all = ["text", "chunks"])]
    pub no_verify: bool,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub threads: Option<usize>,
    /// Ceiling for the buffers
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256MiB")]
    pub memory: u64,
    /// Replace what lies at --out
    #[arg(long)]
    pub overwrite: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte plan ./DeepSeek-R1 --fit mac-studio-512 --context 32768
  halfbyte plan ./DeepSeek-R1 --fit vram-48+384GiB --context 131072 --kv q8_0
  halfbyte plan ./Llama-3.1-70B --fit vram-48 --recipe llama.toml
  halfbyte plan ./Qwen3-30B-A3B --fit mac-48 --engine mlx --json
  halfbyte plan ./Llama-3.1-70B --fit vram-48 --engine vllm --parallel 4 --kv q8_0
  halfbyte plan deepseek-ai/DeepSeek-R1@main --fit mac-studio-512
  halfbyte plan ./model --max-size 4GiB

Reads headers only, unless --sample or --calibrate is given. What it shows as exact is exact: bytes of weights and of the KV cache; what
is estimated says so. Exit codes: 0 fits, 1 failed or does not fit, 2 wrong usage.")]
pub struct Plan {
    #[command(flatten)]
    pub fit: Fit,
    /// Read some rows of every tensor to see what each type costs it, rather than expect it
    #[arg(long, conflicts_with = "calibrate")]
    pub sample: bool,
    #[command(flatten)]
    pub calibrate: Calibrate,
    #[command(flatten)]
    pub on: OnDevice,
    /// Write the plan as a recipe, to be read, edited and run with `halfbyte quantize --recipe`
    #[arg(long, value_name = "OUT.toml")]
    pub recipe: Option<PathBuf>,
    /// Print the plan as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte quantize ./Llama-3.1-8B --format q4_k_m --out llama.gguf
  halfbyte quantize ./DeepSeek-R1 --format iq4_xs --out r1.gguf --shard-size 45GB
  halfbyte quantize ./Qwen3-30B-A3B --to mlx --format 4bit-g64 --out qwen3-mlx
  halfbyte quantize ./Qwen3-30B-A3B --to compressed-tensors --format w4a16-g128 --out qwen3-w4a16
  halfbyte quantize ./Llama-3.1-8B --to gptq --format w4a16-g128 --calibrate default --out llama-gptq
  halfbyte quantize ./Llama-3.1-8B --to awq --format w4a16-asym-g128 --out llama-awq
  halfbyte quantize ./model --format q4_k_m --tensor 'attn_v=q8_0' --tensor '^output.weight$=q6_k' --out m.gguf
  halfbyte quantize ./model --format q4_k_m --out m.gguf --dry-run
  halfbyte quantize ./model --format iq4_xs --imatrix model.imatrix.gguf --out m.gguf
  halfbyte quantize ./model --format q4_k_m --calibrate my-domain.txt --out m.gguf
  halfbyte quantize ./model --calibrate t.txt --to gguf --format q5_0 --out m.gguf --to mlx --format 4bit-g64 --out m-mlx
  halfbyte quantize ./model --recipe model.toml --out m.gguf
  halfbyte quantize hf:Qwen/Qwen3-8B --format q4_k_m --disk 10GB --out qwen3.gguf

A run that is killed or stopped with Ctrl-C goes on where it was when the same command is run again.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Quantize {
    /// Folder of a Hugging Face checkpoint (safetensors, config.json, tokenizer), a GGUF file, or a repository on the Hub
    /// (OWNER/NAME[@REVISION], hf:OWNER/NAME)
    pub source: PathBuf,
    /// Container to write [default: gguf]; with several outputs, --to, --format and --out are given once for each, in order
    #[arg(long, value_enum)]
    pub to: Vec<Container>,
    /// Mix or format: q4_k_m, iq4_xs, q8_0 … for GGUF; 4bit-g64, mxfp4 … for MLX; w4a16-g128, w4a16-asym-g128, mxfp4 … for
    /// compressed-tensors; w4a16-g128 … for GPTQ; w4a16-asym-g128 … for AWQ (see `halfbyte formats`)
    #[arg(long, required_unless_present = "recipe")]
    pub format: Vec<String>,
    /// Do what this recipe says (TOML), in the place of --to, --format, --tensor, --shard-size and --align
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "format", "tensors", "shard_size", "align"])]
    pub recipe: Option<PathBuf>,
    /// File (GGUF) or folder (all others) to write
    #[arg(long, required = true)]
    pub out: Vec<PathBuf>,
    /// Type for the tensors whose output name matches; may be given several times, the first match counts
    #[arg(long = "tensor", value_name = "REGEX=TYPE")]
    pub tensors: Vec<String>,
    /// Importance matrix (of llama-imatrix, .gguf or .dat): what each input channel weighs when its weights are rounded
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub imatrix: Option<PathBuf>,
    /// Largest file, such as 45GB or 5GiB [default: 45GB for GGUF, 5GiB for MLX, 5GB for the others]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub shard_size: Option<u64>,
    /// Alignment of tensors in a GGUF file, a power of two [default: 32]
    #[arg(long, value_name = "BYTES")]
    pub align: Option<u32>,
    #[command(flatten)]
    pub calibrate: Calibrate,
    #[command(flatten)]
    pub on: OnDevice,
    /// Write what the weights were multiplied with as an importance matrix, in the GGUF form of llama-imatrix
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub imatrix_out: Option<PathBuf>,
    /// Of a Hub repository: do not fetch it into the cache, but pass its weights through so many bytes of the disk
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub disk: Option<u64>,
    /// Threads that encode [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Ceiling for the buffers
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256MiB")]
    pub memory: u64,
    /// Let NaN and infinite weights through (zeros in quantized tensors) instead of refusing them
    #[arg(long)]
    pub allow_nonfinite: bool,
    /// Replace what lies at --out
    #[arg(long)]
    pub overwrite: bool,
    /// Show the exact size and what each tensor becomes, reading headers only; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(
    group(ArgGroup::new("input").required(true).args(["text", "tokens"])),
    after_help = "\
Examples:
  halfbyte verify llama-q4_k_m.gguf --against ./Llama-3.1-8B --text wiki.test.raw --chunks 32
  halfbyte verify qwen3-mlx --against ./Qwen3-30B-A3B --text wiki.test.raw --report qwen3.html
  halfbyte verify m.gguf --against ./model --text t.txt --max-kld 0.05 --max-ppl-ratio 1.02 && ./publish
  halfbyte verify ./model --text t.txt --context 2048 --stride 512 --json | jq .perplexity
  halfbyte verify ./model --tokens ids.safetensors --logits logits.safetensors

Figures are those of llama-perplexity: chunks of --context tokens, the second half of each scored. The line `protocol` says
what was done. Shares such as same_top1 and rms_dp are fractions of 1 in JSON; divergences are in nats.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 worse than --max-kld or --max-ppl-ratio allows, 130 interrupted."
)]
pub struct Verify {
    /// What to measure: a GGUF file, an MLX folder, a checkpoint, or a repository on the Hub
    #[arg(value_name = "FILE")]
    pub model: PathBuf,
    /// What to measure it against: the checkpoint it was made of, or any model with the same tokenizer
    #[arg(long, value_name = "SOURCE")]
    pub against: Option<PathBuf>,
    /// Text in UTF-8 to measure on: not one that the model was calibrated on
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Token ids instead of a text: a safetensors file with `input_ids` [n, length]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["context", "chunks", "stride"])]
    pub tokens: Option<PathBuf>,
    /// Tokens in a chunk
    #[arg(long, value_name = "N", default_value = "512", value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    pub context: usize,
    /// How many chunks to take, from the start of the text [default: all]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub chunks: Option<usize>,
    /// Slide the window by so many tokens and score those that are new to it, as papers do
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub stride: Option<usize>,
    /// Write the model's logits to a safetensors file: `logits` [n, length, vocabulary], F32
    #[arg(long, value_name = "OUT")]
    pub logits: Option<PathBuf>,
    /// Multiply in fixed point: faster, up to twice, for a rounding of weights and activations that is finer than half floats'; on a
    /// graphics processor in half precision
    #[arg(long)]
    pub fast: bool,
    #[command(flatten)]
    pub on: OnDevice,
    /// Of Hub repositories: do not fetch it into the cache, but pass their weights through so many bytes of the disk, each
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub disk: Option<u64>,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub threads: Option<usize>,
    /// Ceiling for hidden states and buffers; what is more goes to the disk [default: 256MiB, with a graphics processor 4GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Exit with 3 if the mean KL divergence is larger
    #[arg(long, value_name = "NATS", value_parser = limit, requires = "against")]
    pub max_kld: Option<f64>,
    /// Exit with 3 if the perplexity is more than so many times the reference's
    #[arg(long, value_name = "RATIO", value_parser = limit, requires = "against")]
    pub max_ppl_ratio: Option<f64>,
    /// Write a page with verdict, charts and what was compared
    #[arg(long, value_name = "OUT.html")]
    pub report: Option<PathBuf>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

/// A limit of a gate: a positive number.
fn limit(text: &str) -> Result<f64, String> {
    let limit = text.parse().ok().filter(|limit: &f64| limit.is_finite() && *limit > 0.0);
    limit.ok_or_else(|| format!("`{text}` is no positive number"))
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte inspect model.gguf
  halfbyte inspect ./Llama-3.1-8B
  halfbyte inspect deepseek-ai/DeepSeek-R1
  halfbyte inspect ./mlx-folder --json | jq '.bits_per_weight'")]
pub struct Inspect {
    /// A checkpoint folder, a GGUF file (any shard of a split one), an MLX folder, or a repository on the Hub
    pub path: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte fetch deepseek-ai/DeepSeek-R1
  halfbyte fetch Qwen/Qwen3-8B@main --dry-run
  halfbyte fetch bartowski/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf
  llama-server -m $(halfbyte fetch OWNER/NAME)

Only the files that a model needs are fetched: weights, configuration, tokenizer, card. Their place is the cache that all of
Hugging Face's tools share; what is there already is used. Every byte is checked against the hash that the Hub states. A fetch
that is killed or stopped with Ctrl-C goes on where it was when the same command is run again.
Environment: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Fetch {
    /// Repository: OWNER/NAME, with @REVISION for a branch, tag or commit, with /FILE for one of several GGUF models in it
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Show the files and their sizes; fetch no weights
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct Formats {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_recipe_stands_for_all_that_it_says() {
        let parses = |arguments: &str| {
            let line = ["halfbyte", "quantize", "m", "--out", "o"].into_iter().chain(arguments.split(' '));
            Args::try_parse_from(line).is_ok()
        };
        assert!(
            parses("--format q4_0 --align 64") && parses("--recipe r.toml --threads 2 --allow-nonfinite")
        );
        assert!(!parses("--threads 2"), "neither format nor recipe");
        for more in ["--format q4_0", "--to mlx", "--tensor a=q4_0", "--align 64", "--shard-size 1GB"] {
            assert!(!parses(&format!("--recipe r.toml {more}")), "{more}");
        }
    }

    #[test]
    fn limits_are_positive_numbers() {
        assert_eq!(limit("0.05"), Ok(0.05));
        for text in ["0", "-1", "nan", "inf", "much"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn verify_wants_one_input_and_gates_want_a_reference() {
        let parses = |arguments: &str| {
            Args::try_parse_from(["halfbyte", "verify", "m.gguf"].into_iter().chain(arguments.split(' ')))
                .is_ok()
        };
        assert!(parses("--text t.txt"));
        assert!(parses("--tokens t.safetensors --against o --max-kld 0.1 --max-ppl-ratio 1.02"));
        for wrong in [
            "--json",
            "--text t --tokens u",
            "--text t --max-kld 0.1",
            "--text t --max-ppl-ratio 1.1",
            "--tokens t --chunks 3",
            "--tokens t --stride 3",
            "--text t --chunks 0",
            "--text t --context 1",
            "--text t --threads 0",
        ] {
            assert!(!parses(wrong), "{wrong}");
        }
    }
}

//! The command line's grammar and help.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::text::parse_bytes;

/// Makes large language models fit the machine their owner has.
#[derive(Parser)]
#[command(name = "halfbyte", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Turn a checkpoint into a GGUF file (llama.cpp) or an MLX folder (mlx-lm)
    Quantize(Quantize),
    /// Show what a checkpoint, a GGUF file or an MLX folder holds
    Inspect(Inspect),
    /// List the formats and mixes that can be written
    Formats(Formats),
}

/// The container to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Container {
    /// A file, or several shards, for llama.cpp and all that builds on it
    Gguf,
    /// A folder for mlx-lm
    Mlx,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte quantize ./Llama-3.1-8B --format q4_k_m --out llama.gguf
  halfbyte quantize ./DeepSeek-R1 --format iq4_xs --out r1.gguf --shard-size 45GB
  halfbyte quantize ./Qwen3-30B-A3B --to mlx --format 4bit-g64 --out qwen3-mlx
  halfbyte quantize ./model --format q4_k_m --tensor 'attn_v=q8_0' --tensor '^output.weight$=q6_k' --out m.gguf
  halfbyte quantize ./model --format q4_k_m --out m.gguf --dry-run

A run that is killed or stopped with Ctrl-C goes on where it was when the same command is run again.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Quantize {
    /// Folder of a Hugging Face checkpoint (safetensors, config.json, tokenizer), or a GGUF file
    pub source: PathBuf,
    /// Container to write
    #[arg(long, value_enum, default_value_t = Container::Gguf)]
    pub to: Container,
    /// Mix or format: q4_k_m, iq4_xs, q8_0 … for GGUF; 4bit-g64, mxfp4 … for MLX (see `halfbyte formats`)
    #[arg(long)]
    pub format: String,
    /// File (GGUF) or folder (MLX) to write
    #[arg(long)]
    pub out: PathBuf,
    /// Type for the tensors whose output name matches; may be given several times, the first match counts
    #[arg(long = "tensor", value_name = "REGEX=TYPE")]
    pub tensors: Vec<String>,
    /// Largest file, such as 45GB or 5GiB [default: 45GB for GGUF, 5GiB for MLX]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub shard_size: Option<u64>,
    /// Alignment of tensors in a GGUF file, a power of two [default: 32]
    #[arg(long, value_name = "BYTES")]
    pub align: Option<u32>,
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
#[command(after_help = "\
Examples:
  halfbyte inspect model.gguf
  halfbyte inspect ./Llama-3.1-8B
  halfbyte inspect ./mlx-folder --json | jq '.bits_per_weight'")]
pub struct Inspect {
    /// A checkpoint folder, a GGUF file (any shard of a split one) or an MLX folder
    pub path: PathBuf,
    /// Print everything as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
pub struct Formats {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

//! `halfbyte convert`'s options.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::Container;
use crate::text::parse_bytes;

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte convert ./Llama-3.1-8B-GPTQ --to mlx --out llama-mlx
  halfbyte convert ./Qwen3-8B-w4a16-g32 --to gguf --out qwen3.gguf
  halfbyte convert hf:mlx-community/Qwen3-8B-4bit --like hf:Qwen/Qwen3-8B --to compressed-tensors --out qwen3-w4a16
  halfbyte convert llama-q4_0.gguf --like ./Llama-3.1-8B --to mlx --out llama-mlx

Codes and scales stay what they are; what is not quantized keeps its type. Each tensor gets the smallest format of the container that
can hold its scales and zero points exactly, and what was written is decoded and compared with the source. If no format can, nothing is
written, and the error tells what quantizing again would cost.
Exit codes: 0 done and proved, 1 failed or not possible without a loss, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Convert {
    /// A quantized model: a folder of compressed-tensors, GPTQ, AWQ or MLX, a GGUF file, or a repository on the Hub
    pub source: PathBuf,
    /// Container to write
    #[arg(long, value_enum)]
    pub to: Container,
    /// File (GGUF) or folder to write
    #[arg(long)]
    pub out: PathBuf,
    /// The checkpoint that a GGUF file or an MLX folder was made of, where its names, configuration and tokenizer are needed: only
    /// headers and small files are read
    #[arg(long, value_name = "MODEL")]
    pub like: Option<PathBuf>,
    /// Largest file, such as 45GB or 5GiB [default: the container's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub shard_size: Option<u64>,
    /// Threads that work [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Ceiling for the buffers
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "256MiB")]
    pub memory: u64,
    /// Replace what lies at --out
    #[arg(long)]
    pub overwrite: bool,
    /// Show what each tensor becomes, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

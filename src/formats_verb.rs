//! `halfbyte formats`.

use std::io::Write;

use anyhow::Result;
use kernels::{Format, table as kernel_table};
use quantize::mix::MIXES;
use serde_json::{Value, json};

use crate::{
    args,
    table::{print_json, table},
};

/// Lists what can be written, and what can only be read.
pub fn run(args: &args::Formats) -> Result<()> {
    if args.json { print_json(&as_json()) } else { print() }
}

fn as_json() -> Value {
    let formats = |formats: &[&'static Format]| -> Vec<Value> {
        let one = |format: &&'static Format| {
            json!({
                "name": format.name,
                "bits_per_weight": format.bits_per_weight(),
                "block": format.block,
                "writable": format.encode.is_some(),
            })
        };
        formats.iter().map(one).collect()
    };
    let mixes: Vec<Value> = MIXES.iter().map(|mix| json!({ "name": mix.name, "base": mix.base })).collect();
    json!({
        "gguf": { "mixes": mixes, "types": formats(kernel_table::GGUF) },
        "mlx": { "formats": formats(&without_variants(kernel_table::MLX)) },
        "compressed-tensors": { "formats": formats(&without_variants(kernel_table::COMPRESSED_TENSORS)) },
    })
}

fn print() -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "GGUF mixes (--to gguf --format …): most tensors get the base type, some get more bits\n")?;
    let mut mixes = table(&["mix", "base type"], &[]);
    for mix in MIXES {
        mixes.add_row([mix.name, mix.base]);
    }
    writeln!(out, "{mixes}\n\nGGUF types (--tensor 'REGEX=TYPE')\n\n{}\n", rows(kernel_table::GGUF))?;
    writeln!(
        out,
        "MLX formats (--to mlx --format …, or --tensor 'REGEX=FORMAT')\n\n{}\n",
        rows(kernel_table::MLX)
    )?;
    writeln!(
        out,
        "compressed-tensors formats (--to compressed-tensors --format …, or --tensor 'REGEX=FORMAT')\n\n{}",
        rows(kernel_table::COMPRESSED_TENSORS)
    )?;
    Ok(())
}

/// Formats as users name them: the variants for scales of another type than BF16 follow from the model.
fn without_variants(formats: &'static [&'static Format]) -> Vec<&'static Format> {
    let variant = |format: &Format| ["-f16", "-f32"].iter().any(|end| format.name.ends_with(end));
    formats.iter().copied().filter(|format| !variant(format)).collect()
}

fn rows(formats: &[&'static Format]) -> comfy_table::Table {
    let mut table = table(&["type", "bits/w", "weights per block", ""], &[1, 2]);
    for format in formats {
        table.add_row([
            format.name.to_owned(),
            format!("{:.3}", format.bits_per_weight()),
            format.block.to_string(),
            if format.encode.is_some() { String::new() } else { "read only".to_owned() },
        ]);
    }
    table
}

//! `halfbyte formats`.

use std::io::Write;

use anyhow::Result;
use formats::{awq, compressed_tensors, gptq, linears::Packing};
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
    let one = |format: &'static Format, bits: f64| {
        json!({
            "name": format.name,
            "bits_per_weight": bits,
            "block": format.block,
            "writable": format.encode.is_some(),
        })
    };
    let formats = |formats: &[&'static Format]| -> Vec<Value> {
        formats.iter().map(|format| one(format, format.bits_per_weight())).collect()
    };
    let packed = |packing: &Packing| {
        let formats = without_variants(&packing.named());
        let all = formats.iter().map(|format| one(format, bits(packing, format)));
        json!({ "formats": all.collect::<Vec<_>>() })
    };
    let mixes: Vec<Value> = MIXES.iter().map(|mix| json!({ "name": mix.name, "base": mix.base })).collect();
    json!({
        "gguf": { "mixes": mixes, "types": formats(kernel_table::GGUF) },
        "mlx": { "formats": formats(&without_variants(kernel_table::MLX)) },
        "compressed-tensors": packed(&compressed_tensors::PACKING),
        "gptq": packed(&gptq::V1),
        "awq": packed(&awq::PACKING),
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
    for (name, to, packing) in [
        ("compressed-tensors", "compressed-tensors", &compressed_tensors::PACKING),
        ("GPTQ", "gptq or gptq-v2", &gptq::V1),
        ("AWQ", "awq", &awq::PACKING),
    ] {
        let formats = without_variants(&packing.named());
        let rows = formats_table(formats.iter().map(|format| (*format, bits(packing, format))));
        writeln!(out, "{name} formats (--to {to} --format …, or --tensor 'REGEX=FORMAT')\n\n{rows}\n")?;
    }
    Ok(())
}

/// Bits per weight in the files, where scales are of 16 bits.
fn bits(packing: &Packing, format: &'static Format) -> f64 {
    packing.bits_per_weight(packing.scaled(format, &kernels::float::BF16))
}

/// Formats as users name them: the variants for scales of another type than BF16 follow from the model.
fn without_variants(formats: &[&'static Format]) -> Vec<&'static Format> {
    let variant = |format: &Format| ["-f16", "-f32"].iter().any(|end| format.name.ends_with(end));
    formats.iter().copied().filter(|format| !variant(format)).collect()
}

fn rows(formats: &[&'static Format]) -> comfy_table::Table {
    formats_table(formats.iter().map(|format| (*format, format.bits_per_weight())))
}

/// A line for each format and its bits per weight.
fn formats_table(formats: impl Iterator<Item = (&'static Format, f64)>) -> comfy_table::Table {
    let mut table = table(&["type", "bits/w", "weights per block", ""], &[1, 2]);
    for (format, bits) in formats {
        table.add_row([
            format.name.to_owned(),
            format!("{bits:.3}"),
            format.block.to_string(),
            if format.encode.is_some() { String::new() } else { "read only".to_owned() },
        ]);
    }
    table
}

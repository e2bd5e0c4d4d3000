//! `halfbyte inspect`.

use std::io::Write;

use anyhow::Result;
use formats::{
    checkpoint::Checkpoint,
    summary::{Summary, summarize},
};
use serde_json::{Value, json};

use crate::{
    args,
    source::{self, Need},
    table::{print_json, shape, table},
    text,
};

/// Shows what a model on disk holds, from its headers.
pub fn run(args: &args::Inspect) -> Result<()> {
    let checkpoint =
        Checkpoint::open(&source::open(&args.path, Need::Headers)?).map_err(quantize::Error::from)?;
    let summary = summarize(&checkpoint).map_err(quantize::Error::from)?;
    if args.json { print_json(&as_json(&summary)?) } else { print(&summary) }
}

fn bits_per_weight(summary: &Summary) -> f64 {
    summary.bytes() as f64 * 8.0 / summary.weights().max(1) as f64
}

fn as_json(summary: &Summary) -> Result<Value> {
    let mut value = serde_json::to_value(summary)?;
    value["weights"] = json!(summary.weights());
    value["bytes"] = json!(summary.bytes());
    value["bits_per_weight"] = json!(bits_per_weight(summary));
    value["totals"] = serde_json::to_value(summary.totals())?;
    Ok(value)
}

fn print(summary: &Summary) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !summary.metadata.is_empty() {
        for (key, value) in &summary.metadata {
            writeln!(out, "{key} = {}", short(value))?;
        }
        writeln!(out)?;
    }
    let mut tensors = table(&["tensor", "shape", "type", "bits/w", "bytes"], &[3, 4]);
    for tensor in &summary.tensors {
        tensors.add_row([
            tensor.name.clone(),
            shape(&tensor.shape),
            tensor.format.clone(),
            format!("{:.3}", tensor.bits_per_weight),
            tensor.bytes.to_string(),
        ]);
    }
    writeln!(out, "{tensors}\n")?;
    let mut totals = table(&["type", "tensors", "weights", "size"], &[1, 2, 3]);
    for total in summary.totals() {
        totals.add_row([
            total.format.clone(),
            total.tensors.to_string(),
            text::count(total.weights),
            text::bytes(total.bytes),
        ]);
    }
    writeln!(out, "{totals}\n")?;
    writeln!(
        out,
        "{} in {} file{}: {} weights in {} tensors, {}, {:.3} bits per weight",
        summary.container,
        summary.files.len(),
        if summary.files.len() == 1 { "" } else { "s" },
        text::count(summary.weights()),
        summary.tensors.len(),
        text::bytes(summary.bytes()),
        bits_per_weight(summary),
    )?;
    Ok(())
}

/// A value on one line: long arrays and texts are cut.
fn short(value: &Value) -> String {
    const MOST: usize = 80;
    let line = match value {
        Value::Array(values) if values.len() > 8 => {
            let first: Vec<String> = values.iter().take(4).map(Value::to_string).collect();
            format!("[{}, …] ({} values)", first.join(", "), values.len())
        }
        other => other.to_string(),
    };
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} characters)", &line[..end], line.chars().count()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut() {
        assert_eq!(short(&json!([1, 2])), "[1,2]");
        assert_eq!(short(&json!([0, 1, 2, 3, 4, 5, 6, 7, 8])), "[0, 1, 2, 3, …] (9 values)");
        assert_eq!(short(&json!("é".repeat(200))).chars().filter(|&c| c == 'é').count(), 79);
    }
}

//! The model card: what the files are, what they were made from and how, what was measured, and how to run them.

use std::{fmt::Write, fs, path::Path};

use quantize::{
    budget::{Engine, KvType},
    fit::{Fit, Wish},
    plan::Container,
    target::size,
};
use verify::{Outcome, text::significant};

use crate::{
    plan_verb::{first_file, shell},
    text,
};

/// The command that runs the model, at `path`, on its target.
pub fn command(path: &Path, wish: &Wish, fit: &Fit) -> String {
    let name = path.display();
    match wish.run.engine {
        Engine::LlamaCpp => format!("llama-server -m {name} {}", shell(&fit.flags)).trim_end().to_owned(),
        Engine::Mlx => format!("mlx_lm.generate --model {name} --prompt 'Hello' --max-tokens 256"),
    }
}

/// The card. Its front matter is what the Hub reads.
pub fn card(name: &str, source: &Path, wish: &Wish, fit: &Fit, verification: Option<&Outcome>) -> String {
    let mut card = String::new();
    // Writing to a string can't fail.
    let _ = write(&mut card, name, source, wish, fit, verification);
    card
}

fn write(
    card: &mut String,
    name: &str,
    source: &Path,
    wish: &Wish,
    fit: &Fit,
    verification: Option<&Outcome>,
) -> std::fmt::Result {
    let (library, container) = match wish.container {
        Container::Gguf => ("gguf", "GGUF"),
        Container::Mlx => ("mlx", "MLX"),
    };
    writeln!(card, "---")?;
    if let Some(license) = license(source) {
        writeln!(card, "license: {license}")?;
    }
    writeln!(card, "base_model: {name}\nbase_model_relation: quantized\nlibrary_name: {library}")?;
    writeln!(
        card,
        "pipeline_tag: text-generation\ntags:\n- {library}\n- halfbyte\nquantized_by: halfbyte\n---\n"
    )?;

    let target = wish.target.as_ref();
    let machine = target.map_or(String::new(), |target| format!(" for {}", target.name));
    writeln!(card, "# {name}{machine}\n")?;
    writeln!(
        card,
        "{container}, {} weights at {:.3} bits per weight, {} in all. Made from `{name}` by {} with `{}` \
         (SHA-256 of the recipe: `{}`); the same recipe and source give the same bytes.\n",
        text::count(fit.job.weights()),
        fit.job.bits_per_weight(),
        text::bytes(fit.job.file_bytes()),
        fit.job.recipe.tool,
        super::RECIPE,
        fit.job.recipe.hash(),
    )?;

    let model = first_file(fit);
    let here = match wish.container {
        Container::Gguf => Path::new(model.file_name().unwrap_or_default()),
        Container::Mlx => Path::new("."),
    };
    writeln!(card, "## Run\n\n```\n{}\n```\n", command(here, wish, fit))?;
    for share in &fit.shares {
        let (budget, buffers) = (&share.budget, share.budget.buffer_bytes());
        let kv = match wish.run.kv {
            KvType::F16 => String::new(),
            other => format!(", {}", other.name()),
        };
        writeln!(
            card,
            "- {}: {} of weights, {} of KV cache ({} tokens{kv}), {} to {} of buffers (estimate), of {} usable",
            share.name,
            size(budget.weights),
            size(budget.cache),
            wish.run.context * wish.run.parallel,
            size(buffers.low),
            size(buffers.high),
            size(share.usable),
        )?;
    }
    if let Some(speed) = &fit.speed {
        writeln!(
            card,
            "- about {:.1} to {:.1} tokens/s at a short context: an estimate from the memory's bandwidth",
            speed.start, speed.end
        )?;
    }

    writeln!(card, "\n## Measured\n")?;
    match verification {
        None => writeln!(card, "Not verified.")?,
        Some(outcome) => measured(card, outcome)?,
    }
    writeln!(card, "\n## Types\n\nThe first rule that matches a tensor's name counts:\n\n```")?;
    for rule in &fit.options.overrides {
        writeln!(card, "{rule}")?;
    }
    writeln!(card, "```\n\n## Check\n\n```\nsha256sum -c {}\n```", super::SUMS)
}

fn measured(card: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let metrics = &outcome.metrics;
    writeln!(card, "| figure | value |\n|---|---|")?;
    writeln!(card, "| perplexity | {} |", significant(metrics.perplexity, 5))?;
    if let Some(divergence) = &metrics.divergence {
        let rows = [
            ("perplexity of the original", significant(divergence.reference_perplexity, 5)),
            ("mean KL divergence from the original, nats", significant(divergence.mean_kld, 4)),
            ("same most likely token", format!("{:.2} %", 100.0 * divergence.same_top1)),
        ];
        for (figure, value) in rows {
            writeln!(card, "| {figure} | {value} |")?;
        }
    }
    writeln!(
        card,
        "\nOn `{}` (SHA-256 `{}`), by `halfbyte verify`: {}; {} tokens scored.",
        outcome.input.name,
        outcome.input.sha256.as_deref().unwrap_or("unknown"),
        outcome.protocol,
        metrics.tokens_scored
    )
}

/// The license that the source's own card names.
fn license(source: &Path) -> Option<String> {
    let card = fs::read_to_string(source.join("README.md")).ok()?;
    let front = card.strip_prefix("---")?.split("\n---").next()?;
    let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    Some(line.trim().to_owned()).filter(|license| !license.is_empty())
}

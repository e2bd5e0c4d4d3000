//! The model card: what the files are, what they were made from and how, what was measured, and how to run them.

use std::{fmt::Write, path::Path};

use formats::{Source, model_card::ModelCard, source::Origin};
use hub::{
    manifest::{self, File},
    sums,
};
use quantize::{
    budget::KvType,
    fit::{Fit, Wish},
    plan::Container,
    target::size,
};
use verify::{Outcome, text::significant};

use super::front_matter::front_matter;
use crate::{engine::command, text};

/// What a card is made of.
pub struct Subject<'a> {
    /// The source.
    pub source: &'a Source,
    /// What was wished.
    pub wish: &'a Wish,
    /// What came of it.
    pub fit: &'a Fit,
    /// What was measured.
    pub verification: Option<&'a Outcome>,
    /// The model's files.
    pub files: &'a [File],
    /// The names of all files that lie beside the card.
    pub beside: &'a [String],
}

/// The card. Its front matter is what the Hub reads.
///
/// # Errors
/// If the source's own card is there but can't be read.
pub fn card(subject: &Subject<'_>) -> formats::Result<String> {
    let path = subject.source.path();
    let own = match path.parent() {
        _ if path.is_dir() => ModelCard::read(path)?,
        // What lies beside a file may be anything, unless it is of the same repository.
        Some(folder) if subject.source.origin().is_some() => ModelCard::read(folder)?,
        _ => ModelCard::default(),
    };
    let library = match subject.wish.container {
        Container::Gguf => "gguf",
        Container::Mlx => "mlx",
        _ => "transformers",
    };
    let mut card = front_matter(subject.source, &own, library, subject.beside);
    // Writing to a string can't fail.
    let _ = write(&mut card, subject);
    Ok(card)
}

fn write(card: &mut String, subject: &Subject<'_>) -> std::fmt::Result {
    let Subject { source, wish, fit, .. } = *subject;
    let container = wish.container.title();
    let name = one_line(&source.name());
    let machine = wish.target.as_ref().map_or(String::new(), |target| format!(" for {}", target.name));
    writeln!(card, "# {}{machine}\n", name.replace(['<', '[', '|'], " "))?;
    let from = match source.origin() {
        Some(Origin { repo, commit }) => {
            format!("[{repo}](https://huggingface.co/{repo}/tree/{commit}) at commit `{commit}`")
        }
        None => code(&name),
    };
    let recipe = &fit.job.recipe;
    writeln!(
        card,
        "{container}, {} weights at {:.3} bits per weight, {} in all. Made from {from} by {} with `{}` (SHA-256 \
         `{}`); the same recipe and source give the same bytes.",
        text::count(fit.job.weights()),
        fit.job.bits_per_weight(),
        text::bytes(fit.job.file_bytes()),
        recipe.tool,
        super::RECIPE,
        recipe.hash(),
    )?;
    if let Some(calibration) = &recipe.calibration {
        writeln!(
            card,
            "Calibrated on {} chunks of {} tokens of the text with the SHA-256 `{}`, rounding: {}.",
            calibration.chunks,
            calibration.context,
            calibration.text,
            calibration.rounding.name()
        )?;
    }
    run(card, wish, fit)?;

    writeln!(card, "\n## Measured\n")?;
    match subject.verification {
        None => writeln!(card, "Not verified.")?,
        Some(outcome) => measured(card, outcome)?,
    }
    types(card, fit)?;
    writeln!(card, "\n## Files\n\n| file | bytes | SHA-256 |\n|---|---|---|")?;
    for file in subject.files {
        writeln!(card, "| {} | {} | `{}` |", code(&file.name), file.bytes, file.sha256)?;
    }
    writeln!(
        card,
        "\n## Check\n\nIn a copy of these files:\n\n```\nsha256sum -c {}\nhalfbyte check .\n```\n\n\
         `halfbyte check` also takes this repository's name: it then compares the hashes that the Hub states, without a \
         download of the weights. `{}` lists what these files were made from and measured to be, and the SHA-256 of every \
         file and every tensor.",
        sums::NAME,
        manifest::NAME
    )
}

/// What decided the type of each tensor.
fn types(card: &mut String, fit: &Fit) -> std::fmt::Result {
    let rules = &fit.options.overrides;
    if rules.is_empty() {
        return writeln!(
            card,
            "\n## Types\n\n`{}` for the linears of attention and MLPs; the rest is left in its own type.",
            fit.options.format
        );
    }
    writeln!(card, "\n## Types\n\nThe first rule that matches a tensor's name counts:\n\n```")?;
    for rule in rules {
        writeln!(card, "{rule}")?;
    }
    writeln!(card, "```")
}

/// How it is started, and what it takes then.
fn run(card: &mut String, wish: &Wish, fit: &Fit) -> std::fmt::Result {
    let model = fit.job.first_file();
    let here = match wish.container {
        Container::Gguf => Path::new(model.file_name().unwrap_or_default()),
        _ => Path::new("."),
    };
    writeln!(card, "\n## Run\n\n```\n{}\n```\n", command(here, wish, fit))?;
    for share in &fit.shares {
        let (budget, buffers) = (&share.budget, share.budget.buffer_bytes());
        let kv = match wish.run.kv {
            KvType::F16 => String::new(),
            _ => format!(", {}", wish.run.kv_name()),
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

    Ok(())
}

fn measured(card: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let metrics = &outcome.metrics;
    let with_error = |value: f64, digits, error: f64| {
        format!("{} ± {}", significant(value, digits), significant(error, 2))
    };
    writeln!(card, "| figure | value |\n|---|---|")?;
    writeln!(card, "| perplexity | {} |", with_error(metrics.perplexity, 5, metrics.perplexity_stderr))?;
    if let Some(d) = &metrics.divergence {
        let rows = [
            (
                "perplexity of the original",
                with_error(d.reference_perplexity, 5, d.reference_perplexity_stderr),
            ),
            ("mean KL divergence from the original, nats", with_error(d.mean_kld, 4, d.mean_kld_stderr)),
            ("99.9 % of the tokens diverge less than, nats", significant(d.kld_percentiles.p999, 4)),
            ("same most likely token", shares(d.same_top1, d.same_top1_stderr)),
            ("RMS change of a token's probability", shares(d.rms_dp, d.rms_dp_stderr)),
        ];
        for (figure, value) in rows {
            writeln!(card, "| {figure} | {value} |")?;
        }
    }
    writeln!(
        card,
        "\nOn {} (SHA-256 `{}`), by `halfbyte verify`: {}; {} tokens scored.",
        code(&outcome.input.name),
        outcome.input.sha256.as_deref().unwrap_or("unknown"),
        outcome.protocol,
        metrics.tokens_scored
    )
}

/// A share and its error, in percent.
fn shares(share: f64, error: f64) -> String {
    format!("{:.2} ± {:.2} %", 100.0 * share, 100.0 * error)
}

/// A text that stays on its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text as code, within a line or a table.
fn code(text: &str) -> String {
    format!("`{}`", one_line(text).replace('`', "'").replace('|', " "))
}

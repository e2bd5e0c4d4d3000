//! `halfbyte check`.

use std::{fmt, io::Write};

use anyhow::Result;
use hub::{
    Manifest, Named,
    check::{self, Problem, Report, Signed},
    sign::Key,
};
use serde_json::{Value, json};
use verify::text::significant;

use crate::{args, interrupt::interruptible, source, table::print_json, text, transfers::Transfers};

/// Checks, tells, and fails if something does not hold.
pub fn run(args: &args::Check) -> Result<()> {
    let key = args.key.as_deref().map(Key::of).transpose()?;
    let named = Named::of_source(&args.path)?;
    let watch = Transfers::new();
    let report = match &named {
        Some(named) => check::repository(&*source::client()?, named, key.as_ref(), &watch)?,
        None => check::folder(&args.path, key.as_ref(), &*interruptible()?, &watch)?,
    };
    if args.json { print_json(&report_json(&report)) } else { print(&report) }?;
    holds(&report)
}

/// It is not what was published.
#[derive(Debug)]
pub struct Broken {
    place: String,
    problems: usize,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { place, problems } = self;
        let what = if *problems == 1 { "one problem".to_owned() } else { format!("{problems} problems") };
        write!(f, "{place} does not hold: {what}. Fetch or make what is named again")
    }
}

impl std::error::Error for Broken {}

/// Nothing if all holds, else the error to end with.
pub fn holds(report: &Report) -> Result<()> {
    if report.holds() {
        return Ok(());
    }
    Err(Broken { place: report.place.clone(), problems: report.problems.len() }.into())
}

/// `model.gguf: tensor blk.0.attn_q.weight: its …`.
fn line(problem: &Problem) -> String {
    let tensor =
        problem.tensor.as_ref().map_or(String::new(), |tensor| format!("tensor {}: ", clean(tensor)));
    format!("{}: {tensor}{}", clean(&problem.file), clean(&problem.problem))
}

/// What strangers wrote, without what could steer a terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Tells a report on standard output.
pub fn print(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if let Some(manifest) = &report.manifest {
        for line in about(manifest) {
            writeln!(out, "{}", clean(&line))?;
        }
    }
    writeln!(out, "signature: {}", clean(&signature(&report.signature)))?;
    for warning in &report.warnings {
        writeln!(out, "warning: {}", clean(warning))?;
    }
    for problem in &report.problems {
        writeln!(out, "{}", line(problem))?;
    }
    let at = report.commit.as_ref().map_or(String::new(), |commit| format!(" at commit {commit}"));
    let tensors = report.manifest.as_ref().map_or(0, |manifest| manifest.tensors.len());
    if report.holds() {
        writeln!(
            out,
            "{}{at} holds: {} files, {} with {tensors} tensors, are what was published",
            report.place,
            report.files,
            text::bytes(report.bytes)
        )?;
    }
    Ok(())
}

/// What a model says of itself.
fn about(manifest: &Manifest) -> Vec<String> {
    let source = &manifest.source;
    let from = match (&source.repo, &source.commit) {
        (Some(repo), Some(commit)) => format!("{repo} at commit {commit}"),
        (Some(repo), None) => repo.clone(),
        _ => source.name.clone(),
    };
    let mut lines = vec![
        format!(
            "made from {from} by {}: {} {}, {:.3} bits per weight",
            manifest.tool, manifest.container, manifest.format, manifest.bits_per_weight
        ),
        format!("recipe: {} ({})", manifest.recipe.sha256, manifest.recipe.file),
    ];
    lines.push(match manifest.verified() {
        Err(problem) => format!("verified: no: {problem}"),
        Ok(verification) => {
            let mut line = format!("verified: perplexity {}", significant(verification.perplexity, 5));
            if let Some(divergence) = &verification.divergence {
                line += &format!(
                    ", the source's {}; mean KLD {} ± {} nats; same top token {:.2} %",
                    significant(divergence.reference_perplexity, 5),
                    significant(divergence.mean_kld, 4),
                    significant(divergence.mean_kld_error, 2),
                    100.0 * divergence.same_top1
                );
            }
            line + &format!("; on {} ({})", verification.input.name, verification.protocol)
        }
    });
    lines
}

fn signature(signed: &Signed) -> String {
    match signed {
        Signed::No => "none".to_owned(),
        Signed::Unchecked { key } => {
            format!("by the key {key}, not checked: give the public key with --key")
        }
        Signed::Holds { key, comment } => format!("holds, key ID {key} ({comment})"),
        Signed::Fails => "does not hold".to_owned(),
    }
}

/// The same for machines.
pub fn report_json(report: &Report) -> Value {
    let manifest = report.manifest.as_ref();
    json!({
        "holds": report.holds(),
        "place": report.place,
        "commit": report.commit,
        "problems": report.problems,
        "warnings": report.warnings,
        "files": report.files,
        "bytes": report.bytes,
        "tensors": manifest.map(|manifest| manifest.tensors.len()),
        "tool": manifest.map(|manifest| &manifest.tool),
        "source": manifest.map(|manifest| &manifest.source),
        "recipe": manifest.map(|manifest| &manifest.recipe),
        "verification": manifest.and_then(|manifest| manifest.verified().ok()),
        "signature": report.signature,
    })
}

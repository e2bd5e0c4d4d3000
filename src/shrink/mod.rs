//! `halfbyte shrink`: plan, quantize, verify and describe, in one command.
//!
//! Each step is the verb of its own; what is finished is not done again when the same command is run again after an
//! interruption.

mod beside;
mod card;
mod front_matter;
mod publishing;

use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
    slice,
    sync::atomic::AtomicBool,
};

use anyhow::{Context, Result};
use formats::Source;
use hub::{RepoId, manifest, sums};
use publishing::Publication;
use quantize::{
    fit::{Answer, Basis, Fit, Wish, fit},
    plan::Container,
};
use serde_json::{Value, json};
use verify::{Input, Options, Outcome, Precision, Processor, report};

use crate::{
    args, calibration, engine,
    interrupt::interruptible,
    plan_verb,
    publish_verb::tell,
    quantize_verb,
    source::{self, Need},
    steps::Steps,
    table::print_json,
    verify_verb,
};

/// The first chapters of Jane Austen's Persuasion (1818), in the public domain: what is verified on unless a text is given.
const TEXT: &str = include_str!("persuasion.txt");

/// Chunks of the text that are verified on unless told otherwise: a few thousand tokens.
const CHUNKS: usize = 16;
const CONTEXT: usize = 512;

/// What lies beside the model.
const RECIPE: &str = "recipe.toml";
const TEXT_FILE: &str = "verification.txt";
const VERIFICATION: &str = "verification.json";
const REPORT: &str = "report.html";
const CARD: &str = "README.md";

/// Does it all.
pub fn run(args: &args::Shrink) -> Result<()> {
    let to = publishing::to(args)?;
    let text = calibration::read(&args.calibrate, &args.on)?;
    let calibration = text.as_ref().map(|text| text.calibration.clone());
    let leaves = publishing::is_asked(args);
    let disk = args.disk.map(|disk| if leaves { publishing::share(disk) } else { disk });
    let source = source::open(&args.fit.source, Need::Weights { disk })?;
    // Rows of every tensor would be a whole reading of what is to be read once.
    let basis = if source.is_remote() { Basis::Expected } else { Basis::Sampled };
    let shard_size = args.disk.filter(|_| leaves).map(publishing::shard_size);
    let mut wish = Wish { calibration, shard_size, ..plan_verb::wish(&args.fit, basis)? };
    let name = source.name();
    let model = match wish.container {
        Container::Gguf => args.out.join(format!("{name}.gguf")),
        _ => args.out.clone(),
    };
    let cancel = interruptible()?;

    match &text {
        None if source.is_remote() => step(args, 1, "planning from headers"),
        None => step(args, 1, "planning: reading some rows of every tensor"),
        Some(text) => {
            step(args, 1, "planning: measuring what each type costs each tensor");
            wish.basis = text.measure(&source, &wish, args.threads, &cancel)?;
        }
    }
    let fit = match fit(&source, &model, &wish)? {
        Answer::Fits(fit) => fit,
        Answer::Short(short) => return Err(plan_verb::refuse(&name, &wish, &short, args.json)?.into()),
    };
    let text_name = args.text.as_deref().map(file_name);
    let source_names = fit.job.recipe.source.iter().map(|file| file.name.as_str());
    beside::check_names([name.as_str()].into_iter().chain(source_names).chain(text_name.as_deref()))?;
    if !args.json {
        plan_verb::print_summary(&name, &wish, &fit)?;
    }

    step(args, 2, "quantizing");
    fs::create_dir_all(&args.out).with_context(|| format!("can't make {}", args.out.display()))?;
    let options = quantize_verb::run_options(args.threads, args.memory, args.overwrite);
    let jobs = slice::from_ref(&fit.job);
    let publication = Publication::open(to, args, &fit.job, &name)?;
    if let Some(commit) = publication.already(&args.out, &fit.job)? {
        if args.json {
            return print_json(&json!({ "published": { "commit": commit }, "already_there": true }));
        }
        println!("it is published already, whole and from this very recipe, at commit {commit}");
        return Ok(());
    }
    let outlet = publication.outlet();
    let written =
        quantize_verb::write(jobs, &source, text.as_ref(), options, outlet, &cancel)?.swap_remove(0);
    let gone = written.as_ref().map(quantize_verb::Done::shipped).unwrap_or_default();
    if let Some(done) = written.as_ref().filter(|_| !args.json) {
        done.print()?;
    }
    put(&args.out.join(RECIPE), fit.job.recipe.to_toml().as_bytes())?;

    // What an earlier run measured may have been of other bytes.
    for name in [VERIFICATION, REPORT, TEXT_FILE] {
        let path = args.out.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't remove {}", path.display()));
            }
            _ => {}
        }
    }
    let verification = if args.no_verify {
        None
    } else {
        step(args, 3, "verifying the written bytes against the source");
        let processor = match &text {
            Some(text) => text.processor.clone(),
            None => args.on.open()?,
        };
        Some(verified(args, &source, &fit, processor, &cancel)?)
    };
    if let Some(outcome) = verification.as_ref().filter(|_| !args.json) {
        verify_verb::print(outcome, Some(&args.out.join(REPORT)))?;
    }

    source.done();

    step(args, 4, "writing the model card and the checksums");
    let manifest = beside::write(
        &args.out,
        &beside::Made {
            source: &source,
            wish: &wish,
            fit: &fit,
            entries: written.as_ref().map(quantize_verb::Done::entries),
            gone,
            verification: verification.as_ref(),
        },
        &cancel,
    )?;
    if args.to_hub.publish.is_some() {
        step(args, 5, "publishing");
    }
    let published = publication.finish(&args.out, &fit.job, &manifest, gone)?;
    if args.json {
        let plan = plan_verb::fits_json(&wish, &fit);
        let quantized: Option<Value> = written.as_ref().map(quantize_verb::Done::json);
        return print_json(&json!({
            "out": args.out, "model": fit.job.first_file(), "plan": plan, "quantized": quantized, "verification": verification,
            "published": published,
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{}: the model, {CARD}, {RECIPE}, {}, {}",
        args.out.display(),
        manifest::NAME,
        sums::NAME
    )?;
    if gone.is_empty() {
        writeln!(out, "run it: {}", engine::command(&fit.job.first_file(), &wish, &fit))?;
    }
    drop(out);
    match (&args.to_hub.publish, &published) {
        (Some(repo), Some(published)) => tell(args.to_hub.pr, &RepoId::parse(repo)?, published),
        _ => Ok(()),
    }
}

fn step(args: &args::Shrink, number: usize, what: &str) {
    if !args.json {
        let steps = if args.to_hub.publish.is_some() { 5 } else { 4 };
        eprintln!("{number}/{steps} {what}");
    }
}

fn verified(
    args: &args::Shrink,
    source: &Source,
    fit: &Fit,
    processor: Processor,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let text = match &args.text {
        Some(text) => text.clone(),
        None => {
            let text = args.out.join(TEXT_FILE);
            put(&text, TEXT.as_bytes())?;
            text
        }
    };
    let options = Options {
        model: fit.job.first_file().into(),
        against: Some(source.clone()),
        input: Input::Text(text),
        context: CONTEXT,
        chunks: Some(args.chunks.unwrap_or(CHUNKS)),
        stride: None,
        logits: None,
        threads: args.threads,
        memory: args.memory,
        processor,
        precision: Precision::F32,
    };
    let mut outcome = verify::evaluate(&options, &Steps::new(), cancel)?;
    // Names, not places: what is written here is published.
    outcome.model.path = file_name(fit.job.first_file().as_path());
    if let Some(reference) = outcome.reference.as_mut() {
        reference.path = match source.origin() {
            Some(_) => source.to_string(),
            None => source.name(),
        };
    }
    put(&args.out.join(VERIFICATION), &serde_json::to_vec_pretty(&outcome)?)?;
    report::write(&args.out.join(REPORT), &outcome)?;
    Ok(outcome)
}

/// The last part of a path; of one such as `.`, that of the folder that it is.
fn file_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_default()
}

/// Writes a small file whole or not at all.
pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, bytes)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("can't write {}", path.display()))
}

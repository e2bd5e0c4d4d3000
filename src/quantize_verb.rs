//! `halfbyte quantize`.

use std::{collections::BTreeMap, io::Write, sync::atomic::AtomicBool, time::Instant};

use anyhow::Result;
use formats::Source;
use quantize::{
    Error, Given, RecipeFile,
    calibrate::{self, report::Rounded},
    job::Job,
    journal::Entry,
    outlet::{Outlet, Shipped},
    pass::Busy,
    plan::Options,
    progress::Amount,
    run::{Outcome, RunOptions},
};
use serde_json::{Value, json};

use crate::{
    args,
    calibration::{self, Text},
    interrupt::interruptible,
    progress::Watch,
    source::{self, Need},
    table::{print_json, shape, table},
    text,
};

/// Plans the jobs from headers, then shows the plans or runs them.
pub fn run(args: &args::Quantize) -> Result<()> {
    let mut text = calibration::read(&args.calibrate, &args.on)?;
    if let (Some(text), Some(path)) = (&mut text, &args.imatrix_out) {
        text.gather(path)?;
    }
    let need = if args.dry_run { Need::Headers } else { Need::Weights { disk: args.disk } };
    let source = source::open(&args.source, need)?;
    let jobs = plan(args, &source, text.as_ref())?;
    for warning in jobs.iter().flat_map(|job| &job.warnings) {
        eprintln!("warning: {warning}");
    }
    if args.dry_run {
        if args.json {
            return print_all(jobs.iter().map(plan_json).collect());
        }
        return jobs.iter().try_for_each(print_plan);
    }

    let cancel = interruptible()?;
    let options = run_options(args.threads, args.memory, args.overwrite);
    let done = write(&jobs, &source, text.as_ref(), options, None, &cancel)?;
    source.done();
    if args.json {
        let json = |(job, done): (&Job, &Option<Done>)| match done {
            Some(done) => done.json(),
            None => {
                let mut result = plan_json(job);
                result["already_there"] = true.into();
                result
            }
        };
        return print_all(jobs.iter().zip(&done).map(json).collect());
    }
    for (job, done) in jobs.iter().zip(&done) {
        match done {
            Some(done) => done.print()?,
            None => println!(
                "{} is already there, whole and from this very recipe.",
                job.destination.path().display()
            ),
        }
    }
    Ok(())
}

/// Prints what became of the only job, or a list of what became of each.
fn print_all(mut results: Vec<Value>) -> Result<()> {
    if results.len() == 1 { print_json(&results.swap_remove(0)) } else { print_json(&results) }
}

/// By the recipe, or by the options: a job for each output.
fn plan(args: &args::Quantize, source: &Source, text: Option<&Text>) -> Result<Vec<Job>> {
    let calibration = text.map(|text| text.calibration.clone());
    let (given, formats) = (args.out.len(), args.format.len());
    if let Some(path) = &args.recipe {
        let [out] = &args.out[..] else {
            return Err(
                Error::Usage(format!("a recipe makes one output, but --out is given {given} times")).into()
            );
        };
        let (allow_nonfinite, imatrix) = (args.allow_nonfinite, args.imatrix.clone());
        let given = Given { allow_nonfinite, calibration, imatrix };
        return Ok(vec![RecipeFile::read(path)?.plan(source, out, given)?]);
    }
    if formats != given || args.to.len() != given && !(args.to.is_empty() && given == 1) {
        let to = args.to.len();
        let detail = format!("--to {to}, --format {formats}, --out {given} times");
        return Err(Error::Usage(format!(
            "each output needs its --to, --format and --out, in the same order; given are {detail}"
        ))
        .into());
    }
    let containers = args.to.iter().chain([&args::Container::Gguf]);
    let outputs = containers.zip(&args.format).zip(&args.out).map(|((to, format), out)| {
        let options = Options {
            overrides: args.tensors.clone(),
            shard_size: args.shard_size,
            align: args.align,
            allow_nonfinite: args.allow_nonfinite,
            calibration: calibration.clone(),
            imatrix: args.imatrix.clone(),
            ..Options::new((*to).into(), format)
        };
        Ok(Job::plan(source, out, &options)?)
    });
    outputs.collect()
}

/// How jobs are run, on all cores unless told otherwise.
pub fn run_options(threads: Option<usize>, memory: u64, overwrite: bool) -> RunOptions {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    RunOptions { threads, memory, overwrite }
}

/// Runs jobs from the same source; `None` where a job's very output lay there already. An `outlet` takes finished files away, unless the jobs are
/// calibrated.
pub fn write<'a>(
    jobs: &'a [Job],
    source: &Source,
    text: Option<&Text>,
    options: RunOptions,
    outlet: Option<&dyn Outlet>,
    cancel: &AtomicBool,
) -> Result<Vec<Option<Done<'a>>>> {
    let start = Instant::now();
    let watch = Watch::new();
    let ended = match text {
        None => {
            let one = |job| Ok((quantize::run::run(job, options, outlet, &watch, cancel)?, Vec::new()));
            jobs.iter().map(one).collect::<Result<Vec<_>>>()?
        }
        Some(text) => {
            let seen = text.seen.as_ref();
            let importance = seen.map(|seen| &seen.importance);
            let text_of = calibrate::Text { text: &text.text, seen: importance, processor: &text.processor };
            let ended = calibrate::run(source, jobs, text_of, options, &watch, cancel)?;
            seen.map(|seen| seen.write(&text.calibration)).transpose()?;
            ended
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let done = jobs.iter().zip(ended).map(|(job, (outcome, rounded))| match outcome {
        Outcome::AlreadyThere => None,
        Outcome::Written { entries, shipped, resumed, amount, busy } => {
            Some(Done { job, entries, shipped, resumed, amount, busy, seconds, rounded })
        }
    });
    Ok(done.collect())
}

/// Tells a plan on standard output.
pub fn print_plan(job: &Job) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut table = table(&["tensor", "shape", "type", "bytes"], &[3]);
    for (index, output) in job.outputs.iter().enumerate() {
        table.add_row([
            output.name.clone(),
            shape(&output.shape),
            job.formats[index].name.to_owned(),
            job.tensor_bytes(index).to_string(),
        ]);
    }
    writeln!(out, "{table}\n")?;
    writeln!(out, "{}", fallback_lines(job))?;
    writeln!(out, "{}", files_line(job))?;
    writeln!(
        out,
        "{} weights, {:.3} bits per weight, {} to read",
        text::count(job.weights()),
        job.bits_per_weight(),
        text::bytes(job.source_bytes()?)
    )?;
    Ok(())
}

fn files_line(job: &Job) -> String {
    let total = job.file_bytes();
    format!(
        "{}: {} ({} bytes) in {} file{}",
        job.destination.path().display(),
        text::bytes(total),
        total,
        job.layout.files.len(),
        if job.layout.files.len() == 1 { "" } else { "s" }
    )
}

fn fallback_lines(job: &Job) -> String {
    let lines = job.fallbacks.iter().map(|fallback| {
        format!(
            "fallback: {} in {} instead of {}: {}\n",
            fallback.tensor,
            fallback.got.name,
            fallback.wanted.name,
            fallback.reason()
        )
    });
    lines.collect()
}

/// A plan for machines.
pub fn plan_json(job: &Job) -> Value {
    let tensors: Vec<Value> = (0..job.outputs.len())
        .map(|index| {
            json!({
                "name": job.outputs[index].name,
                "shape": job.outputs[index].shape,
                "class": job.outputs[index].class.name(),
                "format": job.formats[index].name,
                "bytes": job.tensor_bytes(index),
            })
        })
        .collect();
    let files: Vec<Value> =
        job.layout.files.iter().map(|file| json!({ "name": file.name, "bytes": file.len })).collect();
    let fallbacks: Vec<Value> = job
        .fallbacks
        .iter()
        .map(|f| json!({ "tensor": f.tensor, "wanted": f.wanted.name, "got": f.got.name, "columns": f.columns }))
        .collect();
    json!({
        "output": job.destination.path(),
        "container": job.recipe.container.name(),
        "format": job.recipe.format,
        "recipe_sha256": job.recipe.hash(),
        "bytes": job.file_bytes(),
        "weights": job.weights(),
        "bits_per_weight": job.bits_per_weight(),
        "files": files,
        "fallbacks": fallbacks,
        "warnings": job.warnings,
        "tensors": tensors,
    })
}

/// A finished run, to be told.
pub struct Done<'a> {
    job: &'a Job,
    entries: Vec<Entry>,
    shipped: Vec<Shipped>,
    resumed: usize,
    amount: Amount,
    busy: Busy,
    seconds: f64,
    /// What calibration did.
    rounded: Vec<Rounded>,
}

/// What became of all tensors that do the same.
#[derive(Default)]
struct ClassSum {
    tensors: u64,
    weights: u64,
    bytes: u64,
    squared_error: f64,
    energy: f64,
    formats: Vec<&'static str>,
}

impl ClassSum {
    fn rms_error(&self) -> f64 {
        (self.squared_error / self.weights.max(1) as f64).sqrt()
    }

    fn relative_error(&self) -> f64 {
        if self.energy > 0.0 { (self.squared_error / self.energy).sqrt() } else { 0.0 }
    }
}

impl Done<'_> {
    /// What became of each tensor, in the order of the file.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The files that an outlet took, in the order of the output.
    pub fn shipped(&self) -> &[Shipped] {
        &self.shipped
    }

    fn classes(&self) -> BTreeMap<formats::output::Class, ClassSum> {
        let mut classes: BTreeMap<_, ClassSum> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let output = &self.job.outputs[index];
            let sum = classes.entry(output.class).or_default();
            sum.tensors += 1;
            sum.weights += output.elements();
            sum.bytes += self.job.tensor_bytes(index);
            sum.squared_error += entry.squared_error;
            sum.energy += entry.energy;
            let format = self.job.formats[index].name;
            if !sum.formats.contains(&format) {
                sum.formats.push(format);
            }
        }
        classes
    }

    fn nonfinite(&self) -> u64 {
        self.entries.iter().map(|entry| entry.nonfinite).sum()
    }

    /// Tells it on standard output.
    pub fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let mut table = table(
            &["class", "tensors", "weights", "types", "bits/w", "size", "RMS error", "relative"],
            &[1, 2, 4, 5, 6, 7],
        );
        for (class, sum) in self.classes() {
            table.add_row([
                class.name().to_owned(),
                sum.tensors.to_string(),
                text::count(sum.weights),
                sum.formats.join(" "),
                format!("{:.2}", sum.bytes as f64 * 8.0 / sum.weights.max(1) as f64),
                text::bytes(sum.bytes),
                format!("{:.3e}", sum.rms_error()),
                format!("{:.2} %", 100.0 * sum.relative_error()),
            ]);
        }
        writeln!(out, "{table}\n")?;
        write!(out, "{}", fallback_lines(self.job))?;
        if self.nonfinite() > 0 {
            writeln!(out, "{} weights were NaN or infinite (--allow-nonfinite)", self.nonfinite())?;
        }
        write!(out, "{}", self.calibration_lines())?;
        writeln!(out, "{}", files_line(self.job))?;
        let mut line = format!(
            "{} weights, {:.3} bits per weight, {}",
            text::count(self.job.weights()),
            self.job.bits_per_weight(),
            text::duration(self.seconds)
        );
        // What calibration rounds does not go through the streaming pass, whose amount this is.
        let calibrated = !self.rounded.is_empty();
        let weights = if calibrated { self.job.weights() } else { self.amount.weights };
        if weights > 0 {
            let rate = weights as f64 / self.seconds.max(1e-9);
            line += &format!(" ({} weights/s)", text::count(rate as u64));
        }
        if self.resumed > 0 {
            line += &format!(", {} of {} tensors from an earlier run", self.resumed, self.entries.len());
        }
        if let Some(peak) = text::peak_memory() {
            line += &format!(", peak memory {}", text::bytes(peak));
        }
        writeln!(out, "{line}")?;
        if self.amount.weights > 0 && !calibrated {
            writeln!(out, "{}", self.limit())?;
        }
        Ok(())
    }

    /// What calibration did to the errors of the products, and which experts it knows little of.
    fn calibration_lines(&self) -> String {
        let mut sum = Rounded::default();
        self.rounded.iter().for_each(|one| sum.add(one));
        if sum.matrices == 0 {
            return String::new();
        }
        let mut lines = format!(
            "calibrated: {} of {} matrices with error feedback",
            text::count(sum.fed_back),
            text::count(sum.matrices)
        );
        if sum.energy > 0.0 {
            lines += &format!(
                "; on tokens held out their products err by {:.2} %, with scales searched alone by {:.2} %",
                100.0 * (sum.written / sum.energy).sqrt(),
                100.0 * (sum.searched / sum.energy).sqrt()
            );
        }
        lines.push('\n');
        if let Some(rarest) = self.rounded.iter().min_by_key(|one| one.fewest_tokens) {
            lines += &format!(
                "the rarest input: {} tokens ({}); {} rows of experts saw none\n",
                rarest.fewest_tokens, rarest.tensor, sum.unseen_rows
            );
        }
        lines
    }

    /// The stage that was busy longest, and how much of the time each was.
    fn limit(&self) -> String {
        let shares = self.busy.shares();
        let longest = shares.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |stage| stage.0);
        let each = shares.map(|(stage, share)| format!("{stage} {:.0} %", 100.0 * share));
        format!("bound by {longest}; busy at the same time: {}", each.join(", "))
    }

    /// The same for machines.
    pub fn json(&self) -> Value {
        let mut result = plan_json(self.job);
        let classes: Vec<Value> = self
            .classes()
            .iter()
            .map(|(class, sum)| {
                json!({
                    "class": class.name(),
                    "tensors": sum.tensors,
                    "weights": sum.weights,
                    "bytes": sum.bytes,
                    "formats": sum.formats,
                    "rms_error": sum.rms_error(),
                    "relative_error": sum.relative_error(),
                })
            })
            .collect();
        if let Some(tensors) = result["tensors"].as_array_mut() {
            for ((tensor, entry), output) in tensors.iter_mut().zip(&self.entries).zip(&self.job.outputs) {
                let hashes: Vec<&str> = entry.planes.iter().map(|plane| plane.sha256.as_str()).collect();
                tensor["sha256"] = json!(hashes);
                tensor["rms_error"] = json!((entry.squared_error / output.elements().max(1) as f64).sqrt());
            }
        }
        result["already_there"] = false.into();
        result["classes"] = json!(classes);
        result["nonfinite"] = json!(self.nonfinite());
        result["seconds"] = json!(self.seconds);
        let Busy { read, encode, hash, write, sync, pass } = self.busy;
        result["busy_seconds"] = json!({ "reading": read, "encoding": encode, "hashing": hash, "writing": write, "syncing": sync, "pass": pass });
        result["busy_shares"] = Value::from_iter(self.busy.shares());
        result["resumed_tensors"] = json!(self.resumed);
        result["read_bytes"] = json!(self.amount.read);
        if !self.rounded.is_empty() {
            let one = |one: &Rounded| {
                json!({
                    "tensor": one.tensor, "format": one.format, "matrices": one.matrices, "error_feedback": one.fed_back,
                    "fewest_tokens": one.fewest_tokens, "unseen_rows": one.unseen_rows, "energy": one.energy,
                    "squared_error_searched": one.searched, "squared_error": one.written,
                })
            };
            result["calibrated"] = self.rounded.iter().map(one).collect();
        }
        result["peak_rss_bytes"] = json!(text::peak_memory());
        result
    }
}

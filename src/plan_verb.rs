//! `halfbyte plan`.

use std::{collections::BTreeMap, fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use formats::output::Class;
use quantize::{
    budget::{Engine, KvType, Run},
    error::Error,
    fit::{self, Answer, Basis, Fit, Rung, Share, Short, Wish},
    placement::Place,
    plan::Container,
    target::{Catalog, machine::ThisMachine, size},
};
use serde_json::{Value, json};
use verify::text::significant;

use crate::{
    args, calibration, engine,
    interrupt::interruptible,
    source::{self, Need},
    table::{print_json, table},
    text,
};

/// Nothing of the model fits: an answer, but not the one that was hoped for.
#[derive(Debug)]
pub struct TooLarge(u64);

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it does not fit: {} too many even in the smallest types", size(self.0))
    }
}

impl std::error::Error for TooLarge {}

/// Plans from headers and shows what it would be.
pub fn run(args: &args::Plan) -> Result<()> {
    let reads = args.sample || args.calibrate.calibrate.is_some();
    let source =
        source::open(&args.fit.source, if reads { Need::Weights { disk: None } } else { Need::Headers })?;
    let mut wish = wish(&args.fit, if args.sample { Basis::Sampled } else { Basis::Expected })?;
    if let Some(text) = calibration::read(&args.calibrate, &args.on)? {
        let cancel = interruptible()?;
        wish.calibration = Some(text.calibration.clone());
        wish.basis = text.measure(&source, &wish, None, &cancel)?;
    }
    let name = source.name();
    let out = PathBuf::from(match wish.container {
        Container::Gguf => format!("{name}.gguf"),
        _ => name.clone(),
    });
    match fit::fit(&source, &out, &wish)? {
        Answer::Fits(fit) => {
            if let Some(path) = &args.recipe {
                fs::write(path, fit.job.recipe.to_toml())
                    .with_context(|| format!("can't write {}", path.display()))?;
            }
            if args.json { print_json(&fits_json(&wish, &fit)) } else { print_fit(args, &name, &wish, &fit) }
        }
        Answer::Short(short) => Err(refuse(&name, &wish, &short, args.json)?.into()),
    }
}

/// Tells by how much it is too large, and gives the error to end with.
pub fn refuse(name: &str, wish: &Wish, short: &Short, json: bool) -> Result<TooLarge> {
    if json { print_json(&short_json(wish, short)) } else { print_short(name, wish, short) }?;
    Ok(TooLarge(short.missing))
}

/// What the user wishes.
pub fn wish(args: &args::Fit, basis: Basis) -> Result<Wish> {
    let catalog = Catalog::with_file(args.target_file.as_deref()).map_err(Error::from)?;
    let target = match &args.fit {
        Some(text) => Some(catalog.fit(text, &ThisMachine).map_err(Error::from)?),
        None => None,
    };
    let engine = engine::chosen(args, target.as_ref())?;
    let run = Run { engine, context: args.context, parallel: args.parallel, kv: KvType::find(&args.kv)? };
    if target.is_none() && args.max_size.is_none() {
        return Err(Error::Usage("give --fit TARGET, --max-size BYTES, or both".into()).into());
    }
    let container = engine.container();
    Ok(Wish { target, run, container, max_size: args.max_size, shard_size: None, basis, calibration: None })
}

/// One screen: whether it fits, what becomes what, how fast it would be.
pub fn print_summary(name: &str, wish: &Wish, fit: &Fit) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name}: {} weights, {}", text::count(fit.job.weights()), fits_line(wish))?;
    writeln!(out)?;
    for (index, share) in fit.shares.iter().enumerate() {
        // The table below calls them so.
        let is_host = index >= wish.target.as_ref().map_or(0, |target| target.devices.len());
        let label = match fit.shares.len() {
            1 => String::new(),
            _ if is_host => "host: ".to_owned(),
            _ => format!("device {index}: "),
        };
        write_share(&mut out, wish, &label, share)?;
    }
    writeln!(out, "{}", class_table(fit))?;
    writeln!(out)?;
    let total = fit.job.file_bytes();
    writeln!(
        out,
        "size   {:.3} bits per weight, {} ({total} bytes) in {} file{}",
        fit.job.bits_per_weight(),
        text::bytes(total),
        fit.job.layout.files.len(),
        if fit.job.layout.files.len() == 1 { "" } else { "s" }
    )?;
    if let Some(nats) = fit.predicted {
        writeln!(out, "loss   {} nats of mean KL divergence, predicted", significant(nats, 3))?;
    }
    writeln!(out, "speed  {}", speed_line(wish, fit))?;
    for line in ladder_lines(fit) {
        writeln!(out, "       {line}")?;
    }
    let notes = wish.target.iter().flat_map(|target| &target.notes);
    for note in notes {
        writeln!(out, "note   {note}")?;
    }
    writeln!(out, "costs  {}", costs_line(wish))?;
    Ok(())
}

fn print_fit(args: &args::Plan, name: &str, wish: &Wish, fit: &Fit) -> Result<()> {
    print_summary(name, wish, fit)?;
    let mut out = std::io::stdout().lock();
    if !fit.flags.is_empty() {
        writeln!(out, "run    {}", engine::command(&fit.job.first_file(), wish, fit))?;
    }
    match &args.recipe {
        Some(path) => writeln!(
            out,
            "next   halfbyte quantize {} --recipe {} --out {}",
            args.fit.source.display(),
            path.display(),
            fit.job.destination.path().display()
        )?,
        None => writeln!(
            out,
            "next   halfbyte shrink {} {} --out DIR",
            args.fit.source.display(),
            wish_options(args)
        )?,
    }
    Ok(())
}

/// The options that repeat a plan.
fn wish_options(args: &args::Plan) -> String {
    let args = &args.fit;
    let mut options = Vec::new();
    options.extend(args.fit.iter().map(|fit| format!("--fit {fit}")));
    options.extend(args.max_size.iter().map(|size| format!("--max-size {size}")));
    options.extend(args.target_file.iter().map(|file| format!("--target-file {}", file.display())));
    options.extend(args.engine.map(|engine| format!("--engine {}", Engine::from(engine).name())));
    options.extend(args.to.map(|to| format!("--to {}", Container::from(to).name())));
    if args.fit.is_some() {
        options.push(format!("--context {}", args.context));
    }
    if args.parallel > 1 {
        options.push(format!("--parallel {}", args.parallel));
    }
    if args.kv != "f16" {
        options.push(format!("--kv {}", args.kv));
    }
    options.join(" ")
}

/// Words for a shell: those with other signs than usual ones in quotes.
pub fn shell(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.,/=".contains(c));
        if plain { word.clone() } else { format!("'{word}'") }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn fits_line(wish: &Wish) -> String {
    let size = wish.max_size.map(|bytes| format!("files of at most {}", text::bytes(bytes)));
    let machine = wish.target.as_ref().map(|target| format!("{} ({})", target.name, target.description));
    let all: Vec<String> = machine.into_iter().chain(size).collect();
    format!("fits {}", all.join(" and "))
}

/// Columns of the bar.
const BAR: usize = 60;

/// A device's name, a bar of what it holds, and the numbers.
fn write_share(out: &mut impl Write, wish: &Wish, label: &str, share: &Share) -> Result<()> {
    let Share { name, usable, budget } = share;
    let total = budget.total().high;
    let column = |bytes: u64| (bytes as f64 / (*usable).max(1) as f64 * BAR as f64).round() as usize;
    let parts = [(budget.weights, '█'), (budget.cache, '▓'), (budget.buffer_bytes().high, '▒')];
    let mut bar = String::new();
    for (bytes, sign) in parts {
        // What there is shows.
        bar.extend(std::iter::repeat_n(sign, column(bytes).max(usize::from(bytes > 0))));
    }
    let bar: String = bar.chars().chain(std::iter::repeat('·')).take(BAR).collect();
    writeln!(out, "{label}{name}, {} usable", size(*usable))?;
    writeln!(out, "[{bar}]")?;
    let mut numbers = vec![format!("█ weights {}", size(budget.weights))];
    if budget.cache > 0 {
        let Run { context, parallel, .. } = wish.run;
        let times = if parallel > 1 { format!("{parallel} × ") } else { String::new() };
        let kv = wish.run.kv_name();
        numbers.push(format!("▓ KV cache {} ({times}{context} tokens, {kv})", size(budget.cache)));
    }
    let buffers = budget.buffer_bytes();
    if buffers.high > 0 {
        numbers.push(format!("▒ buffers {} to {} (estimate)", size(buffers.low), size(buffers.high)));
    }
    numbers.push(format!("· free {}", size(usable.saturating_sub(total))));
    writeln!(out, " {}\n", numbers.join("   "))?;
    Ok(())
}

/// What tensors of a class become and where they lie.
#[derive(Default)]
struct ClassRow {
    tensors: u64,
    weights: u64,
    bytes: u64,
    /// Type and how many tensors have it.
    formats: BTreeMap<&'static str, u64>,
    places: BTreeMap<String, u64>,
}

fn classes(fit: &Fit) -> BTreeMap<Class, ClassRow> {
    let mut rows: BTreeMap<Class, ClassRow> = BTreeMap::new();
    for (index, output) in fit.job.outputs.iter().enumerate() {
        let row = rows.entry(output.class).or_default();
        row.tensors += 1;
        row.weights += output.elements();
        row.bytes += fit.job.tensor_bytes(index);
        *row.formats.entry(fit.job.formats[index].name).or_default() += 1;
        let place = match fit.placement.of(output) {
            Place::Device(_) if fit.shares.len() < 2 => continue,
            Place::Device(device) => format!("device {device}"),
            Place::Host => "host".to_owned(),
            Place::Everywhere => "every device".to_owned(),
        };
        *row.places.entry(place).or_default() += 1;
    }
    rows
}

/// `q6_k` or `q4_k × 20, q6_k × 10`.
fn counted<K: AsRef<str>>(counts: &BTreeMap<K, u64>) -> String {
    if let Some((only, _)) = counts.iter().next().filter(|_| counts.len() == 1) {
        return only.as_ref().to_owned();
    }
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by(|a, b| b.1.cmp(a.1));
    let all: Vec<String> =
        counts.iter().map(|(name, count)| format!("{} × {count}", name.as_ref())).collect();
    all.join(", ")
}

fn class_table(fit: &Fit) -> comfy_table::Table {
    let placed = fit.shares.len() > 1;
    let mut header = vec!["class", "tensors", "types", "bits", "bytes"];
    if placed {
        header.push("where");
    }
    let mut table = table(&header, &[1, 3, 4]);
    for (class, row) in classes(fit) {
        let mut cells = vec![
            class.name().to_owned(),
            row.tensors.to_string(),
            counted(&row.formats),
            format!("{:.2}", row.bytes as f64 * 8.0 / row.weights.max(1) as f64),
            text::bytes(row.bytes),
        ];
        if placed {
            cells.push(counted(&row.places));
        }
        table.add_row(cells);
    }
    table
}

fn speed_line(wish: &Wish, fit: &Fit) -> String {
    match (&fit.speed, &wish.target) {
        (Some(speed), _) => format!(
            "about {} to {} tokens/s at a short context: an estimate, 50 to 55 % of what the memory's bandwidth allows",
            significant(speed.start, 3),
            significant(speed.end, 3)
        ),
        (None, Some(_)) => "no estimate: the bandwidth of this memory is not known".to_owned(),
        (None, None) => "no estimate: --fit names no machine".to_owned(),
    }
}

/// The mixes beside the plan: the best that takes no more, and the smallest that is better.
fn ladder_lines(fit: &Fit) -> Vec<String> {
    let bytes = fit.job.tensors_bytes();
    let cost = |rung: &Rung| {
        let nats = |cost| fit.predicted.map(|nats| format!(", {} nats", significant(cost * nats, 3)));
        let times =
            |cost| format!(", about {cost:.2} times the damage (estimate{})", nats(cost).unwrap_or_default());
        rung.cost.map(times).unwrap_or_default()
    };
    let harm = |rung: &&Rung| rung.cost.unwrap_or(f64::INFINITY);
    // The largest of those that harm alike, as all do beside a plan without loss.
    let no_larger = fit.ladder.iter().rev().filter(|rung| rung.bytes <= bytes);
    let smaller = no_larger.min_by(|a, b| harm(a).total_cmp(&harm(b)));
    let better = fit.ladder.iter().find(|rung| rung.bytes > bytes && harm(rung) < 1.0);
    let smaller = smaller.map(|rung| {
        format!("next smaller mix: {} with {}{}", rung.name, text::bytes(rung.bytes), cost(rung))
    });
    let better = better.map(|rung| {
        let more = text::bytes(rung.bytes - bytes);
        format!("next better mix: {} with {}, {more} more{}", rung.name, text::bytes(rung.bytes), cost(rung))
    });
    smaller.into_iter().chain(better).collect()
}

fn costs_line(wish: &Wish) -> String {
    match &wish.basis {
        Basis::Expected => "what each type costs is expected from headers alone (--sample reads some rows); how much each class \
                            matters is a table of other models'"
            .to_owned(),
        Basis::Sampled => "what each type costs was measured on some rows of every tensor; how much each class matters is a table \
                           of other models'"
            .to_owned(),
        Basis::Measured(measured) => format!(
            "what each type costs each tensor was measured by a forward pass over {} tokens",
            measured.tokens
        ),
    }
}

/// By how much it is too large, and what would do it.
fn print_short(name: &str, wish: &Wish, short: &Short) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let machine = wish.target.as_ref().map_or("the files", |target| &target.name);
    writeln!(
        out,
        "{name} does not fit {machine}: the smallest types take {}, {} too many.",
        size(short.smallest),
        size(short.missing)
    )?;
    if short.cache > 0 {
        let (cache, buffers) = (size(short.cache), size(short.buffers));
        let tokens = wish.run.context.saturating_mul(wish.run.parallel);
        writeln!(out, "The KV cache takes {cache} ({tokens} tokens), buffers up to {buffers} (estimate).")?;
    }
    if short.changes.is_empty() {
        let more = size(short.missing);
        match wish.run.engine {
            Engine::Vllm => writeln!(
                out,
                "No shorter context and no smaller cache would do it: a machine with {more} more, or fewer bits \
                 (--engine llama.cpp), would."
            )?,
            _ => writeln!(
                out,
                "No shorter context and no smaller cache would do it: a machine with {more} more, or host memory beside a \
                 card (--fit CARD+384GiB), would."
            )?,
        }
    }
    for change in &short.changes {
        let Run { context, parallel, kv, .. } = change.run;
        let parallel = if parallel > 1 { format!(" --parallel {parallel}") } else { String::new() };
        let kv = kv.name();
        writeln!(
            out,
            "It would with --context {context} --kv {kv}{parallel}: a cache of {}.",
            size(change.cache)
        )?;
    }
    Ok(())
}

fn run_json(run: &Run) -> Value {
    json!({
        "engine": run.engine.name(),
        "context": run.context,
        "parallel": run.parallel,
        "kv": run.kv.name(),
    })
}

/// A plan for machines.
pub fn fits_json(wish: &Wish, fit: &Fit) -> Value {
    let shares: Vec<Value> = fit.shares.iter().map(|share| {
        let buffers = share.budget.buffer_bytes();
        let basis: Vec<Value> = share.budget.buffers.iter().map(|buffer| {
            json!({ "name": buffer.name, "low": buffer.bytes.low, "high": buffer.bytes.high, "basis": buffer.basis })
        }).collect();
        json!({
            "name": share.name,
            "usable": share.usable,
            "weights": share.budget.weights,
            "kv_cache": share.budget.cache,
            "buffers": { "low": buffers.low, "high": buffers.high, "parts": basis },
            "total_high": share.budget.total().high,
            "free": share.usable.saturating_sub(share.budget.total().high),
        })
    }).collect();
    let classes: Vec<Value> = classes(fit)
        .iter()
        .map(|(class, row)| {
            json!({
                "class": class.name(),
                "tensors": row.tensors,
                "weights": row.weights,
                "bytes": row.bytes,
                "formats": row.formats,
                "places": row.places,
            })
        })
        .collect();
    let ladder: Vec<Value> = fit
        .ladder
        .iter()
        .map(|rung| {
            let nats = rung.cost.zip(fit.predicted).map(|(cost, plan)| cost * plan);
            let mut mix = json!({ "name": rung.name, "bytes": rung.bytes, "relative_damage": rung.cost });
            if let Some(nats) = nats {
                mix["predicted_mean_kld"] = nats.into();
            }
            mix
        })
        .collect();
    let tensors: Vec<Value> = (0..fit.job.outputs.len())
        .map(|index| {
            json!({
                "name": fit.job.outputs[index].name,
                "format": fit.job.formats[index].name,
                "bytes": fit.job.tensor_bytes(index),
            })
        })
        .collect();
    let measured = match &wish.basis {
        Basis::Measured(measured) => Some(&**measured),
        _ => None,
    };
    json!({
        "fits": true,
        "target": wish.target.as_ref().map(|target| &target.name),
        "max_size": wish.max_size,
        "run": run_json(&wish.run),
        "bytes": fit.job.file_bytes(),
        "weights": fit.job.weights(),
        "bits_per_weight": fit.job.bits_per_weight(),
        "files": fit.job.layout.files.len(),
        "devices": shares,
        "classes": classes,
        "flags": fit.flags,
        "tokens_per_second_estimate": fit.speed.as_ref().map(|speed| [speed.start, speed.end]),
        "named_mixes": ladder,
        "rules": fit.options.overrides,
        "recipe_sha256": fit.job.recipe.hash(),
        "sampled": matches!(wish.basis, Basis::Sampled),
        "predicted_mean_kld": fit.predicted,
        "measured": measured,
        "tensors": tensors,
    })
}

/// For machines, by how much it is too large, and what would do it.
fn short_json(wish: &Wish, short: &Short) -> Value {
    let changes: Vec<Value> = short
        .changes
        .iter()
        .map(|change| {
            let mut change_json = run_json(&change.run);
            change_json["kv_cache"] = change.cache.into();
            change_json
        })
        .collect();
    json!({
        "fits": false,
        "target": wish.target.as_ref().map(|target| &target.name),
        "max_size": wish.max_size,
        "run": run_json(&wish.run),
        "missing_bytes": short.missing,
        "smallest_bytes": short.smallest,
        "kv_cache": short.cache,
        "buffers_high": short.buffers,
        "would_fit_with": changes,
    })
}

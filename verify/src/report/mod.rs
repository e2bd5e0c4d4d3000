//! The report: one page with everything an evaluation found, without a script and without anything from elsewhere.

mod chart;
mod strips;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::{Map, Value};

use self::{
    chart::{Distribution, Layers, Scale},
    strips::Strips,
};
use crate::{
    description::{Model, ModelFile},
    error::{Error, Result},
    metrics::Divergence,
    outcome::{LayerDamage, Outcome},
    text,
    verdict::{Level, Verdict},
};

/// The page. Its name ends in `.html`, by which minijinja escapes all that is put in.
const NAME: &str = "report.html";
const TEMPLATE: &str = include_str!("report.html");

/// Writes the report to `path`: under a temporary name beside it first, so that what is there under its own name is whole.
///
/// # Errors
/// If it can't be written.
pub fn write(path: &Path, outcome: &Outcome) -> Result<()> {
    let page = render(outcome)?;
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, page).map_err(Error::io(&partial))?;
    fs::rename(&partial, path).map_err(Error::io(path))
}

/// The report as HTML.
///
/// # Errors
/// If the template does not fit what is put in.
pub fn render(outcome: &Outcome) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template(NAME, TEMPLATE)?;
    Ok(environment.get_template(NAME)?.render(Serde(Page::of(outcome)))?)
}

/// All that the template shows, ready to be shown.
#[derive(Serialize)]
struct Page {
    title: String,
    against: Option<String>,
    verdict: Verdict,
    scale: Option<Scale>,
    tiles: Vec<Tile>,
    distribution: Option<Distribution>,
    percentiles: Vec<Fact>,
    layers: Option<Layers>,
    layer_rows: Vec<LayerRow>,
    strips: Option<Strips>,
    subjects: Vec<Subject>,
    protocol: String,
    input: FileRow,
    run: Vec<Fact>,
    levels: Vec<LevelRow>,
    tool: &'static str,
}

/// A figure in large letters.
#[derive(Serialize)]
struct Tile {
    label: &'static str,
    value: String,
    note: String,
}

/// A name and what belongs to it.
#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
}

/// One of the two models.
#[derive(Serialize)]
struct Subject {
    role: &'static str,
    facts: Vec<Fact>,
    files: Vec<FileRow>,
    provenance: Vec<Fact>,
}

#[derive(Serialize)]
struct FileRow {
    name: String,
    size: String,
    sha256: Option<String>,
}

#[derive(Serialize)]
struct LayerRow {
    layer: usize,
    error: String,
    cosine: String,
}

/// What a level means, for the table of limits.
#[derive(Serialize)]
struct LevelRow {
    level: Level,
    name: &'static str,
    meaning: &'static str,
    mean: String,
    tail: String,
    same_top: String,
    current: bool,
}

impl Page {
    fn of(outcome: &Outcome) -> Page {
        let mut verdict = Verdict::of(&outcome.metrics);
        verdict.because = unbroken(&verdict.because);
        let divergence = outcome.metrics.divergence.as_ref();
        let mut subjects = vec![Subject::of("Measured", &outcome.model)];
        subjects.extend(outcome.reference.iter().map(|reference| Subject::of("Reference", reference)));
        Page {
            title: file_name(&outcome.model.path),
            against: outcome.reference.as_ref().map(|reference| file_name(&reference.path)),
            scale: divergence.map(Scale::of),
            tiles: tiles(outcome)
                .into_iter()
                .map(|tile| Tile { note: unbroken(&tile.note), ..tile })
                .collect(),
            distribution: divergence.map(Distribution::of),
            percentiles: divergence.map(percentiles).unwrap_or_default(),
            layers: (!outcome.layers.is_empty()).then(|| Layers::of(&outcome.layers)),
            layer_rows: outcome.layers.iter().map(LayerRow::of).collect(),
            strips: Strips::of(&outcome.tensors),
            subjects,
            protocol: outcome.protocol.clone(),
            input: FileRow::of(&outcome.input),
            run: run(outcome),
            levels: Level::ALL.map(|level| LevelRow::of(level, verdict.level == Some(level))).into(),
            verdict,
            tool: concat!("halfbyte ", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// The last part of a path: what one calls a model.
fn file_name(path: &str) -> String {
    let name = Path::new(path).file_name();
    name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A text in which no line ends between a number and its sign or unit,.
fn unbroken(text: &str) -> String {
    let pairs =
        [(" %", "\u{a0}%"), ("× ", "×\u{a0}"), ("± ", "±\u{a0}"), (" MB", "\u{a0}MB"), (" GB", "\u{a0}GB")];
    pairs.into_iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn tiles(outcome: &Outcome) -> Vec<Tile> {
    let metrics = &outcome.metrics;
    let size = Tile {
        label: "Size",
        value: text::bytes(outcome.model.bytes),
        note: match &outcome.reference {
            Some(reference) => format!(
                "{:.2} bits per weight; the reference {}",
                outcome.model.bits_per_weight,
                text::bytes(reference.bytes)
            ),
            None => format!("{:.2} bits per weight", outcome.model.bits_per_weight),
        },
    };
    let Some(d) = &metrics.divergence else {
        let perplexity = Tile {
            label: "Perplexity",
            value: text::significant(metrics.perplexity, 5),
            note: format!("± {}", text::significant(metrics.perplexity_stderr, 2)),
        };
        return vec![perplexity, size];
    };
    vec![
        Tile {
            label: "Mean KL divergence",
            value: text::significant(d.mean_kld, 3),
            note: format!("± {} nats", text::significant(d.mean_kld_stderr, 2)),
        },
        Tile {
            label: "99.9 % KL divergence",
            value: text::significant(d.kld_percentiles.p999, 3),
            note: format!("worst token {}", text::significant(d.kld_percentiles.max, 3)),
        },
        Tile {
            label: "Same top token",
            value: text::percent(d.same_top1),
            note: format!("± {}", text::percent(d.same_top1_stderr)),
        },
        Tile {
            label: "Perplexity",
            value: text::significant(metrics.perplexity, 5),
            note: format!(
                "reference {}; × {}",
                text::significant(d.reference_perplexity, 5),
                text::with_error(d.perplexity_ratio(), d.perplexity_ratio() * d.ln_perplexity_ratio_stderr)
            ),
        },
        Tile {
            label: "RMS change of probability",
            value: text::percent(d.rms_dp),
            note: format!(
                "± {}; mean {}",
                text::percent(d.rms_dp_stderr),
                text::percent(d.mean_dp).replace('-', "−")
            ),
        },
        size,
    ]
}

fn percentiles(divergence: &Divergence) -> Vec<Fact> {
    let p = &divergence.kld_percentiles;
    let named = [
        ("Mean", divergence.mean_kld),
        ("Median", p.p50),
        ("90 %", p.p90),
        ("95 %", p.p95),
        ("99 %", p.p99),
        ("99.9 %", p.p999),
        ("Maximum", p.max),
    ];
    named.into_iter().map(|(name, kld)| fact(name, text::significant(kld, 4))).collect()
}

fn run(outcome: &Outcome) -> Vec<Fact> {
    let mut facts = vec![
        fact("Tokens scored", outcome.metrics.tokens_scored.to_string()),
        fact("Speed", format!("{} tokens per second", text::significant(outcome.tokens_per_second, 3))),
        fact("Time", text::duration(outcome.seconds)),
    ];
    facts.extend(outcome.peak_rss_bytes.map(|peak| fact("Peak memory", text::bytes(peak))));
    facts
}

fn fact(name: impl Into<String>, value: impl Into<String>) -> Fact {
    Fact { name: name.into(), value: value.into() }
}

impl Subject {
    fn of(role: &'static str, model: &Model) -> Subject {
        Subject {
            role,
            facts: vec![
                fact("Path", &*model.path),
                fact("Container", &*model.container),
                fact("Architecture", &*model.architecture),
                fact("Formats", model.formats.join(", ")),
                fact("Weights", text::count(model.weights)),
                fact(
                    "Size",
                    format!("{}, {:.3} bits per weight", text::bytes(model.bytes), model.bits_per_weight),
                ),
            ],
            files: model.files.iter().map(FileRow::of).collect(),
            provenance: provenance(&model.provenance),
        }
    }
}

impl FileRow {
    fn of(file: &ModelFile) -> FileRow {
        FileRow { name: file.name.clone(), size: text::bytes(file.bytes), sha256: file.sha256.clone() }
    }
}

/// Values on one line each; strings without their quotes.
fn provenance(values: &Map<String, Value>) -> Vec<Fact> {
    let line = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    values.iter().map(|(key, value)| fact(key, line(value))).collect()
}

impl LayerRow {
    fn of(layer: &LayerDamage) -> LayerRow {
        LayerRow {
            layer: layer.layer,
            error: format!("{} %", text::significant(100.0 * layer.relative_error, 4)),
            cosine: format!("{:.6}", layer.cosine),
        }
    }
}

impl LevelRow {
    fn of(level: Level, current: bool) -> LevelRow {
        let limit = |limit: f64| if limit.is_finite() { format!("≤ {limit}") } else { "more".to_owned() };
        LevelRow {
            level,
            name: level.name(),
            meaning: level.meaning(),
            mean: limit(level.mean_limit()),
            tail: limit(level.tail_limit()),
            same_top: match level {
                Level::Damaged => "less".to_owned(),
                _ => format!("≥ {} %", 100.0 * level.same_top_limit()),
            },
            current,
        }
    }
}

#[cfg(test)]
mod tests;

//! `halfbyte verify`.

use std::{fmt, io::Write, path::Path};

use anyhow::{Context, Result, bail};
use formats::Source;
use verify::{
    Input, Options, Outcome, Precision,
    metrics::{Divergence, Metrics},
    outcome::ClassDamage,
    report,
    text::{percent, significant},
    verdict::Verdict,
};

use crate::{
    args,
    interrupt::interruptible,
    source::{self, Need},
    steps::Steps,
    table::{print_json, table},
    text,
};

/// Measures, tells, and judges by the gates.
pub fn run(args: &args::Verify) -> Result<()> {
    let input = match (&args.text, &args.tokens) {
        (Some(text), _) => Input::Text(text.clone()),
        (None, Some(tokens)) => Input::Tokens(tokens.clone()),
        (None, None) => bail!(verify::Error::Usage("give --text or --tokens".into())),
    };
    // Known now rather than after hours.
    for out in [&args.report, &args.logits].into_iter().flatten() {
        has_a_folder(out)?;
    }
    let need = Need::Weights { disk: args.disk };
    let processor = args.on.open()?;
    // A graphics processor is kept busy by many tokens at once, and by weights that stay there.
    let memory = args.memory.unwrap_or(if processor.gpu_name().is_some() { 4 << 30 } else { 256 << 20 });
    let options = Options {
        model: source::open(&args.model, need)?,
        against: args.against.as_deref().map(|against| source::open(against, need)).transpose()?,
        input,
        context: args.context,
        chunks: args.chunks,
        stride: args.stride,
        logits: args.logits.clone(),
        precision: if args.fast { Precision::Fixed } else { Precision::F32 },
        threads: args.threads,
        memory,
        processor,
    };
    let cancel = interruptible()?;
    let mut outcome = verify::evaluate(&options, &Steps::new(), &cancel)?;
    [Some(&options.model), options.against.as_ref()].into_iter().flatten().for_each(Source::done);
    outcome.peak_rss_bytes = text::peak_memory();
    if let Some(path) = &args.report {
        report::write(path, &outcome)?;
    }
    if args.json { print_json(&outcome) } else { print(&outcome, args.report.as_deref()) }?;
    match exceeded(args, outcome.metrics.divergence.as_ref()) {
        Some(exceeded) => Err(exceeded.into()),
        None => Ok(()),
    }
}

fn has_a_folder(out: &Path) -> Result<()> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = std::fs::metadata(folder).with_context(|| format!("can't write {}", out.display()))?;
    if !found.is_dir() {
        bail!("can't write {}: {} is no folder", out.display(), folder.display());
    }
    Ok(())
}

/// The model is further from its reference than was allowed.
#[derive(Debug, PartialEq)]
pub struct Exceeded(Vec<Gate>);

/// A limit, and the figure beyond it.
#[derive(Debug, PartialEq)]
struct Gate {
    figure: &'static str,
    measured: f64,
    option: &'static str,
    limit: f64,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, gate) in self.0.iter().enumerate() {
            let Gate { figure, measured, option, limit } = gate;
            let comma = if i > 0 { "; " } else { "" };
            let beyond = significant(measured - limit, 3);
            let share = significant(100.0 * (measured / limit - 1.0), 3);
            let measured = significant(*measured, 4);
            write!(f, "{comma}{figure} {measured} exceeds {option} {limit} by {beyond} ({share} %)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Exceeded {}

fn exceeded(args: &args::Verify, divergence: Option<&Divergence>) -> Option<Exceeded> {
    let divergence = divergence?;
    let gates = [
        ("mean KLD", divergence.mean_kld, "--max-kld", args.max_kld),
        ("perplexity ratio", divergence.perplexity_ratio(), "--max-ppl-ratio", args.max_ppl_ratio),
    ];
    let beyond: Vec<Gate> = gates
        .into_iter()
        .filter_map(|(figure, measured, option, limit)| {
            Some(Gate { figure, measured, option, limit: limit? })
        })
        .filter(|gate| gate.measured > gate.limit)
        .collect();
    (!beyond.is_empty()).then_some(Exceeded(beyond))
}

/// Tells an outcome on standard output.
pub fn print(outcome: &Outcome, report: Option<&Path>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !outcome.tensors.is_empty() {
        let mut table = table(&["class", "tensors", "types", "SNR median", "worst", "tensor"], &[1, 3, 4]);
        for class in ClassDamage::of(&outcome.tensors) {
            table.add_row(class_row(&class));
        }
        writeln!(out, "{table}\n")?;
    }
    let mut figures = table(&["figure", "value", "error"], &[1, 2]);
    for row in rows(&outcome.metrics) {
        figures.add_row(row);
    }
    writeln!(out, "{figures}\n")?;
    if let Some(line) = layers_line(outcome) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "protocol: {}", outcome.protocol)?;
    let mut line = format!(
        "{} tokens scored in {}, {} tokens/s",
        outcome.metrics.tokens_scored,
        text::duration(outcome.seconds),
        significant(outcome.tokens_per_second, 3)
    );
    if let Some(peak) = outcome.peak_rss_bytes {
        line += &format!(", peak memory {}", text::bytes(peak));
    }
    writeln!(out, "{line}")?;
    if let Some(report) = report {
        writeln!(out, "report: {}", report.display())?;
    }
    let verdict = Verdict::of(&outcome.metrics);
    writeln!(out, "\n{}", verdict.line())?;
    for caveat in &verdict.caveats {
        writeln!(out, "{caveat}")?;
    }
    Ok(())
}

/// The figures of the table: name, value, standard error if it has one.
fn rows(metrics: &Metrics) -> Vec<[String; 3]> {
    // Six digits of a perplexity, however large its error: two runs over the same text differ by far less.
    let row = |name: &str, value, error| [name.to_owned(), significant(value, 6), significant(error, 2)];
    let share = |name: &str, value, error| [name.to_owned(), percent(value), percent(error)];
    let percentile = |name: &str, value| [name.to_owned(), significant(value, 4), String::new()];
    let perplexity = row("perplexity", metrics.perplexity, metrics.perplexity_stderr);
    let Some(d) = &metrics.divergence else { return vec![perplexity] };
    let p = &d.kld_percentiles;
    let ratio = d.perplexity_ratio();
    vec![
        perplexity,
        row("reference perplexity", d.reference_perplexity, d.reference_perplexity_stderr),
        row("perplexity ratio", ratio, ratio * d.ln_perplexity_ratio_stderr),
        row("mean KLD", d.mean_kld, d.mean_kld_stderr),
        percentile("median KLD", p.p50),
        percentile("90 % KLD", p.p90),
        percentile("95 % KLD", p.p95),
        percentile("99 % KLD", p.p99),
        percentile("99.9 % KLD", p.p999),
        percentile("maximum KLD", p.max),
        share("same top token", d.same_top1, d.same_top1_stderr),
        share("RMS Δp", d.rms_dp, d.rms_dp_stderr),
        share("mean Δp", d.mean_dp, d.mean_dp_stderr),
    ]
}

/// Class, tensors, types, median and worst ratio, the worst tensor.
fn class_row(class: &ClassDamage<'_>) -> [String; 6] {
    let decibels = |snr: Option<f64>| snr.map_or("exact".to_owned(), |snr| format!("{snr:.1} dB"));
    let worst = class.changed.first();
    [
        class.class.to_owned(),
        class.tensors().to_string(),
        class.formats.join(" "),
        decibels(class.median_db),
        decibels(worst.map(|(snr, _)| *snr)),
        worst.map_or(String::new(), |(_, tensor)| tensor.name.clone()),
    ]
}

/// Where along the layers the damage grows most.
fn layers_line(outcome: &Outcome) -> Option<String> {
    let last = outcome.layers.last()?;
    let mut before = 0.0;
    let steps = outcome.layers.iter().map(|layer| {
        let step = layer.relative_error - before;
        before = layer.relative_error;
        (layer.layer, step)
    });
    let (worst, step) = steps.max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(format!(
        "residual stream after the last layer: relative error {}, cosine {:.5}; layer {worst} adds most ({})",
        percent(last.relative_error),
        last.cosine,
        percent(step)
    ))
}

#[cfg(test)]
mod tests {
    use verify::metrics::{Comparison, measure};

    use super::*;

    fn args(max_kld: Option<f64>, max_ppl_ratio: Option<f64>) -> args::Verify {
        args::Verify {
            model: "m".into(),
            against: Some("r".into()),
            text: Some("t".into()),
            tokens: None,
            context: 512,
            chunks: None,
            stride: None,
            logits: None,
            fast: false,
            disk: None,
            threads: None,
            memory: None,
            on: args::OnDevice { device: verify::Device::Cpu },
            max_kld,
            max_ppl_ratio,
            report: None,
            json: false,
        }
    }

    /// Mean KLD 0.06, perplexity twice the reference's.
    fn metrics() -> Metrics {
        let nll = [2.0, 3.0];
        let comparisons =
            nll.map(|nll| Comparison { reference_nll: nll - 2f64.ln(), kld: 0.06, same_top: true });
        measure(&nll, Some(&comparisons)).expect("metrics")
    }

    #[test]
    fn gates_name_the_figure_and_how_far_it_is_beyond() {
        let metrics = metrics();
        let message = |kld, ratio| {
            exceeded(&args(kld, ratio), metrics.divergence.as_ref()).map(|exceeded| exceeded.to_string())
        };
        assert_eq!(message(None, None), None);
        assert_eq!(message(Some(0.07), Some(2.1)), None);
        assert_eq!(
            message(Some(0.05), Some(2.1)).as_deref(),
            Some("mean KLD 0.06000 exceeds --max-kld 0.05 by 0.0100 (20.0 %)")
        );
        assert_eq!(
            message(Some(0.05), Some(1.6)).as_deref(),
            Some(
                "mean KLD 0.06000 exceeds --max-kld 0.05 by 0.0100 (20.0 %); \
                 perplexity ratio 2.000 exceeds --max-ppl-ratio 1.6 by 0.400 (25.0 %)"
            )
        );
    }

    #[test]
    fn without_a_reference_the_table_has_perplexity_alone() {
        let alone = measure(&[2.0, 3.0], None).expect("metrics");
        assert_eq!(rows(&alone).len(), 1);
        assert_eq!(rows(&metrics()).len(), 13);
    }
}

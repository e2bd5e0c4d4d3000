//! What the figures come to, in words.

use serde::Serialize;

use crate::{
    metrics::{Divergence, Metrics},
    text,
};

/// How far a model is from its reference. The limits are ours; they separate what llama.cpp publishes for Llama 3 8B
/// against F16 on WikiText-2 (tools/perplexity/README.md): see [`PUBLISHED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Like published 8-bit files.
    Lossless,
    /// Like published 5- and 6-bit files.
    VeryClose,
    /// Like good 4-bit files.
    Close,
    /// Like plain 4-bit and 3-bit files.
    Changed,
    /// Like 2-bit files, or broken.
    Damaged,
}

/// Mean KLD of some formats on Llama 3 8B, as llama.cpp publishes them.
pub const PUBLISHED: [(&str, f64); 5] =
    [("Q8_0", 0.001355), ("Q6_K", 0.005452), ("Q4_K_M", 0.031273), ("Q3_K_M", 0.101913), ("Q2_K", 0.445132)];

impl Level {
    /// From the best to the worst.
    pub const ALL: [Level; 5] =
        [Level::Lossless, Level::VeryClose, Level::Close, Level::Changed, Level::Damaged];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Level::Lossless => "Practically lossless",
            Level::VeryClose => "Very close to the reference",
            Level::Close => "Close to the reference",
            Level::Changed => "Noticeably changed",
            Level::Damaged => "Badly damaged",
        }
    }

    /// What it compares with.
    pub fn meaning(self) -> &'static str {
        match self {
            Level::Lossless => "as published 8-bit files",
            Level::VeryClose => "as published 5- and 6-bit files",
            Level::Close => "as good 4-bit files",
            Level::Changed => "as plain 4-bit and 3-bit files",
            Level::Damaged => "as 2-bit files, or broken",
        }
    }

    /// The largest mean KLD that still is this level, in nats.
    pub fn mean_limit(self) -> f64 {
        match self {
            Level::Lossless => 0.003,
            Level::VeryClose => 0.015,
            Level::Close => 0.05,
            Level::Changed => 0.15,
            Level::Damaged => f64::INFINITY,
        }
    }

    /// The same of the 99.9 % KLD. In dense models it is 10 to 15 times the mean; twenty times is left for mixtures, where a
    /// router that tips over changes single tokens much.
    pub fn tail_limit(self) -> f64 {
        20.0 * self.mean_limit()
    }

    /// The level of a value under one of the limits.
    fn of(value: f64, limit: fn(Level) -> f64) -> Level {
        Level::ALL.into_iter().find(|&level| value <= limit(level)).unwrap_or(Level::Damaged)
    }
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The level; none without a reference.
    pub level: Option<Level>,
    /// In a few words.
    pub headline: String,
    /// The figures behind it, in one sentence or two.
    pub because: String,
    /// What to keep in mind, a sentence each.
    pub caveats: Vec<String>,
}

impl Verdict {
    /// Judges: the worse of the levels of mean and 99.9 % KLD. Perplexity has no say: an error can lower it.
    pub fn of(metrics: &Metrics) -> Verdict {
        match &metrics.divergence {
            Some(divergence) => compared(metrics, divergence),
            None => Verdict {
                level: None,
                headline: format!(
                    "Perplexity {}",
                    text::with_error(metrics.perplexity, metrics.perplexity_stderr)
                ),
                because: "There is no reference: perplexity alone does not tell what quantization cost. \
                          Give the original with --against."
                    .to_owned(),
                caveats: Vec::new(),
            },
        }
    }

    /// On one line.
    pub fn line(&self) -> String {
        format!("{}. {}", self.headline, self.because)
    }
}

fn compared(metrics: &Metrics, divergence: &Divergence) -> Verdict {
    let mean = Level::of(divergence.mean_kld, Level::mean_limit);
    let tail = Level::of(divergence.kld_percentiles.p999, Level::tail_limit);
    let level = mean.max(tail);
    let mut caveats = Vec::new();
    if tail > mean {
        caveats.push(format!(
            "The worst tokens decide: the mean alone would be “{}”, but one token in a thousand diverges by more than {}.",
            mean.name(),
            text::significant(mean.tail_limit(), 2)
        ));
    }
    let margin = 2.0 * divergence.mean_kld_stderr;
    let (low, high) = (divergence.mean_kld - margin, divergence.mean_kld + margin);
    if Level::of(low, Level::mean_limit) != Level::of(high, Level::mean_limit) {
        caveats.push(format!(
            "The mean KLD is within two standard errors of a limit: more tokens than these {} may tip the verdict.",
            metrics.tokens_scored
        ));
    }
    if metrics.tokens_scored < 1000 {
        caveats.push(format!(
            "Only {} tokens were scored: the 99.9 % KLD is little more than the single worst of them.",
            metrics.tokens_scored
        ));
    }
    if divergence.ln_perplexity_ratio < 0.0 && level > Level::Lossless {
        caveats.push(
            "Its perplexity is below the reference's, which is chance and no gain: the divergence counts."
                .to_owned(),
        );
    }
    Verdict {
        level: Some(level),
        headline: level.name().to_owned(),
        because: format!(
            "Mean KLD {} nats, 99.9 % of tokens below {}; the same token comes first in {} of positions; perplexity × {}.",
            text::with_error(divergence.mean_kld, divergence.mean_kld_stderr),
            text::significant(divergence.kld_percentiles.p999, 3),
            text::percent(divergence.same_top1),
            text::significant(divergence.perplexity_ratio(), 5),
        ),
        caveats,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Comparison, measure};

    /// `n` tokens of which `bad` diverge by `high`, the others by `low`.
    fn judge(n: usize, low: f64, bad: usize, high: f64) -> Verdict {
        let nll: Vec<f64> = (0..n).map(|i| 1.0 + 0.1 * (i % 7) as f64).collect();
        let comparisons: Vec<Comparison> = nll
            .iter()
            .enumerate()
            .map(|(i, &nll)| Comparison {
                reference_nll: nll - 0.01,
                kld: if i < bad { high } else { low },
                same_top: true,
            })
            .collect();
        Verdict::of(&measure(&nll, Some(&comparisons)).expect("metrics"))
    }

    #[test]
    fn what_is_published_falls_where_the_limits_say() {
        let levels = PUBLISHED.map(|(_, kld)| Level::of(kld, Level::mean_limit));
        assert_eq!(levels, Level::ALL);
        assert_eq!(Level::of(0.05, Level::mean_limit), Level::Close);
        assert_eq!(Level::of(1e9, Level::mean_limit), Level::Damaged);
    }

    #[test]
    fn the_worse_of_mean_and_tail_decides() {
        let even = judge(5000, 0.01, 0, 0.0);
        assert_eq!((even.level, even.caveats.len()), (Some(Level::VeryClose), 0));
        assert!(even.line().starts_with("Very close to the reference. Mean KLD 0.01"), "{}", even.line());
        let broken = judge(5000, 0.0001, 10, 0.5);
        assert_eq!(broken.level, Some(Level::Close));
        assert!(broken.caveats[0].contains("worst tokens decide"), "{:?}", broken.caveats);
    }

    #[test]
    fn doubt_is_said() {
        // Mean 0.015 with an error: a limit.
        let verdict = judge(5000, 0.014, 50, 0.114);
        assert!(verdict.caveats.iter().any(|c| c.contains("more tokens than these 5000")), "{verdict:?}");
        assert!(judge(100, 0.01, 0, 0.0).caveats[0].contains("Only 100 tokens"));
    }

    #[test]
    fn without_a_reference_there_is_no_level() {
        let verdict = Verdict::of(&measure(&[3.0, 3.5, 4.0], None).expect("metrics"));
        assert_eq!(verdict.level, None);
        assert!(verdict.headline.starts_with("Perplexity 33.") && verdict.because.contains("--against"));
    }
}

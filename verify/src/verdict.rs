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

    /// The smallest share of positions with the same top token. Llama 3 8B again: Q8_0 97.7 %, Q6_K 96.0 %, Q4_K_M 91.9 %,
    /// Q2_K 71.1 %.
    pub fn same_top_limit(self) -> f64 {
        match self {
            Level::Lossless => 0.97,
            Level::VeryClose => 0.935,
            Level::Close => 0.88,
            Level::Changed => 0.78,
            Level::Damaged => 0.0,
        }
    }

    /// The level of a mean KLD.
    pub fn of_mean(kld: f64) -> Level {
        Level::first(|level| kld <= level.mean_limit())
    }

    fn of_tail(kld: f64) -> Level {
        Level::first(|level| kld <= level.tail_limit())
    }

    fn of_same_top(share: f64) -> Level {
        Level::first(|level| share >= level.same_top_limit())
    }

    /// The best level for which `holds`.
    fn first(holds: impl Fn(Level) -> bool) -> Level {
        Level::ALL.into_iter().find(|&level| holds(level)).unwrap_or(Level::Damaged)
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
    /// Judges: the worst of the levels of mean KLD, 99.9 % KLD and same top token. Perplexity has no say: an error can lower
    /// it.
    pub fn of(metrics: &Metrics) -> Verdict {
        match &metrics.divergence {
            Some(divergence) => compared(metrics, divergence),
            None => Verdict {
                level: None,
                headline: format!(
                    "Perplexity {} ± {}",
                    text::significant(metrics.perplexity, 6),
                    text::significant(metrics.perplexity_stderr, 2)
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
    let mean = Level::of_mean(divergence.mean_kld);
    let tail = Level::of_tail(divergence.kld_percentiles.p999);
    let same_top = Level::of_same_top(divergence.same_top1);
    let level = mean.max(tail).max(same_top);
    let mut caveats = Vec::new();
    if mean < level {
        let tail = (tail == level).then(|| {
            let kld = text::significant(divergence.kld_percentiles.p999, 3);
            format!("one token in a thousand diverges by more than {kld}")
        });
        let top = (same_top == level).then(|| {
            let share = text::percent(1.0 - divergence.same_top1);
            format!("another token comes first in {share} of positions")
        });
        let reasons: Vec<String> = tail.into_iter().chain(top).collect();
        caveats.push(format!(
            "The mean KLD alone would be “{}”, but {}.",
            mean.name(),
            reasons.join(" and ")
        ));
    }
    let margin = 2.0 * divergence.mean_kld_stderr;
    let reach = [divergence.mean_kld - margin, divergence.mean_kld + margin].map(Level::of_mean);
    if reach.map(|mean| mean.max(tail).max(same_top)) != [level; 2] {
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

    /// `n` tokens of which `bad` diverge by `high`, the others by `low`; the top token is the same for all but `other`.
    fn judge(n: usize, low: f64, bad: usize, high: f64, other: usize) -> Verdict {
        let nll: Vec<f64> = (0..n).map(|i| 1.0 + 0.1 * (i % 7) as f64).collect();
        let comparisons: Vec<Comparison> = nll
            .iter()
            .enumerate()
            .map(|(i, &nll)| Comparison {
                reference_nll: nll - 0.01,
                kld: if i < bad { high } else { low },
                same_top: i >= other,
            })
            .collect();
        Verdict::of(&measure(&nll, Some(&comparisons)).expect("metrics"))
    }

    #[test]
    fn what_is_published_falls_where_the_limits_say() {
        let levels = PUBLISHED.map(|(_, kld)| Level::of_mean(kld));
        assert_eq!(levels, Level::ALL);
        let same_top = [0.97674, 0.96031, 0.91901, 0.71138].map(Level::of_same_top);
        assert_eq!(same_top, [Level::Lossless, Level::VeryClose, Level::Close, Level::Damaged]);
        assert_eq!((Level::of_mean(0.05), Level::of_mean(1e9)), (Level::Close, Level::Damaged));
    }

    #[test]
    fn the_worst_of_the_three_decides() {
        let even = judge(5000, 0.01, 0, 0.0, 0);
        assert_eq!((even.level, even.caveats.len()), (Some(Level::VeryClose), 0));
        assert!(even.line().starts_with("Very close to the reference. Mean KLD 0.01"), "{}", even.line());
        let broken = judge(5000, 0.0001, 10, 0.5, 0);
        assert_eq!(broken.level, Some(Level::Close));
        assert_eq!(
            broken.caveats[0],
            "The mean KLD alone would be “Practically lossless”, but one token in a thousand diverges by more than 0.500."
        );
        let flat = judge(5000, 0.0001, 0, 0.0, 250);
        assert_eq!(flat.level, Some(Level::VeryClose));
        assert!(
            flat.caveats[0].ends_with("but another token comes first in 5.00 % of positions."),
            "{flat:?}"
        );
    }

    #[test]
    fn doubt_is_said() {
        // Mean 0.015 with an error: a limit.
        let verdict = judge(5000, 0.014, 50, 0.114, 0);
        assert!(verdict.caveats.iter().any(|c| c.contains("more tokens than these 5000")), "{verdict:?}");
        assert!(judge(100, 0.01, 0, 0.0, 0).caveats[0].contains("Only 100 tokens"));
    }

    #[test]
    fn without_a_reference_there_is_no_level() {
        let verdict = Verdict::of(&measure(&[3.0, 3.5, 4.0], None).expect("metrics"));
        assert_eq!(verdict.level, None);
        assert!(verdict.headline.starts_with("Perplexity 33.") && verdict.because.contains("--against"));
    }
}

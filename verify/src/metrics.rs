//! What the scored tokens say together: perplexity, and the divergence from a reference.
//!
//! Definitions are those of llama.cpp's `llama-perplexity` (tools/perplexity/perplexity.cpp), so that figures compare with
//! published ones: a mean's standard error is √(v / (n − 1)) with v the mean squared deviation, and an error goes
//! through a function by its derivative (that of eˣ is eˣ · the error of x). All logarithms are natural.

use serde::Serialize;

use crate::{
    error::{Error, Result},
    histogram::Bin,
};

/// One scored token seen by model and reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Negative log-likelihood of the token by the reference, in nats.
    pub reference_nll: f64,
    /// Divergence KL(reference ‖ model) of the two distributions, in nats.
    pub kld: f64,
    /// Whether both find the same token most likely.
    pub same_top: bool,
}

/// What an evaluation measured. Without a reference, the keys of [`Divergence`] are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// How many tokens were scored.
    pub tokens_scored: u64,
    /// e to the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_stderr: f64,
    /// How far the model is from the reference.
    #[serde(flatten)]
    pub divergence: Option<Divergence>,
}

/// How far a model is from its reference. Probabilities are fractions of one, divergences in nats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// The reference's perplexity.
    pub reference_perplexity: f64,
    /// Its standard error.
    pub reference_perplexity_stderr: f64,
    /// ln(perplexity / reference's perplexity).
    pub ln_perplexity_ratio: f64,
    /// Its standard error. Both models score the same tokens, so their errors are correlated and this one is small.
    pub ln_perplexity_ratio_stderr: f64,
    /// Mean KL divergence.
    pub mean_kld: f64,
    /// Its standard error.
    pub mean_kld_stderr: f64,
    /// The distribution of the KL divergence over tokens.
    pub kld_percentiles: Percentiles,
    /// The same, counted in bins.
    pub kld_histogram: Vec<Bin>,
    /// Share of tokens for which both models find the same one most likely.
    pub same_top1: f64,
    /// Its standard error.
    pub same_top1_stderr: f64,
    /// Root of the mean squared change Δp of the probability of the text's token.
    pub rms_dp: f64,
    /// Its standard error.
    pub rms_dp_stderr: f64,
    /// Mean of Δp: positive if the model finds the text likelier than the reference does.
    pub mean_dp: f64,
    /// Its standard error.
    pub mean_dp_stderr: f64,
}

/// Percentiles, interpolated linearly between the two values around position p · (n − 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    #[serde(rename = "50")]
    pub p50: f64,
    /// One token in ten is above.
    #[serde(rename = "90")]
    pub p90: f64,
    /// One in twenty.
    #[serde(rename = "95")]
    pub p95: f64,
    /// One in a hundred.
    #[serde(rename = "99")]
    pub p99: f64,
    /// One in a thousand.
    #[serde(rename = "99.9")]
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Divergence {
    /// Perplexity divided by the reference's.
    pub fn perplexity_ratio(&self) -> f64 {
        self.ln_perplexity_ratio.exp()
    }
}

/// Measures a model by the negative log-likelihoods `nll` (in nats) of the scored tokens and, if there is a reference, by
/// one comparison for each of them.
///
/// # Errors
/// [`Error::TooFewTokens`] with fewer than two tokens, [`Error::NotFinite`] with the first token whose values are not
/// numbers, [`Error::Uneven`] if there is not one comparison for each token.
pub fn measure(nll: &[f64], comparisons: Option<&[Comparison]>) -> Result<Metrics> {
    if nll.len() < 2 {
        return Err(Error::TooFewTokens { scored: nll.len() });
    }
    finite("negative log-likelihood", nll.iter().copied())?;
    let divergence = comparisons.map(|comparisons| diverge(nll, comparisons)).transpose()?;
    let log = Mean::of(nll.iter().copied());
    let perplexity = exp("perplexity", &log)?;
    Ok(Metrics {
        tokens_scored: nll.len() as u64,
        perplexity: perplexity.value,
        perplexity_stderr: perplexity.stderr,
        divergence,
    })
}

fn diverge(nll: &[f64], comparisons: &[Comparison]) -> Result<Divergence> {
    if comparisons.len() != nll.len() {
        return Err(Error::Uneven { scored: nll.len(), compared: comparisons.len() });
    }
    let reference_nll = || comparisons.iter().map(|c| c.reference_nll);
    let klds = || comparisons.iter().map(|c| c.kld);
    finite("negative log-likelihood by the reference", reference_nll())?;
    finite("KL divergence", klds())?;

    let reference = exp("perplexity of the reference", &Mean::of(reference_nll()))?;
    // The error of a difference of correlated means is that of the mean difference.
    let ratio = Mean::of(nll.iter().zip(reference_nll()).map(|(model, reference)| model - reference));
    let kld = Mean::of(klds());
    let mut sorted: Vec<f64> = klds().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let same_top = Mean::of(comparisons.iter().map(|c| f64::from(u8::from(c.same_top))));
    let dp = || nll.iter().zip(reference_nll()).map(|(model, reference)| (-model).exp() - (-reference).exp());
    let mean_dp = Mean::of(dp());
    let square = Mean::of(dp().map(|dp| dp * dp));
    let rms_dp = square.value.sqrt();
    Ok(Divergence {
        reference_perplexity: reference.value,
        reference_perplexity_stderr: reference.stderr,
        ln_perplexity_ratio: ratio.value,
        ln_perplexity_ratio_stderr: ratio.stderr,
        mean_kld: kld.value,
        mean_kld_stderr: kld.stderr,
        kld_percentiles: Percentiles {
            p50: percentile(&sorted, 0.5),
            p90: percentile(&sorted, 0.9),
            p95: percentile(&sorted, 0.95),
            p99: percentile(&sorted, 0.99),
            p999: percentile(&sorted, 0.999),
            max: percentile(&sorted, 1.0),
        },
        kld_histogram: Bin::count(&sorted),
        same_top1: same_top.value,
        same_top1_stderr: same_top.stderr,
        rms_dp,
        rms_dp_stderr: if rms_dp > 0.0 { 0.5 * square.stderr / rms_dp } else { 0.0 },
        mean_dp: mean_dp.value,
        mean_dp_stderr: mean_dp.stderr,
    })
}

/// A mean, or a function of one, with its standard error.
struct Mean {
    value: f64,
    stderr: f64,
}

impl Mean {
    /// Of two values or more.
    fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Mean {
        let n = values.len() as f64;
        let value = values.clone().sum::<f64>() / n;
        let variance = values.map(|x| (x - value) * (x - value)).sum::<f64>() / n;
        Mean { value, stderr: (variance / (n - 1.0)).sqrt() }
    }
}

/// e to a mean; `what` names it where it leaves the range of a double.
fn exp(what: &'static str, mean: &Mean) -> Result<Mean> {
    let value = mean.value.exp();
    let stderr = value * mean.stderr;
    if !stderr.is_finite() {
        return Err(Error::TooLarge { what, ln: mean.value });
    }
    Ok(Mean { value, stderr })
}

/// `fraction` of the values are below; `sorted` is not empty.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (low, part) = (position.floor() as usize, position.fract());
    let high = (low + 1).min(sorted.len() - 1);
    (1.0 - part) * sorted[low] + part * sorted[high]
}

fn finite(what: &'static str, mut values: impl Iterator<Item = f64>) -> Result<()> {
    match values.position(|value| !value.is_finite()) {
        Some(token) => Err(Error::NotFinite { what, token }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{actual} is not {expected}");
    }

    fn comparison(reference_nll: f64, kld: f64, same_top: bool) -> Comparison {
        Comparison { reference_nll, kld, same_top }
    }

    #[test]
    fn perplexity_without_a_reference() {
        // ln 2, ln 8: mean ln 4, deviations ± ln 2, so the error of the mean is √(ln² 2 / 1).
        let metrics = measure(&[2f64.ln(), 8f64.ln()], None).expect("metrics");
        near(metrics.perplexity, 4.0);
        near(metrics.perplexity_stderr, 4.0 * 2f64.ln());
        assert_eq!((metrics.tokens_scored, metrics.divergence.is_none()), (2, true));
        let json = serde_json::to_value(&metrics).expect("JSON");
        assert_eq!(json.as_object().map(|keys| keys.len()), Some(3));
    }

    #[test]
    fn divergence_by_hand() {
        // Probabilities of the text's token: model ½, ¼, ½, ¼; reference ½, ½, ¼, ½.
        let nll = [2f64.ln(), 4f64.ln(), 2f64.ln(), 4f64.ln()];
        let comparisons = [
            comparison(2f64.ln(), 0.0, true),
            comparison(2f64.ln(), 0.1, true),
            comparison(4f64.ln(), 0.3, false),
            comparison(2f64.ln(), 0.2, true),
        ];
        let metrics = measure(&nll, Some(&comparisons)).expect("metrics");
        let d = metrics.divergence.expect("a reference");
        let ln2 = 2f64.ln();
        // Mean log 1.5 ln 2 and 1.25 ln 2; mean squared deviations ¼ ln² 2 and 3/16 ln² 2.
        near(metrics.perplexity, 2f64.powf(1.5));
        near(metrics.perplexity_stderr, 2f64.powf(1.5) * ln2 * (0.25f64 / 3.0).sqrt());
        near(d.reference_perplexity, 2f64.powf(1.25));
        near(d.reference_perplexity_stderr, 2f64.powf(1.25) * ln2 * (0.1875f64 / 3.0).sqrt());
        // Differences 0, 1, −1, 1 times ln 2: mean ¼, mean squared deviation ¾ − 1/16 = 11/16. By llama-perplexity's way:
        // covariance −1/8 ln² 2, and ¼ + 3/16 + 2/8 = 11/16 as well.
        near(d.ln_perplexity_ratio, 0.25 * ln2);
        near(d.ln_perplexity_ratio_stderr, ln2 * (0.6875f64 / 3.0).sqrt());
        near(d.perplexity_ratio(), 2f64.powf(0.25));
        // 0, .1, .3, .2: mean .15, mean square .035.
        near(d.mean_kld, 0.15);
        near(d.mean_kld_stderr, ((0.035f64 - 0.0225) / 3.0).sqrt());
        near(d.same_top1, 0.75);
        near(d.same_top1_stderr, (0.75f64 * 0.25 / 3.0).sqrt());
        // Δp: 0, −¼, ¼, −¼. Squares 0, 1/16 three times: mean 3/64, mean square 3/1024.
        near(d.mean_dp, -0.0625);
        near(d.mean_dp_stderr, ((3.0f64 / 64.0 - 1.0 / 256.0) / 3.0).sqrt());
        near(d.rms_dp, (3.0f64 / 64.0).sqrt());
        let square_stderr = ((3.0f64 / 1024.0 - 9.0 / 4096.0) / 3.0).sqrt();
        near(d.rms_dp_stderr, 0.5 / (3.0f64 / 64.0).sqrt() * square_stderr);
        // Positions 1.5, 2.7, 2.85, 2.97, 2.997, 3 in 0, .1, .2, .3.
        near(d.kld_percentiles.p50, 0.15);
        near(d.kld_percentiles.p90, 0.27);
        near(d.kld_percentiles.p95, 0.285);
        near(d.kld_percentiles.p99, 0.297);
        near(d.kld_percentiles.p999, 0.2997);
        near(d.kld_percentiles.max, 0.3);
        assert_eq!(d.kld_histogram.iter().map(|bin| bin.tokens).sum::<u64>(), 4);
    }

    #[test]
    fn a_model_against_itself_is_at_no_distance() {
        let nll = [1.0, 2.0, 4.0];
        let comparisons = nll.map(|nll| comparison(nll, 0.0, true));
        let d = measure(&nll, Some(&comparisons)).expect("metrics").divergence.expect("a reference");
        assert_eq!((d.ln_perplexity_ratio, d.ln_perplexity_ratio_stderr), (0.0, 0.0));
        assert_eq!((d.rms_dp, d.rms_dp_stderr, d.same_top1, d.same_top1_stderr), (0.0, 0.0, 1.0, 0.0));
    }

    #[test]
    fn nothing_becomes_nan() {
        assert!(matches!(measure(&[], None), Err(Error::TooFewTokens { scored: 0 })));
        assert!(matches!(measure(&[1.0], None), Err(Error::TooFewTokens { scored: 1 })));
        assert!(matches!(measure(&[1.0, f64::NAN], None), Err(Error::NotFinite { token: 1, .. })));
        assert!(matches!(measure(&[f64::INFINITY, 1.0], None), Err(Error::NotFinite { token: 0, .. })));
        assert!(matches!(measure(&[800.0, 900.0], None), Err(Error::TooLarge { .. })));
        let comparisons = [comparison(1.0, 0.0, true), comparison(1.0, f64::NAN, true)];
        assert!(matches!(
            measure(&[1.0, 1.0], Some(&comparisons)),
            Err(Error::NotFinite { what: "KL divergence", token: 1 })
        ));
        assert!(matches!(
            measure(&[1.0, 1.0], Some(&comparisons[..1])),
            Err(Error::Uneven { scored: 2, compared: 1 })
        ));
    }
}

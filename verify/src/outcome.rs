//! What one evaluation found. Serialized, it is what `halfbyte verify --json` prints.

use serde::Serialize;

use crate::{description::Model, metrics::Metrics};

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was measured.
    pub model: Model,
    /// What it was measured against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Model>,
    /// How, in one line: text, chunks, context, what was scored, BOS.
    pub protocol: String,
    /// The figures.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Where along the layers the damage happens; empty without a reference.
    pub layers: Vec<LayerDamage>,
    /// Which weights carry it; empty without a reference.
    pub tensors: Vec<TensorDamage>,
    /// Tokens that went through the model, per second of the whole evaluation.
    pub tokens_per_second: f64,
    /// How long it took.
    pub seconds: f64,
    /// Peak resident memory of the process, filled in by whoever runs it, where the system tells.
    pub peak_rss_bytes: Option<u64>,
}

/// The residual stream after a layer, over all tokens, against the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerDamage {
    /// Which layer, counted from 0.
    pub layer: usize,
    /// ‖model − reference‖ / ‖reference‖.
    pub relative_error: f64,
    /// Mean over tokens of the cosine of the angle between the two.
    pub cosine: f64,
}

/// A tensor's weights against the reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorDamage {
    /// Its name in the model's container.
    pub name: String,
    /// What it does in the model: the name of a `formats::output::Class`.
    pub class: &'static str,
    /// How it is stored.
    pub format: String,
    /// Bits per weight, scales included.
    pub bits_per_weight: f64,
    /// Signal-to-noise ratio 10 · lg(Σ w² / Σ (ŵ − w)²) in decibels; none if the weights are the same.
    pub snr_db: Option<f64>,
    /// √(Σ (ŵ − w)² / Σ w²).
    pub relative_rmse: f64,
}

impl TensorDamage {
    /// Both ratios from the sums over a tensor: `squared_error` = Σ (ŵ − w)² and `energy` = Σ w². Weights of the
    /// reference that are all zero count as the smallest normal number, so that the ratios stay finite.
    pub fn ratios(squared_error: f64, energy: f64) -> (Option<f64>, f64) {
        let ratio = (squared_error / energy.max(f64::MIN_POSITIVE)).min(f64::MAX);
        let snr_db = (squared_error > 0.0).then(|| -10.0 * ratio.log10());
        (snr_db, ratio.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_to_noise_by_hand() {
        let (snr, rmse) = TensorDamage::ratios(4.0, 400.0);
        assert_eq!((snr, rmse), (Some(20.0), 0.1));
        assert_eq!(TensorDamage::ratios(0.0, 400.0), (None, 0.0));
        assert_eq!(TensorDamage::ratios(0.0, 0.0), (None, 0.0));
        let (snr, rmse) = TensorDamage::ratios(1.0, 0.0);
        assert!(snr.is_some_and(|snr| snr < -3000.0 && snr.is_finite()) && rmse.is_finite());
    }
}

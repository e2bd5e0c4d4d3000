//! What one evaluation found. Serialized, it is what `halfbyte verify --json` prints.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    description::{Model, ModelFile},
    metrics::Metrics,
};

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was measured.
    pub model: Model,
    /// What it was measured against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Model>,
    /// The text, or the file of token ids.
    pub input: ModelFile,
    /// How, in one line: chunks, context, what was scored, BOS, precision if it is not F32.
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

/// All tensors that do the same.
#[derive(Clone, Debug)]
pub struct ClassDamage<'a> {
    /// What they do.
    pub class: &'static str,
    /// Those whose weights changed with their ratio in decibels, the worst first.
    pub changed: Vec<(f64, &'a TensorDamage)>,
    /// How many did not change.
    pub exact: usize,
    /// How they are stored, without repetition.
    pub formats: Vec<&'a str>,
    /// Median ratio of those that changed, if any did.
    pub median_db: Option<f64>,
}

impl<'a> ClassDamage<'a> {
    /// All classes of `tensors`, the one with the worst median first.
    pub fn of(tensors: &'a [TensorDamage]) -> Vec<ClassDamage<'a>> {
        let mut classes: BTreeMap<&str, Vec<&TensorDamage>> = BTreeMap::new();
        for tensor in tensors {
            classes.entry(tensor.class).or_default().push(tensor);
        }
        let mut classes: Vec<ClassDamage<'_>> = classes.into_values().map(|t| ClassDamage::one(&t)).collect();
        let median = |class: &ClassDamage<'_>| class.median_db.unwrap_or(f64::INFINITY);
        classes.sort_by(|a, b| median(a).total_cmp(&median(b)));
        classes
    }

    /// One class, of which there is a tensor.
    fn one(tensors: &[&'a TensorDamage]) -> ClassDamage<'a> {
        let mut changed: Vec<(f64, &TensorDamage)> =
            tensors.iter().filter_map(|&tensor| Some((tensor.snr_db?, tensor))).collect();
        changed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut formats: Vec<&str> = Vec::new();
        for tensor in tensors {
            if !formats.contains(&tensor.format.as_str()) {
                formats.push(&tensor.format);
            }
        }
        let n = changed.len();
        let median_db = (n > 0).then(|| (changed[(n - 1) / 2].0 + changed[n / 2].0) / 2.0);
        ClassDamage { class: tensors[0].class, exact: tensors.len() - n, changed, formats, median_db }
    }

    /// How many tensors there are in all.
    pub fn tensors(&self) -> usize {
        self.changed.len() + self.exact
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

    #[test]
    fn classes_stand_from_the_worst_to_the_unchanged() {
        let tensor = |name: &str, class, format: &str, snr_db: Option<f64>| TensorDamage {
            name: name.to_owned(),
            class,
            format: format.to_owned(),
            bits_per_weight: 4.5,
            snr_db,
            relative_rmse: 0.1,
        };
        let tensors = [
            tensor("norm", "vector", "f32", None),
            tensor("a", "attn_q", "q4_k", Some(30.0)),
            tensor("b", "ffn_down", "q6_k", Some(20.0)),
            tensor("c", "ffn_down", "q4_k", Some(10.0)),
            tensor("d", "ffn_down", "q6_k", None),
        ];
        let classes = ClassDamage::of(&tensors);
        let seen: Vec<_> = classes.iter().map(|c| (c.class, c.tensors(), c.exact, c.median_db)).collect();
        let expected = [("ffn_down", 3, 1, Some(15.0)), ("attn_q", 1, 0, Some(30.0)), ("vector", 1, 1, None)];
        assert_eq!(seen, expected);
        let worst: Vec<&str> = classes[0].changed.iter().map(|(_, tensor)| tensor.name.as_str()).collect();
        assert_eq!((worst, &classes[0].formats[..]), (vec!["c", "b"], &["q6_k", "q4_k"][..]));
    }
}

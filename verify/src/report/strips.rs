//! Signal-to-noise ratios of the tensors, class by class.

use std::collections::BTreeMap;

use serde::Serialize;

use super::chart::{Decibels, Tick};
use crate::{outcome::TensorDamage, text};

/// How many of the worst tensors are listed.
const LISTED: usize = 20;

/// All tensors whose weights changed.
#[derive(Debug, Serialize)]
pub struct Strips {
    /// The class with the worst median first.
    classes: Vec<Strip>,
    ticks: Vec<Tick>,
    worst: Vec<Row>,
}

/// One class: a dot for each tensor.
#[derive(Debug, Serialize)]
struct Strip {
    class: &'static str,
    tensors: usize,
    /// Those whose weights are what they were.
    exact: usize,
    formats: String,
    dots: Vec<Dot>,
    /// Where the median is, and what it is.
    median: Option<Tick>,
}

#[derive(Debug, Serialize)]
struct Dot {
    at: f64,
    title: String,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    class: &'static str,
    format: String,
    bits: String,
    snr: String,
    error: String,
}

/// A tensor with its ratio.
type Changed<'a> = (f64, &'a TensorDamage);

impl Strips {
    /// None if no tensor changed.
    pub fn of(tensors: &[TensorDamage]) -> Option<Strips> {
        let mut changed: Vec<Changed<'_>> =
            tensors.iter().filter_map(|tensor| Some((tensor.snr_db?, tensor))).collect();
        if changed.is_empty() {
            return None;
        }
        changed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let scale = Decibels::around(changed.iter().map(|(snr, _)| *snr));
        let mut classes: BTreeMap<&str, Vec<&TensorDamage>> = BTreeMap::new();
        for tensor in tensors {
            classes.entry(tensor.class).or_default().push(tensor);
        }
        let mut strips: Vec<(f64, Strip)> =
            classes.into_values().map(|tensors| Strip::of(&tensors, &changed, scale)).collect();
        strips.sort_by(|a, b| a.0.total_cmp(&b.0));
        Some(Strips {
            classes: strips.into_iter().map(|(_, strip)| strip).collect(),
            ticks: scale.ticks(),
            worst: changed.iter().take(LISTED).map(Row::of).collect(),
        })
    }
}

impl Strip {
    /// The class of `tensors`, with its median; `changed` are all changed tensors, in order.
    fn of(tensors: &[&TensorDamage], changed: &[Changed<'_>], scale: Decibels) -> (f64, Strip) {
        let class = tensors[0].class;
        let mut formats: Vec<&str> = Vec::new();
        for tensor in tensors {
            if !formats.contains(&tensor.format.as_str()) {
                formats.push(&tensor.format);
            }
        }
        let own: Vec<&Changed<'_>> = changed.iter().filter(|(_, tensor)| tensor.class == class).collect();
        let median = match own.len() {
            0 => None,
            n => Some((own[(n - 1) / 2].0 + own[n / 2].0) / 2.0),
        };
        let strip = Strip {
            class,
            tensors: tensors.len(),
            exact: tensors.len() - own.len(),
            formats: formats.join(", "),
            dots: own
                .iter()
                .map(|(snr, tensor)| Dot {
                    at: scale.at(*snr),
                    title: format!("{}, {}: {snr:.2} dB", tensor.name, tensor.format),
                })
                .collect(),
            median: median.map(|snr| Tick { at: scale.at(snr), label: format!("{snr:.1} dB") }),
        };
        (median.unwrap_or(f64::INFINITY), strip)
    }
}

impl Row {
    fn of((snr, tensor): &Changed<'_>) -> Row {
        Row {
            name: tensor.name.clone(),
            class: tensor.class,
            format: tensor.format.clone(),
            bits: format!("{:.2}", tensor.bits_per_weight),
            snr: format!("{snr:.2}"),
            error: format!("{} %", text::significant(100.0 * tensor.relative_rmse, 3)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, class: &'static str, squared_error: f64) -> TensorDamage {
        let (snr_db, relative_rmse) = TensorDamage::ratios(squared_error, 100.0);
        TensorDamage {
            name: name.to_owned(),
            class,
            format: "q4_k".to_owned(),
            bits_per_weight: 4.5,
            snr_db,
            relative_rmse,
        }
    }

    #[test]
    fn classes_stand_from_the_worst_to_the_unchanged() {
        let tensors = [
            tensor("norm", "vector", 0.0),
            tensor("a", "attn_q", 0.1),
            tensor("b", "ffn_down", 10.0),
            tensor("c", "ffn_down", 1.0),
            tensor("d", "ffn_down", 0.0),
        ];
        let strips = Strips::of(&tensors).expect("changes");
        let seen: Vec<_> = strips
            .classes
            .iter()
            .map(|s| (s.class, s.tensors, s.exact, s.median.as_ref().map(|m| m.label.as_str())))
            .collect();
        let expected =
            [("ffn_down", 3, 1, Some("15.0 dB")), ("attn_q", 1, 0, Some("30.0 dB")), ("vector", 1, 1, None)];
        assert_eq!(seen, expected);
        let worst: Vec<&str> = strips.worst.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(worst, ["b", "c", "a"]);
        assert!(Strips::of(&tensors[..1]).is_none());
    }
}

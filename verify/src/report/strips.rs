//! Signal-to-noise ratios of the tensors, class by class.

use serde::Serialize;

use super::chart::{Decibels, Tick};
use crate::{
    outcome::{ClassDamage, TensorDamage},
    text,
};

/// How many of the worst tensors are listed.
const LISTED: usize = 20;

/// All tensors, class by class, and the worst of them.
#[derive(Debug, Serialize)]
pub struct Strips {
    classes: Vec<Strip>,
    ticks: Vec<Tick>,
    worst: Vec<Row>,
}

/// One class: a dot for each tensor that changed.
#[derive(Debug, Serialize)]
struct Strip {
    class: &'static str,
    tensors: usize,
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

impl Strips {
    /// None if no tensor changed.
    pub fn of(tensors: &[TensorDamage]) -> Option<Strips> {
        let classes = ClassDamage::of(tensors);
        let mut changed: Vec<(f64, &TensorDamage)> =
            classes.iter().flat_map(|class| class.changed.iter().copied()).collect();
        if changed.is_empty() {
            return None;
        }
        changed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let scale = Decibels::around(changed.iter().map(|(snr, _)| *snr));
        Some(Strips {
            classes: classes.iter().map(|class| Strip::of(class, scale)).collect(),
            ticks: scale.ticks(),
            worst: changed.iter().take(LISTED).map(Row::of).collect(),
        })
    }
}

impl Strip {
    fn of(class: &ClassDamage<'_>, scale: Decibels) -> Strip {
        let dot = |&(snr, tensor): &(f64, &TensorDamage)| Dot {
            at: scale.at(snr),
            title: format!("{}, {}: {snr:.2} dB", tensor.name, tensor.format),
        };
        Strip {
            class: class.class,
            tensors: class.tensors(),
            exact: class.exact,
            formats: class.formats.join(", "),
            dots: class.changed.iter().map(dot).collect(),
            median: class.median_db.map(|snr| Tick { at: scale.at(snr), label: format!("{snr:.1} dB") }),
        }
    }
}

impl Row {
    fn of((snr, tensor): &(f64, &TensorDamage)) -> Row {
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

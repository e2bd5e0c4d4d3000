//! The charts' geometry. Horizontal positions and widths are in per cent of the plot, so that a chart stretches with the
//! page while its lettering keeps its size; vertical ones are in pixels from the top.

use serde::Serialize;

use crate::{
    histogram::Bin,
    metrics::Divergence,
    outcome::LayerDamage,
    text,
    verdict::{Level, PUBLISHED},
};

/// A labelled place on an axis.
#[derive(Debug, Serialize)]
pub struct Tick {
    /// Per cent from the left, or pixels from the top.
    pub at: f64,
    /// Its lettering.
    pub label: String,
}

/// A share of the plot, in per cent, with enough digits for any screen.
fn percent(share: f64) -> f64 {
    (share * 1e5).round() / 1e3
}

/// Where `value` lies between two ends on a logarithmic scale; beyond them, at the nearer end.
fn log_share(value: f64, (low, high): (f64, f64)) -> f64 {
    if value <= low { 0.0 } else { ((value / low).log10() / (high / low).log10()).min(1.0) }
}

/// The powers of ten between two ends.
fn decades((low, high): (f64, f64)) -> Vec<Tick> {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let (first, last) = ((low.log10() - 1e-9).ceil() as i32, (high.log10() + 1e-9).floor() as i32);
    let label = |power: i32| match power {
        0 => "1".to_owned(),
        1 => "10".to_owned(),
        -2..0 => format!("{:.*}", power.unsigned_abs() as usize, 10f64.powi(power)),
        _ => {
            let digits = power.unsigned_abs().to_string();
            let digits: String = digits.bytes().map(|digit| DIGITS[usize::from(digit - b'0')]).collect();
            format!("10{}{digits}", if power < 0 { "⁻" } else { "" })
        }
    };
    (first..=last)
        .map(|power| Tick { at: percent(log_share(10f64.powi(power), (low, high))), label: label(power) })
        .collect()
}

/// A round step that cuts `span` into at most `most` pieces.
fn step(span: f64, most: f64) -> f64 {
    let rough = span / most;
    let unit = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0].into_iter().map(|n| n * unit).find(|&s| s >= rough).unwrap_or(10.0 * unit)
}

/// The mean KLD among the verdict's levels.
#[derive(Debug, Serialize)]
pub struct Scale {
    zones: Vec<Zone>,
    published: Vec<Tick>,
    ticks: Vec<Tick>,
    at: f64,
    low: f64,
    width: f64,
}

#[derive(Debug, Serialize)]
struct Zone {
    level: Level,
    /// Whether the mean lies in it.
    current: bool,
    name: &'static str,
    x: f64,
    width: f64,
}

impl Scale {
    const ENDS: (f64, f64) = (1e-4, 1.0);

    /// The mark with two standard errors to either side.
    pub fn of(divergence: &Divergence) -> Scale {
        let at = |value: f64| percent(log_share(value, Scale::ENDS));
        let current = Level::of_mean(divergence.mean_kld);
        let mut from = Scale::ENDS.0;
        let zones = Level::ALL.map(|level| {
            let x = at(from);
            from = level.mean_limit();
            Zone { level, current: level == current, name: level.name(), x, width: at(from) - x }
        });
        let margin = 2.0 * divergence.mean_kld_stderr;
        let low = at(divergence.mean_kld - margin);
        Scale {
            zones: zones.into(),
            published: PUBLISHED.map(|(name, kld)| Tick { at: at(kld), label: name.to_owned() }).into(),
            ticks: decades(Scale::ENDS),
            at: at(divergence.mean_kld),
            low,
            width: at(divergence.mean_kld + margin) - low,
        }
    }
}

/// The histogram of the KL divergence.
#[derive(Debug, Serialize)]
pub struct Distribution {
    height: f64,
    bars: Vec<Bar>,
    marks: Vec<Mark>,
    ticks: Vec<Tick>,
    rows: Vec<Tick>,
    /// Tokens below the axis' start, where the first bar holds them.
    below: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Bar {
    x: f64,
    width: f64,
    y: f64,
    height: f64,
    title: String,
}

#[derive(Debug, Serialize)]
struct Mark {
    at: f64,
    label: &'static str,
    /// Marks beside each other are lettered in different lines.
    line: usize,
    /// Whether the lettering stands to the left, as it would leave the plot to the right.
    left: bool,
}

impl Distribution {
    const HEIGHT: f64 = 220.0;

    /// One bar for each bin, with mean, median and the tail marked.
    pub fn of(divergence: &Divergence) -> Distribution {
        let bins = &divergence.kld_histogram;
        // The bin of what is next to zero has no width on this scale: it is drawn as wide as the others.
        let start = |bin: &Bin| if bin.from > 0.0 { bin.from } else { bin.to / 10f64.powf(0.125) };
        let low = bins.first().map_or(1e-8, start);
        let high = bins.last().map_or(1.0, |bin| bin.to);
        let ends = (low, high);
        let most = bins.iter().map(|bin| bin.tokens).max().unwrap_or(0).max(1);
        let step = step(most as f64, 4.0).max(1.0);
        let top = (most as f64 / step).ceil() * step;
        let y = |tokens: f64| (Distribution::HEIGHT * (1.0 - tokens / top) * 100.0).round() / 100.0;
        let bars = bins.iter().filter(|bin| bin.tokens > 0).map(|bin| {
            let (x, end) = (percent(log_share(start(bin), ends)), percent(log_share(bin.to, ends)));
            let y = y(bin.tokens as f64);
            Bar {
                x,
                width: (end - x).max(0.1),
                y,
                height: Distribution::HEIGHT - y,
                title: format!(
                    "{} tokens between {} and {}",
                    bin.tokens,
                    text::significant(bin.from, 2),
                    text::significant(bin.to, 2)
                ),
            }
        });
        let percentiles = &divergence.kld_percentiles;
        let mut marks: Vec<Mark> = [
            ("median", percentiles.p50),
            ("mean", divergence.mean_kld),
            ("99 %", percentiles.p99),
            ("99.9 %", percentiles.p999),
        ]
        .into_iter()
        .filter(|&(_, value)| value > low)
        .map(|(label, value)| Mark { at: percent(log_share(value, ends)), label, line: 0, left: false })
        .collect();
        marks.sort_by(|a, b| a.at.total_cmp(&b.at));
        for (line, mark) in marks.iter_mut().enumerate() {
            (mark.line, mark.left) = (line, mark.at > 80.0);
        }
        Distribution {
            height: Distribution::HEIGHT,
            bars: bars.collect(),
            marks,
            ticks: decades(ends),
            rows: (0..=(top / step).round() as u64)
                .map(|i| i as f64 * step)
                .map(|tokens| Tick { at: y(tokens), label: tokens.to_string() })
                .collect(),
            below: bins.first().filter(|bin| bin.from == 0.0).map(|bin| bin.tokens),
        }
    }
}

/// The residual stream's error, layer by layer.
#[derive(Debug, Serialize)]
pub struct Layers {
    height: f64,
    /// The curve, as pieces from a layer to the next.
    lines: Vec<Line>,
    points: Vec<Point>,
    ticks: Vec<Tick>,
    rows: Vec<Tick>,
}

#[derive(Debug, Serialize)]
struct Line {
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
}

#[derive(Debug, Serialize)]
struct Point {
    x: f64,
    y: f64,
    title: String,
}

impl Layers {
    const HEIGHT: f64 = 200.0;

    /// The relative error after each layer.
    pub fn of(layers: &[LayerDamage]) -> Layers {
        let most = layers.iter().map(|layer| layer.relative_error).fold(0.0, f64::max).max(1e-9);
        let step_y = step(100.0 * most, 4.0);
        let top = (100.0 * most / step_y).ceil() * step_y;
        let y = |per_cent: f64| (Layers::HEIGHT * (1.0 - per_cent / top) * 100.0).round() / 100.0;
        let last = layers.len().saturating_sub(1).max(1) as f64;
        let points: Vec<Point> = layers
            .iter()
            .enumerate()
            .map(|(i, layer)| Point {
                x: percent(i as f64 / last),
                y: y(100.0 * layer.relative_error),
                title: format!(
                    "layer {}: {} %, cosine {:.6}",
                    layer.layer,
                    text::significant(100.0 * layer.relative_error, 3),
                    layer.cosine
                ),
            })
            .collect();
        let lines = points.windows(2).map(|p| Line { x1: p[0].x, y1: p[0].y, x2: p[1].x, y2: p[1].y });
        let step_x = step(layers.len() as f64, 8.0).max(1.0) as usize;
        let decimals = (-step_y.log10().floor()).max(0.0) as usize;
        Layers {
            height: Layers::HEIGHT,
            lines: lines.collect(),
            ticks: (0..layers.len())
                .step_by(step_x)
                .map(|i| Tick { at: percent(i as f64 / last), label: layers[i].layer.to_string() })
                .collect(),
            rows: (0..=(top / step_y).round() as u64)
                .map(|i| i as f64 * step_y)
                .map(|value| Tick { at: y(value), label: format!("{value:.decimals$} %") })
                .collect(),
            points,
        }
    }
}

/// A linear scale of decibels over all tensors.
#[derive(Clone, Copy, Debug)]
pub struct Decibels {
    low: f64,
    high: f64,
    step: f64,
}

impl Decibels {
    /// Round ends around all values.
    pub fn around(values: impl Iterator<Item = f64> + Clone) -> Decibels {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let step = step((high - low).max(1.0), 6.0);
        let (low, high) = ((low / step).floor() * step, (high / step).ceil() * step);
        Decibels { low, high: high.max(low + step), step }
    }

    /// Where a value lies, in per cent.
    pub fn at(self, value: f64) -> f64 {
        percent((value - self.low) / (self.high - self.low))
    }

    /// The axis.
    pub fn ticks(self) -> Vec<Tick> {
        let steps = ((self.high - self.low) / self.step).round() as usize;
        let values = (0..=steps).map(|i| self.low + i as f64 * self.step);
        values.map(|value| Tick { at: self.at(value), label: format!("{value}") }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_lie_evenly_on_a_logarithmic_scale() {
        let ticks = decades((1e-4, 1.0));
        let seen: Vec<(f64, &str)> = ticks.iter().map(|tick| (tick.at, tick.label.as_str())).collect();
        assert_eq!(seen, [(0.0, "10⁻⁴"), (25.0, "10⁻³"), (50.0, "0.01"), (75.0, "0.1"), (100.0, "1")]);
        assert_eq!((log_share(0.0, (1e-4, 1.0)), log_share(7.0, (1e-4, 1.0))), (0.0, 1.0));
    }

    #[test]
    fn steps_are_round() {
        for (span, most, expected) in
            [(950.0, 4.0, 500.0), (7.9, 4.0, 2.0), (0.4, 4.0, 0.1), (30.0, 8.0, 5.0)]
        {
            assert!((step(span, most) - expected).abs() < 1e-12, "{span}");
        }
    }

    #[test]
    fn one_layer_and_no_error_make_a_chart() {
        let layers = [LayerDamage { layer: 0, relative_error: 0.0, cosine: 1.0 }];
        let chart = Layers::of(&layers);
        assert_eq!((chart.points.len(), chart.lines.len(), chart.points[0].y), (1, 0, Layers::HEIGHT));
        assert!(chart.rows.iter().all(|row| row.at.is_finite()));
    }

    #[test]
    fn decibels_of_one_tensor_have_an_axis() {
        let scale = Decibels::around([20.0].into_iter());
        assert!(scale.at(20.0).is_finite() && scale.ticks().len() >= 2);
        let scale = Decibels::around([11.0, 48.0].into_iter());
        assert_eq!((scale.at(10.0), scale.at(50.0), scale.ticks().len()), (0.0, 100.0, 5));
    }
}

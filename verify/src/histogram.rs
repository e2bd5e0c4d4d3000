//! The distribution of the KL divergence over tokens, on a logarithmic scale.

use serde::Serialize;

/// Bins in a factor of ten.
const PER_DECADE: i32 = 8;
/// Below 10⁻⁸ there is only the rounding of the arithmetic: one bin for all of it, with what is zero or less.
const LOWEST: i32 = -8;

/// Tokens whose divergence is at least `from` and less than `to`, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Lower end; 0 for the first bin of all, which also holds what is below.
    pub from: f64,
    /// Upper end.
    pub to: f64,
    /// How many.
    pub tokens: u64,
}

impl Bin {
    /// Counts finite `values`. The bins follow each other without a gap, from the first that holds a token to the last;
    /// their ends are 10^(k/8) for whole k, so that those of two evaluations compare.
    pub fn count(values: &[f64]) -> Vec<Bin> {
        let indices = || values.iter().map(|&value| index(value));
        let (Some(first), Some(last)) = (indices().min(), indices().max()) else { return Vec::new() };
        let mut bins: Vec<Bin> =
            (first..=last).map(|i| Bin { from: start(i), to: start(i + 1), tokens: 0 }).collect();
        for i in indices() {
            bins[i - first].tokens += 1;
        }
        bins
    }
}

/// Where bin `i` begins.
fn start(i: usize) -> f64 {
    match i {
        0 => 0.0,
        _ => 10f64.powf(f64::from(LOWEST) + (i - 1) as f64 / f64::from(PER_DECADE)),
    }
}

/// The bin that holds `value`.
fn index(value: f64) -> usize {
    if value < start(1) {
        return 0;
    }
    let guess = 1 + ((value.log10() - f64::from(LOWEST)) * f64::from(PER_DECADE)) as usize;
    // The logarithm rounds: at an end of a bin, the ends themselves decide.
    if value < start(guess) {
        guess - 1
    } else if value >= start(guess + 1) {
        guess + 1
    } else {
        guess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_once_between_the_ends_of_its_bin() {
        let values: Vec<f64> = (-400..=90).map(|i| 10f64.powf(f64::from(i) / 40.0)).collect();
        for &value in &values {
            let bins = Bin::count(&[value]);
            assert!(matches!(bins[..], [bin] if bin.from <= value && value < bin.to && bin.tokens == 1));
        }
        let bins = Bin::count(&values);
        assert_eq!(bins.iter().map(|bin| bin.tokens).sum::<u64>(), values.len() as u64);
        assert!(bins.windows(2).all(|pair| pair[0].to == pair[1].from));
        // 10⁻¹⁰ to just below 10⁻⁸: 80 values. Then five to a bin.
        assert_eq!((bins[0].tokens, bins[0].to), (80, 1e-8));
        assert!(bins[1..bins.len() - 1].iter().all(|bin| bin.tokens == 5), "{bins:?}");
    }

    #[test]
    fn what_is_zero_or_less_is_counted_below_everything() {
        assert_eq!(Bin::count(&[0.0, -1e-7]), [Bin { from: 0.0, to: 1e-8, tokens: 2 }]);
        assert_eq!(Bin::count(&[]), []);
    }
}

//! Numbers for people: sizes, counts, durations, figures with their errors.

/// Bytes with a decimal unit: `404.43 GB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A count with a suffix: `671.03 B`.
pub fn count(n: u64) -> String {
    scaled(n as f64, &["", "K", "M", "B", "T", "Q"]).trim_end().to_owned()
}

fn scaled(mut n: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= 1000.0 && unit + 1 < units.len() {
        n /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} {}", units[0]) } else { format!("{n:.2} {}", units[unit]) }
}

/// `47 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// Below this, figures are written with an exponent.
const SMALL: f64 = 1e-4;

/// And from here on: a perplexity like that says that the model predicts nothing.
const LARGE: f64 = 1e9;

/// A figure with so many significant digits: `28.46`, `0.00573`, `1.23e-6`, `5.19e12`. Never fewer than the integer part has.
pub fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    if !(SMALL..LARGE).contains(&value.abs()) {
        return format!("{value:.*e}", (digits - 1).max(0) as usize);
    }
    let magnitude = value.abs().log10().floor() as i32;
    format!("{value:.*}", (digits - 1 - magnitude).max(0) as usize)
}

/// A figure with as many digits as its standard error allows: `28.46 ± 0.62`, `(7.10 ± 0.15)e-5`.
pub fn with_error(value: f64, stderr: f64) -> String {
    if stderr <= 0.0 || !stderr.is_finite() {
        return format!("{} ± {stderr}", significant(value, 5));
    }
    let power = value.abs().max(stderr);
    if !(SMALL..LARGE).contains(&power) {
        let exponent = power.log10().floor();
        let unit = 10f64.powf(exponent);
        return format!("({})e{exponent}", with_error(value / unit, stderr / unit));
    }
    // Two digits of the error; at most eight decimals, which the smallest figure written without an exponent can use.
    let decimals = (1 - stderr.log10().floor() as i32).clamp(0, 8) as usize;
    format!("{value:.decimals$} ± {stderr:.decimals$}")
}

/// A share of one in per cent: `95.39 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(bytes(404_430_000_000), "404.43 GB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(count(671_026_000_000), "671.03 B");
        assert_eq!(count(999), "999");
        assert_eq!(duration(3.21), "3.2 s");
        assert_eq!(duration(200.4), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 5 min");
    }

    #[test]
    fn figures_have_the_digits_that_mean_something() {
        for (value, digits, expected) in [
            (28.4632, 4, "28.46"),
            (0.005731, 3, "0.00573"),
            (0.000_001_234, 3, "1.23e-6"),
            (123_456.0, 3, "123456"),
            (5.185_942e123, 3, "5.19e123"),
            (-0.0123, 2, "-0.012"),
            (0.0, 3, "0"),
        ] {
            assert_eq!(significant(value, digits), expected);
        }
        for (value, stderr, expected) in [
            (28.4632, 0.6171, "28.46 ± 0.62"),
            (0.05767, 0.00121, "0.0577 ± 0.0012"),
            (0.000_071_04, 0.000_001_52, "(7.10 ± 0.15)e-5"),
            (0.000_000_4, 0.000_003, "(0.4 ± 3.0)e-6"),
            (1234.5, 56.0, "1234 ± 56"),
            (5.19e123, 1.47e124, "(0.5 ± 1.5)e124"),
            (0.0, 0.0, "0 ± 0"),
        ] {
            assert_eq!(with_error(value, stderr), expected);
        }
        assert_eq!(percent(0.012), "1.20 %");
    }
}

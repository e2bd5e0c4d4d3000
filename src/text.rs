//! Numbers for people, and from them.

pub use verify::text::{bytes, count, duration};

/// A size as people write it: `45GB`, `5 GiB`, `700M`, `1234`. Powers of 1000, or of 1024 with an `i`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size: write 45GB, 5GiB or 1234"))?;
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024.0 * 1024.0,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        "ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("`{unit}` is no unit of size: use kB, MB, GB, TB or KiB, MiB, GiB, TiB")),
    };
    let bytes = number * factor;
    if bytes < 1.0 || bytes > u64::MAX as f64 {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(bytes as u64)
}

/// The peak resident memory of this process in bytes, if the system tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in [
            ("1234", 1234),
            ("45GB", 45_000_000_000),
            ("5 GiB", 5 << 30),
            ("1.5k", 1500),
            ("700M", 700_000_000),
            ("2tib", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GB", "-1", "5 apples", "0", "1e30TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}

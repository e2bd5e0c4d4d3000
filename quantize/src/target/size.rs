//! Sizes as people write them, with exact units: a GB is 1000³ bytes, a GiB 1024³.

/// A size as people write it: `45GB`, `5 GiB`, `700M`, `1234`. Powers of 1000, or of 1024 with an `i`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size: write 45GB, 5GiB or 1234"))?;
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.strip_suffix('b').unwrap_or(&unit) {
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

/// A size of memory in binary units: `464 GiB`, `31.35 GiB`, `512 MiB`.
pub fn size(bytes: u64) -> String {
    // Machines of 1 TiB and more are counted in GiB as well, so that they compare.
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let Some((unit, one)) = units.iter().find(|(_, one)| bytes >= *one) else {
        return format!("{bytes} B");
    };
    let text = format!("{:.2}", bytes as f64 / *one as f64);
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
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
            ("475136MiB", 464 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
        }
        for text in ["", "GB", "-1", "5 apples", "0", "1e30TB", "5 GBB", "1.2.3", "9GiB/s"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_of_memory_are_written_in_binary_units() {
        for (bytes, expected) in [
            (464 << 30, "464 GiB"),
            ((37 << 30) + (1 << 29), "37.5 GiB"),
            (2048 << 30, "2048 GiB"),
            (16 << 10, "16 KiB"),
            (100 << 20, "100 MiB"),
            (1000, "1000 B"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}

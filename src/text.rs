//! Numbers for people, and from them.

pub use quantize::target::parse_size as parse_bytes;
pub use verify::text::{bytes, count, duration};

/// What went wrong, and why: each cause that the one before has not said already.
pub fn causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.as_str() {
            "" => cause,
            said if said.ends_with(&cause) => text,
            _ => format!("{text}: {cause}"),
        }
    })
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
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let io = || std::io::Error::other("the disk is gone");
        let error = quantize::Error::from(formats::Error::Io { path: "m".into(), source: io() });
        assert_eq!(causes(&error.into()), "m: the disk is gone");
        let error = Err::<(), _>(io()).context("can't write c").expect_err("an error");
        assert_eq!(causes(&error), "can't write c: the disk is gone");
    }
}

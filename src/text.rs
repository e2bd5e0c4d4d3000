//! Numbers for people, and from them.

pub use quantize::target::parse_size as parse_bytes;
pub use verify::text::{bytes, count, duration};

/// The peak resident memory of this process in bytes, if the system tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

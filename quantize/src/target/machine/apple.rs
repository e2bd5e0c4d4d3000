//! macOS: the memory that Metal may take.
//!
//! Metal's `recommendedMaxWorkingSetSize` is the figure that counts; it is not to be had without Metal. It follows
//! `iogpu.wired_limit_mb` if that is set, and is else a share of the memory which Apple does not publish.

use super::{System, device, engines, processor_only};
use crate::target::{Catalog, DeviceKind, Error, Target, less, size};

/// Apple's processors have pages of 16 KiB, Intel's of 4.
const PAGE: u64 = 16 << 10;
const INTEL_PAGE: u64 = 4 << 10;

const MIB: u64 = 1 << 20;

/// What a raised limit must leave to macOS and other programs: a sixteenth, and 8 GiB at least.
fn macos_reserve(memory: u64) -> u64 {
    (memory / 16).max(8 << 30)
}

/// This Mac as a target.
pub(super) fn describe(system: &dyn System, catalog: &Catalog) -> Result<Target, Error> {
    let sysctl = |key: &str| Some(system.run("sysctl", &["-n", key])?.trim().to_owned());
    let number = |key: &str| sysctl(key)?.parse::<u64>().ok();
    let memory = number("hw.memsize")
        .ok_or_else(|| Error::Machine("`sysctl -n hw.memsize` does not tell the memory".to_owned()))?;
    let chip = sysctl("machdep.cpu.brand_string").unwrap_or_default();
    let whence = (memory, "sysctl hw.memsize");
    if !chip.starts_with("Apple") {
        let usable = memory.saturating_sub(macos_reserve(memory));
        let how = format!("its memory{}", less(macos_reserve(memory)));
        let host = device(catalog, &chip, DeviceKind::Host, whence, (usable, how));
        return processor_only(host, INTEL_PAGE, catalog, Vec::new());
    }

    let set = number("iogpu.wired_limit_mb").and_then(|mib| mib.checked_mul(MIB)).filter(|limit| *limit > 0);
    let (usable, how) = match (set, catalog.macos_limit(memory)) {
        (Some(limit), _) => (limit, "sysctl iogpu.wired_limit_mb".to_owned()),
        (None, Some((limit, source))) => (limit, format!("estimate of macOS's own limit, from {source}")),
        (None, None) => (memory / 2, "half: macOS's own limit is not known for so little memory".to_owned()),
    };
    let device = device(catalog, &chip, DeviceKind::Unified, whence, (usable, how));

    let mut notes = Vec::new();
    if set.is_none() {
        notes.push(
            "What may be taken is an estimate: Metal's recommendedMaxWorkingSetSize says it (llama.cpp prints it when it starts)."
                .to_owned(),
        );
    }
    let most = memory.saturating_sub(macos_reserve(memory)) / MIB;
    if most > device.usable / MIB {
        notes.push(format!(
            "`sudo sysctl iogpu.wired_limit_mb={most}` raises it to {} until the next start and leaves {} to macOS.",
            size(most * MIB),
            size(memory - most * MIB),
        ));
    }
    Ok(Target {
        name: "auto".to_owned(),
        description: format!("this Mac, {chip}, {}", size(memory)),
        devices: vec![device],
        host: None,
        engines: engines(catalog, &["llama.cpp/metal", "mlx"]),
        page: PAGE,
        notes,
    })
}

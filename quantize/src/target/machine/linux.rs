//! Linux: cards as their drivers' tools and files tell, and the host's memory.

use super::{System, device, engines, processor_only};
use crate::target::{
    CARD_RESERVE, Catalog, Device, DeviceKind, Engine, Error, Target, host_reserve, less, size,
};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// A page where the system does not tell.
const PAGE: u64 = 4 << 10;

/// What was found of one maker.
struct Found {
    devices: Vec<Device>,
    engines: Vec<Engine>,
    notes: Vec<String>,
}

/// This machine as a target: the devices of the first maker of which some are found, with the host's memory beside cards.
pub(super) fn describe(system: &dyn System, catalog: &Catalog) -> Result<Target, Error> {
    let host = host(system)?;
    let page = system.run("getconf", &["PAGESIZE"]).and_then(|text| text.trim().parse().ok()).unwrap_or(PAGE);
    let mut notes = Vec::new();
    for probe in [nvidia, drm, moore_threads, ascend] {
        let Some(found) = probe(system, catalog, &host) else { continue };
        notes.extend(found.notes);
        if found.devices.is_empty() {
            continue;
        }
        let unified = found.devices.iter().any(|device| device.kind == DeviceKind::Unified);
        let names: Vec<&str> = found.devices.iter().map(|device| device.name.as_str()).collect();
        return Ok(Target {
            name: "auto".to_owned(),
            description: format!("this machine, {}", names.join(", ")),
            devices: found.devices,
            // Unified memory is the host's: it can't be taken twice.
            host: (!unified).then_some(host),
            engines: found.engines,
            page,
            notes,
        });
    }
    processor_only(host, page, catalog, notes)
}

/// The host's memory: what is installed or the control group's limit, whichever is less; of it what is available now, and
/// never the system's share.
fn host(system: &dyn System) -> Result<Device, Error> {
    let info = system.read("/proc/meminfo").unwrap_or_default();
    let field = |key: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(KIB)
    };
    let installed = field("MemTotal")
        .ok_or_else(|| Error::Machine("/proc/meminfo does not tell the memory".to_owned()))?;
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| system.read(path)?.trim().parse::<u64>().ok())
        .min()
        .filter(|limit| *limit < installed);
    let memory = limit.unwrap_or(installed);
    let free = memory.saturating_sub(host_reserve(memory));
    let available = field("MemAvailable").unwrap_or(installed);
    let (usable, how) = if available < free {
        (available, "MemAvailable in /proc/meminfo, now".to_owned())
    } else {
        (free, format!("its memory{}", less(host_reserve(memory))))
    };
    Ok(Device {
        name: "host".to_owned(),
        pci: None,
        kind: DeviceKind::Host,
        memory,
        usable,
        bandwidth: None,
        basis: crate::target::Basis {
            memory: if limit.is_some() { "the control group's limit" } else { "MemTotal in /proc/meminfo" }
                .to_owned(),
            usable: how,
            bandwidth: String::new(),
        },
    })
}

/// A card of which `free` bytes are free now.
fn card(catalog: &Catalog, name: &str, memory: u64, free: u64, tool: &str) -> Device {
    let how = format!("{} free now according to {tool}{}", size(free), less(CARD_RESERVE));
    device(catalog, name, DeviceKind::Card, (memory, tool), (free.saturating_sub(CARD_RESERVE), how))
}

/// Unified memory of which the system sets no limit of its own: what the host may take.
fn shared(catalog: &Catalog, name: &str, host: &Device) -> Device {
    let (memory, usable) = (&host.basis.memory, host.basis.usable.clone());
    device(catalog, name, DeviceKind::Unified, (host.memory, memory), (host.usable, usable))
}

/// NVIDIA's cards, by `nvidia-smi`. A GB10 has no memory of its own and reports `[N/A]`.
fn nvidia(system: &dyn System, catalog: &Catalog, host: &Device) -> Option<Found> {
    let query = ["--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"];
    let engines =
        engines(catalog, if runs_vllm(system) { &["llama.cpp/cuda", "vllm"] } else { &["llama.cpp/cuda"] });
    let Some(text) = system.run("nvidia-smi", &query) else {
        if system.list("/proc/driver/nvidia/gpus").is_empty() {
            return None;
        }
        let note =
            "There is an NVIDIA card, but nvidia-smi does not run, so its memory is not known.".to_owned();
        return Some(Found { devices: Vec::new(), engines, notes: vec![note] });
    };
    let one = |line: &str| {
        let mut fields = line.rsplitn(3, ',').map(str::trim);
        let (free, total, name) = (fields.next()?, fields.next()?, fields.next()?);
        let mib = |text: &str| text.parse::<u64>().ok()?.checked_mul(MIB);
        if total.starts_with('[') {
            return Some(shared(catalog, name, host));
        }
        Some(card(catalog, name, mib(total)?, mib(free)?, "nvidia-smi"))
    };
    Some(Found { devices: text.lines().filter_map(one).collect(), engines, notes: Vec::new() })
}

/// Whether all of NVIDIA's cards have the compute capability that vLLM's kernels for 4 bits need in every version, and BF16. A GB10
/// does not tell vLLM how much memory is its own.
fn runs_vllm(system: &dyn System) -> bool {
    const LEAST: f32 = 8.0;
    let query = ["--query-gpu=compute_cap,memory.total", "--format=csv,noheader,nounits"];
    let suits = |line: &str| {
        let (capability, memory) = line.split_once(',')?;
        Some(capability.trim().parse::<f32>().ok()? >= LEAST && !memory.trim().starts_with('['))
    };
    system.run("nvidia-smi", &query).is_some_and(|text| text.lines().all(|line| suits(line) == Some(true)))
}

/// Graphics devices in /sys/class/drm: AMD's, whose driver tells their memory there, and others by their PCI id.
fn drm(system: &dyn System, catalog: &Catalog, host: &Device) -> Option<Found> {
    let mut found = Found { devices: Vec::new(), engines: Vec::new(), notes: Vec::new() };
    let cards = system.list("/sys/class/drm").into_iter();
    for name in cards.filter(|name| name.starts_with("card") && !name.contains('-')) {
        let read = |file: &str| {
            let text = system.read(&format!("/sys/class/drm/{name}/device/{file}"))?;
            Some(text.trim().to_owned())
        };
        let hexadecimal = |file: &str| Some(read(file)?.trim_start_matches("0x").to_ascii_lowercase());
        let bytes = |file: &str| read(file)?.parse::<u64>().ok();
        let (Some(vendor), Some(id)) = (hexadecimal("vendor"), hexadecimal("device")) else { continue };
        let pci = format!("{vendor}:{id}");
        let known = catalog.pci(&pci);
        let memory = bytes("mem_info_vram_total");
        let (mut device, engine_names) = match (known, memory) {
            (Some((_, known)), Some(vram)) if known.kind == DeviceKind::Unified => {
                (amd_unified(catalog, known, vram, bytes("mem_info_gtt_total"), host, &mut found.notes), AMD)
            }
            (_, Some(vram)) => {
                let name = read("product_name").filter(|name| !name.is_empty());
                let name =
                    name.or(known.map(|(_, known)| known.name.clone())).unwrap_or(format!("AMD {pci}"));
                let free = vram.saturating_sub(bytes("mem_info_vram_used").unwrap_or(0));
                (card(catalog, &name, vram, free, "mem_info_vram_total"), AMD)
            }
            (Some((target, known)), None) => {
                found.engines = target.engines.clone();
                (known.clone(), &[] as &[&str])
            }
            (None, None) => continue,
        };
        // A processor's own graphics with a sliver of memory is no place for a model.
        if device.usable == 0 {
            continue;
        }
        if !engine_names.is_empty() {
            found.engines = engines(catalog, engine_names);
        }
        device.pci = Some(pci);
        found.devices.push(device);
    }
    Some(found)
}

const AMD: &[&str] = &["llama.cpp/hip", "llama.cpp/vulkan"];

/// AMD's unified memory: what is set apart for graphics, or what the kernel lets it take of the rest (`ttm.pages_limit`),
/// whichever is more.
fn amd_unified(
    catalog: &Catalog,
    known: &Device,
    vram: u64,
    gtt: Option<u64>,
    host: &Device,
    notes: &mut Vec<String>,
) -> Device {
    // What is set apart is not in MemTotal.
    let memory = host.memory.saturating_add(vram);
    let gtt = gtt.unwrap_or(0);
    let (usable, how) = if vram >= gtt {
        (vram, "mem_info_vram_total: set apart for graphics".to_owned())
    } else {
        (
            gtt.min(host.usable),
            format!("mem_info_gtt_total: the kernel's limit; {} are free now", size(host.usable)),
        )
    };
    let most = host.memory.saturating_sub(host_reserve(host.memory)) / PAGE;
    if most * PAGE > usable {
        notes.push(format!(
            "The kernel parameter ttm.pages_limit={most} raises the limit to {}.",
            size(most * PAGE)
        ));
    }
    let whence = "MemTotal and mem_info_vram_total";
    let mut device = device(catalog, &known.name, known.kind, (memory, whence), (usable, how));
    // The system shows less than is installed, so the size does not tell the machine, but the chip does.
    device.bandwidth = known.bandwidth;
    device.basis.bandwidth.clone_from(&known.basis.bandwidth);
    device
}

/// Moore Threads' cards, by the table that `mthreads-gmi` prints: `0  MTT S4000 |00000000:2a:00.0 |0% 10MiB(49152MiB)`, memory in
/// use and in all (recorded in vllm-project/vllm-omni, pull request 2337).
fn moore_threads(system: &dyn System, catalog: &Catalog, _: &Device) -> Option<Found> {
    let text = system.run("mthreads-gmi", &[])?;
    let one = |line: &str| {
        let mut columns = line.split('|');
        let (id, name) = columns.next()?.trim().split_once(' ')?;
        id.parse::<u32>().ok()?;
        let memory = columns.nth(1)?.split_whitespace().find(|word| word.ends_with("MiB)"))?;
        let (used, total) = memory.strip_suffix("MiB)")?.split_once("MiB(")?;
        let mib = |text: &str| text.parse::<u64>().ok()?.checked_mul(MIB);
        let (used, total) = (mib(used)?, mib(total)?);
        Some(card(catalog, name.trim(), total, total.saturating_sub(used), "mthreads-gmi"))
    };
    let devices = text.lines().filter_map(one).collect();
    Some(Found { devices, engines: engines(catalog, &["llama.cpp/musa"]), notes: Vec::new() })
}

/// Huawei's NPUs, by the table that `npu-smi info` prints: two lines for each chip, the first with its name, the second ending
/// in memory in use and in all, in MiB (recorded in Syllo/nvtop, issue 421, and vllm-project/vllm-ascend, issue 2534).
fn ascend(system: &dyn System, catalog: &Catalog, _: &Device) -> Option<Found> {
    let text = system.run("npu-smi", &["info"])?;
    let mut devices = Vec::new();
    let mut chip: Option<String> = None;
    for line in text.lines() {
        let columns: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [first, second, third] = columns[..] else {
            chip = None;
            continue;
        };
        // The second line has the bus in its second column: 0000:01:00.0.
        let Some(name) = chip.take().filter(|_| second.contains(':')) else {
            let mut words = first.split_whitespace();
            let number = words.next().is_some_and(|word| word.parse::<u32>().is_ok());
            chip = words.next().filter(|_| number).map(str::to_owned);
            continue;
        };
        let Some((before, total)) = third.rsplit_once('/') else { continue };
        let mib = |text: Option<&str>| text?.parse::<u64>().ok()?.checked_mul(MIB);
        let (used, total) = (mib(before.split_whitespace().last()), mib(total.split_whitespace().next()));
        if let (Some(used), Some(total)) = (used, total.filter(|total| *total > 0)) {
            devices.push(card(catalog, &name, total, total.saturating_sub(used), "npu-smi"));
        }
    }
    let small = devices.iter().any(|device| device.name.contains("310P"));
    let engine = if small { "llama.cpp/cann-310p" } else { "llama.cpp/cann" };
    Some(Found { devices, engines: engines(catalog, &[engine]), notes: Vec::new() })
}

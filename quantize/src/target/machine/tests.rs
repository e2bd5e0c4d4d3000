use std::collections::HashMap;

use super::*;
use crate::plan::Container;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A machine as it answered: programs by their command line, files by their path.
struct Recorded {
    os: Os,
    commands: HashMap<String, String>,
    files: HashMap<String, String>,
}

impl Recorded {
    fn new(os: Os) -> Self {
        Recorded { os, commands: HashMap::new(), files: HashMap::new() }
    }

    fn command(mut self, line: &str, output: &str) -> Self {
        self.commands.insert(line.to_owned(), output.to_owned());
        self
    }

    fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.to_owned(), text.to_owned());
        self
    }

    fn describe(&self) -> Target {
        describe(self, &Catalog::presets()).expect("target")
    }
}

impl System for Recorded {
    fn os(&self) -> Os {
        self.os
    }

    fn run(&self, program: &str, args: &[&str]) -> Option<String> {
        let line: Vec<&str> = std::iter::once(program).chain(args.iter().copied()).collect();
        self.commands.get(&line.join(" ")).cloned()
    }

    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let folder = format!("{folder}/");
        let mut names: Vec<String> = (self.files.keys())
            .filter_map(|path| Some(path.strip_prefix(&folder)?.split('/').next()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

fn mac(memory: u64, chip: &str, limit: u64) -> Recorded {
    Recorded::new(Os::Macos)
        .command("sysctl -n hw.memsize", &format!("{memory}\n"))
        .command("sysctl -n machdep.cpu.brand_string", &format!("{chip}\n"))
        .command("sysctl -n iogpu.wired_limit_mb", &format!("{limit}\n"))
}

/// A host of so many GiB of which so many are available.
fn linux(memory: u64, available: u64) -> Recorded {
    let kib = |gib: u64| gib << 20;
    Recorded::new(Os::Linux).file(
        "/proc/meminfo",
        &format!(
            "MemTotal:       {} kB\nMemFree:        1024 kB\nMemAvailable:   {} kB\nBuffers:        0 kB\n",
            kib(memory),
            kib(available)
        ),
    )
}

const SMI: &str = "nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv,noheader,nounits";

#[test]
fn a_mac_with_its_stock_limit() {
    let target = mac(512 * GIB, "Apple M3 Ultra", 0).describe();
    let device = &target.devices[0];
    assert_eq!((device.kind, device.memory, device.usable), (DeviceKind::Unified, 512 * GIB, 464 * GIB));
    assert_eq!(device.bandwidth, Some(819_000_000_000));
    assert!(device.basis.usable.contains("estimate"), "{}", device.basis.usable);
    assert_eq!(target.page, 16384);
    assert_eq!(target.host, None);
    let names: Vec<&str> = target.engines.iter().map(|engine| engine.name.as_str()).collect();
    assert_eq!(names, ["llama.cpp/metal", "mlx"]);
    let raise = &target.notes[1];
    assert!(raise.starts_with("`sudo sysctl iogpu.wired_limit_mb=491520` raises it to 480 GiB"), "{raise}");
}

#[test]
fn a_mac_with_a_raised_limit() {
    let target = mac(128 * GIB, "Apple M5 Max", 122_880).describe();
    assert_eq!(target.devices[0].usable, 120 * GIB);
    assert_eq!(target.devices[0].basis.usable, "sysctl iogpu.wired_limit_mb");
    assert_eq!(target.devices[0].bandwidth, Some(614_000_000_000));
    assert_eq!(target.notes, [""; 0], "nothing to raise, nothing estimated");
}

#[test]
fn a_mac_of_a_size_that_nobody_reported() {
    // Between 48 and 128 GB: the share of 48.
    let target = mac(64 * GIB, "Apple M4 Max", 0).describe();
    let share = target.devices[0].usable as f64 / (64 * GIB) as f64;
    assert!((share - 37.4 / 48.0).abs() < 1e-6, "{share}");
    assert_eq!(target.devices[0].bandwidth, None, "M4 Max is known with 128 GB only");
    let small = mac(8 * GIB, "Apple M1", 0).describe();
    assert_eq!(small.devices[0].usable, 4 * GIB);
}

#[test]
fn an_old_mac_is_its_processor() {
    let target = mac(64 * GIB, "Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz", 0).describe();
    assert_eq!((target.devices[0].kind, target.devices[0].usable), (DeviceKind::Host, 56 * GIB));
    assert_eq!((target.engines[0].name.as_str(), target.page), ("llama.cpp/cpu", 4096));
}

#[test]
fn nvidia_cards_beside_a_host() {
    let smi = "NVIDIA GeForce RTX 5090, 32607, 31582\nNVIDIA GeForce RTX 3090, 24576, 500\n";
    let target = linux(128, 120).command(SMI, smi).command("getconf PAGESIZE", "65536\n").describe();
    let [first, second] = &target.devices[..] else { panic!("{:?}", target.devices) };
    assert_eq!(first.kind, DeviceKind::Card);
    assert_eq!((first.memory, first.usable), (32_607 * MIB, (31_582 - 1024) * MIB));
    assert_eq!(first.bandwidth, Some(1_792_000_000_000));
    assert_eq!((second.usable, second.bandwidth), (0, None), "another program has it");
    assert_eq!(target.host.as_ref().expect("host").usable, 120 * GIB);
    assert_eq!((target.engines[0].name.as_str(), target.page), ("llama.cpp/cuda", 65536));
    assert_eq!(target.engines.len(), 1, "the compute capability is not known");
}

#[test]
fn vllm_needs_a_capability_of_every_card() {
    let capability = "nvidia-smi --query-gpu=compute_cap,memory.total --format=csv,noheader,nounits";
    let engines = |capabilities: &str| {
        let smi = "NVIDIA GeForce RTX 4090, 24564, 24000\nNVIDIA TITAN V, 12288, 12000\n";
        let target = linux(64, 60).command(SMI, smi).command(capability, capabilities).describe();
        target.engines.iter().map(|engine| engine.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(engines("8.9, 24564\n8.0, 12288\n"), ["llama.cpp/cuda", "vllm"]);
    assert_eq!(engines("8.9, 24564\n7.0, 12288\n"), ["llama.cpp/cuda"]);
    assert_eq!(engines("12.1, [N/A]\n"), ["llama.cpp/cuda"]);
}

#[test]
fn a_gb10_shares_the_hosts_memory() {
    let target = linux(121, 102).command(SMI, "NVIDIA GB10, [N/A], [N/A]\n").describe();
    let device = &target.devices[0];
    assert_eq!((device.kind, device.memory, device.usable), (DeviceKind::Unified, 121 * GIB, 102 * GIB));
    assert_eq!(device.bandwidth, Some(273_000_000_000));
    assert_eq!(target.host, None);
}

#[test]
fn an_nvidia_card_without_its_tool_is_mentioned() {
    let path = "/proc/driver/nvidia/gpus/0000:01:00.0/information";
    let target = linux(64, 60).file(path, "Model: \t\t NVIDIA GeForce RTX 4090\n").describe();
    assert_eq!(target.devices[0].kind, DeviceKind::Host);
    assert!(target.notes[0].contains("nvidia-smi does not run"), "{:?}", target.notes);
}

fn drm(system: Recorded, card: &str, files: &[(&str, &str)]) -> Recorded {
    files.iter().fold(system, |system, (name, text)| {
        system.file(&format!("/sys/class/drm/{card}/device/{name}"), &format!("{text}\n"))
    })
}

#[test]
fn amd_cards_by_their_drivers_files() {
    let system = drm(
        linux(64, 60),
        "card1",
        &[
            ("vendor", "0x1002"),
            ("device", "0x744c"),
            ("product_name", ""),
            ("mem_info_vram_total", "25753026560"),
            ("mem_info_vram_used", "27152384"),
            ("mem_info_gtt_total", "33554432000"),
        ],
    );
    // The processor's own graphics, and a connector.
    let system = drm(
        system,
        "card0",
        &[("vendor", "0x1002"), ("device", "0x164e"), ("mem_info_vram_total", "536870912")],
    );
    let target = drm(system, "card1-DP-1", &[("vendor", "0x1002"), ("device", "0x744c")]).describe();
    let [card] = &target.devices[..] else { panic!("{:?}", target.devices) };
    assert_eq!((card.name.as_str(), card.pci.as_deref()), ("AMD 1002:744c", Some("1002:744c")));
    assert_eq!(card.usable, 25_753_026_560 - 27_152_384 - GIB);
    let names: Vec<&str> = target.engines.iter().map(|engine| engine.name.as_str()).collect();
    assert_eq!(names, ["llama.cpp/hip", "llama.cpp/vulkan"]);
    assert!(target.host.is_some());
}

#[test]
fn strix_halo_takes_what_the_kernel_lets_it() {
    let chip = |vram: u64, gtt: u64| {
        let (vram, gtt) = (vram.to_string(), gtt.to_string());
        let files = [
            ("vendor", "0x1002"),
            ("device", "0x1586"),
            ("mem_info_vram_total", &*vram),
            ("mem_info_gtt_total", &*gtt),
        ];
        drm(linux((128 * GIB - vram.parse::<u64>().expect("bytes")) / GIB, 1000), "card0", &files).describe()
    };
    let target = chip(0, 62 * GIB);
    let device = &target.devices[0];
    assert_eq!((device.kind, device.memory, device.usable), (DeviceKind::Unified, 128 * GIB, 62 * GIB));
    assert_eq!(device.bandwidth, Some(256_000_000_000));
    assert_eq!(target.host, None);
    assert!(
        target.notes[0].contains("ttm.pages_limit=31457280 raises the limit to 120 GiB"),
        "{:?}",
        target.notes
    );
    // Set apart by the firmware instead.
    let target = chip(96 * GIB, 16 * GIB);
    assert_eq!((target.devices[0].memory, target.devices[0].usable), (128 * GIB, 96 * GIB));
    assert_eq!(target.notes, [""; 0]);
}

#[test]
fn an_arc_pro_is_known_by_its_id() {
    let target = drm(linux(64, 60), "card1", &[("vendor", "0x8086"), ("device", "0xe211")]).describe();
    let preset = Catalog::presets().get("arc-b60").cloned().expect("preset");
    assert_eq!(target.devices, preset.devices);
    assert_eq!(target.engines[0].name, "llama.cpp/sycl");
    // Graphics in a processor are no device for models.
    let target = drm(linux(64, 60), "card1", &[("vendor", "0x8086"), ("device", "0xa7a0")]).describe();
    assert_eq!(target.devices[0].kind, DeviceKind::Host);
}

/// As recorded in vllm-project/vllm-omni, pull request 2337, with the name and the memory of the S4000.
const GMI: &str = "\
Tue Mar 31 13:39:52 2026
---------------------------------------------------------------------
    mthreads-gmi:2.3.2           Driver Version:3.3.5-server
---------------------------------------------------------------------
ID   Name                 |PCIe                |%GPU  Mem
     Device Type   Perf   |Pcie Lane Width     |Temp  MPC Capable
                                               |      ECC Mode
+-------------------------------------------------------------------+
0    MTT S4000            |00000000:2a:00.0    |0%    641MiB(49152MiB)
     Physical      P0     |16x(16x)            |52C   YES
                                               |      On-die, EDC
+-------------------------------------------------------------------+
1    MTT S5000            |00000000:3a:00.0    |0%    10MiB(81920MiB)
     Physical      P0     |16x(16x)            |52C   YES
                                               |      On-die, EDC
+-------------------------------------------------------------------+
";

#[test]
fn moore_threads_cards() {
    let target = linux(512, 500).command("mthreads-gmi", GMI).describe();
    let [first, second] = &target.devices[..] else { panic!("{:?}", target.devices) };
    assert_eq!((first.name.as_str(), first.usable), ("MTT S4000", (49_152 - 641 - 1024) * MIB));
    assert_eq!(first.bandwidth, Some(768_000_000_000));
    assert_eq!((second.name.as_str(), second.memory, second.bandwidth), ("MTT S5000", 80 * GIB, None));
    assert_eq!(target.engines[0].name, "llama.cpp/musa");
}

/// As recorded in Syllo/nvtop, issue 421.
const NPU_310P: &str = "\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 2       310P3                 | OK              | NA           45                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 2       310P3                 | OK              | NA           43                0     / 0             |
| 1       1                     | 0000:01:00.0    | 0            1412 / 43693                            |
+===============================+=================+======================================================+
";

/// As recorded in vllm-project/vllm-ascend, issue 2534, and its list of processes.
const NPU_910: &str = "\
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 214           | python                   | 103                     |
+===========================+===============+====================================================+
";

#[test]
fn huawei_chips() {
    let target = linux(256, 250).command("npu-smi info", NPU_310P).describe();
    let usable: Vec<u64> = target.devices.iter().map(|device| device.usable / MIB).collect();
    assert_eq!(usable, [44_280 - 1529 - 1024, 43_693 - 1412 - 1024]);
    // The preset was made from the same record.
    let preset = Catalog::presets().get("atlas-300i-duo").cloned().expect("preset");
    assert_eq!(usable, preset.devices.iter().map(|device| device.usable / MIB).collect::<Vec<_>>());
    assert!(target.devices.iter().all(|device| device.bandwidth == Some(204_000_000_000)));
    let formats: Vec<&str> = target.formats(Container::Gguf).iter().map(|format| format.name).collect();
    assert_eq!(formats, ["f32", "f16"]);

    let target = linux(256, 250).command("npu-smi info", NPU_910).describe();
    let [chip] = &target.devices[..] else { panic!("{:?}", target.devices) };
    assert_eq!((chip.name.as_str(), chip.usable), ("Ascend910", (65_536 - 3416 - 1024) * MIB));
    assert_eq!(target.engines[0].name, "llama.cpp/cann");
}

#[test]
fn a_machine_without_any_tool_is_its_processor() {
    let target = linux(64, 40).describe();
    assert_eq!((target.devices[0].kind, target.devices[0].usable), (DeviceKind::Host, 40 * GIB));
    assert_eq!(target.engines[0].name, "llama.cpp/cpu");
    assert_eq!(target.page, 4096);
    // Nearly all is available: the system's share stays.
    assert_eq!(linux(64, 63).describe().devices[0].usable, 60 * GIB);
    // In a container.
    let limited = |path: &str, limit: &str| linux(64, 60).file(path, limit).describe().devices[0].clone();
    let device = limited("/sys/fs/cgroup/memory.max", "34359738368\n");
    assert_eq!((device.memory, device.usable), (32 * GIB, 30 * GIB));
    assert_eq!(device.basis.memory, "the control group's limit");
    assert_eq!(limited("/sys/fs/cgroup/memory.max", "max\n").memory, 64 * GIB);
    let old = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(limited(old, "9223372036854771712\n").memory, 64 * GIB);
}

#[test]
fn a_machine_that_tells_nothing_is_an_error() {
    for os in [Os::Macos, Os::Linux, Os::Other] {
        let error = describe(&Recorded::new(os), &Catalog::presets()).expect_err("nothing known").to_string();
        assert!(error.starts_with("--fit auto: ") && error.contains("`halfbyte targets`"), "{error}");
    }
}

#[test]
fn garbage_is_no_device() {
    for smi in ["", "\n", "no devices were found", "a,b", "NVIDIA X, 99999999999999999999, -1\n,,,\n"] {
        let target = linux(64, 60).command(SMI, smi).describe();
        assert_eq!(target.devices[0].kind, DeviceKind::Host, "{smi}");
    }
    for text in ["", "|||", "| 0 310P3 | OK | a |\n| 0 0 | 0000:01:00.0 | / |", "0 X | | |1MiB(MiB)"] {
        let target = linux(64, 60).command("npu-smi info", text).command("mthreads-gmi", text).describe();
        assert_eq!(target.devices[0].kind, DeviceKind::Host, "{text}");
    }
}

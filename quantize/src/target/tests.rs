use std::{collections::HashSet, path::Path};

use kernels::table;

use super::{machine::ThisMachine, *};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn fit(text: &str) -> Result<Target, Error> {
    Catalog::presets().fit(text, &ThisMachine)
}

fn user(text: &str) -> Result<Catalog, Error> {
    let mut catalog = Catalog::presets();
    catalog.add(Path::new("mine.toml"), text).map(|()| catalog)
}

/// The line and the text of the error that this file gives.
fn complaint(text: &str) -> (usize, String) {
    match user(text) {
        Err(Error::File { path, line, detail }) => {
            assert_eq!(path, Path::new("mine.toml"));
            (line, detail)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn presets_are_consistent_and_every_figure_has_a_source() {
    let catalog = Catalog::presets();
    let mut names = HashSet::new();
    for target in &catalog.targets {
        let name = &target.name;
        assert!(names.insert(name), "{name} twice");
        assert!(!target.description.is_empty(), "{name}");
        assert!(!target.devices.is_empty() && !target.engines.is_empty(), "{name}");
        let apple = target.engines.iter().any(|engine| engine.kind == EngineKind::Mlx);
        assert_eq!(target.page, if apple { 16384 } else { 4096 }, "{name}");
        for device in &target.devices {
            assert!(
                device.usable <= device.memory && device.usable > device.memory / 2,
                "{name}: {device:?}"
            );
            assert!(!device.basis.memory.is_empty() && !device.basis.usable.is_empty(), "{name}: {device:?}");
            assert_eq!(device.bandwidth.is_some(), !device.basis.bandwidth.is_empty(), "{name}: {device:?}");
        }
        for engine in &target.engines {
            assert!(!engine.sources.is_empty(), "{}", engine.name);
            let known = match engine.kind {
                EngineKind::LlamaCpp(_) => table::GGUF,
                EngineKind::Mlx => table::MLX,
                EngineKind::Vllm => table::COMPRESSED_TENSORS,
            };
            assert!(engine.formats.iter().all(|format| known.contains(format)), "{}", engine.name);
            assert!(
                engine.formats.len()
                    == engine.formats.iter().map(|format| format.name).collect::<HashSet<_>>().len()
            );
        }
        assert!(target.runs(Container::Gguf, table::gguf("f16").expect("f16")), "{name}");
    }
    for name in [
        "mac-studio-512",
        "mac-studio-256",
        "mac-128",
        "mac-48",
        "vram-48",
        "vram-24",
        "rtx-5090",
        "rtx-4090-48",
        "rtx-6000-ada",
        "rtx-pro-6000",
        "mtt-s4000",
        "atlas-300i-duo",
        "arc-b60",
        "strix-halo-128",
        "dgx-spark",
    ] {
        assert!(catalog.get(name).is_some(), "{name}");
    }
}

#[test]
fn presets_have_the_published_figures() {
    let studio = fit("mac-studio-512").expect("preset");
    assert_eq!((studio.devices[0].memory, studio.devices[0].usable), (512 * GIB, 475_136 * MIB));
    assert_eq!(studio.devices[0].bandwidth, Some(819_000_000_000));
    // Computed: what the driver gives out less the reserve.
    assert_eq!(fit("rtx-5090").expect("preset").usable(), (32_106 - 1024) * MIB);
    // Two chips, each with memory of its own.
    let atlas = fit("atlas-300i-duo").expect("preset");
    assert_eq!(atlas.devices.len(), 2);
    assert_eq!(atlas.devices.iter().map(|device| device.memory).sum::<u64>(), 96 * GIB);
    assert_eq!(atlas.devices.iter().filter_map(|device| device.bandwidth).sum::<u64>(), 408_000_000_000);
    // Nobody has published it.
    assert_eq!(fit("rtx-4090-48").expect("preset").devices[0].bandwidth, None);
}

#[test]
fn a_target_runs_what_every_engine_for_the_container_runs() {
    let runs = |target: &str, container, format: &str| {
        let known = if container == Container::Gguf { table::gguf(format) } else { table::mlx(format) };
        fit(target).expect("preset").runs(container, known.expect("format"))
    };
    assert!(runs("mac-studio-512", Container::Gguf, "q4_k"));
    assert!(!runs("mac-studio-512", Container::Gguf, "nvfp4"), "no Metal kernel");
    assert!(runs("mac-studio-512", Container::Mlx, "4bit-g64"));
    assert!(runs("mac-studio-512", Container::Mlx, "4bit-g64-f16"), "scales of another type");
    assert!(!runs("rtx-5090", Container::Mlx, "4bit-g64"), "MLX is for Macs here");
    // Vulkan would run it, CUDA would not.
    assert!(!runs("vram-48", Container::Gguf, "tq2_0"));
    assert!(!runs("atlas-300i-duo", Container::Gguf, "q4_0"), "not on the 310P");
    assert!(runs("atlas-300i-duo", Container::Gguf, "f16"));
    assert!(!runs("mtt-s4000", Container::Gguf, "q2_k"));
    assert!(runs("mtt-s4000", Container::Gguf, "q4_k"));
}

#[test]
fn nvidias_cards_have_vllm_and_it_runs_symmetric_codes_with_scales_of_16_bits() {
    let catalog = Catalog::presets();
    let with_vllm: Vec<&str> = (catalog.targets.iter())
        .filter(|target| target.engines.iter().any(|engine| engine.kind == EngineKind::Vllm))
        .map(|target| target.name.as_str())
        .collect();
    assert_eq!(with_vllm, ["vram-48", "vram-24", "rtx-5090", "rtx-4090-48", "rtx-6000-ada", "rtx-pro-6000"]);
    let vram = catalog.get("vram-48").expect("preset");
    let formats = |target: &Target| {
        let mut names: Vec<&str> =
            target.formats(Container::CompressedTensors).iter().map(|format| format.name).collect();
        names.sort_unstable();
        names
    };
    let expected = [
        "bf16",
        "f16",
        "w4a16-g128",
        "w4a16-g128-f16",
        "w4a16-g32",
        "w4a16-g32-f16",
        "w4a16-g64",
        "w4a16-g64-f16",
    ];
    assert_eq!(formats(vram), expected);
    assert_eq!(formats(&fit("37GiB").expect("size")), expected);
    assert_eq!(formats(catalog.get("mac-studio-512").expect("preset")), [""; 0]);
}

#[test]
fn a_size_is_a_device_for_any_engine() {
    let target = fit("37GiB").expect("size");
    assert_eq!(target.usable(), 37 * GIB);
    assert_eq!(target.name, "37GiB");
    assert!(target.runs(Container::Gguf, table::gguf("iq1_s").expect("format")));
    assert!(target.runs(Container::Mlx, table::mlx("nvfp4").expect("format")));
    assert_eq!(target.host, None);
    let error = fit("37").expect_err("bytes").to_string();
    assert_eq!(error, "--fit 37: `37` is 37 bytes. Write the unit: 37GiB");
    assert!(fit("37 apples").is_err());
}

#[test]
fn a_card_may_have_a_host_beside_it() {
    let target = fit("vram-48+384GiB").expect("card and host");
    assert_eq!(target.name, "vram-48+384GiB");
    assert_eq!(target.devices, fit("vram-48").expect("preset").devices);
    let host = target.host.expect("host");
    assert_eq!((host.kind, host.memory, host.usable), (DeviceKind::Host, 384 * GIB, 360 * GIB));
    assert_eq!(fit("24GiB+64GiB").expect("size and host").usable(), 24 * GIB);
    let error = fit("mac-studio-512+64GiB").expect_err("no card").to_string();
    assert!(error.contains("mac-studio-512 has no card"), "{error}");
    assert!(matches!(fit("vram-48+much"), Err(Error::Fit { .. })));
    assert!(matches!(fit("vram-47+64GiB"), Err(Error::Unknown { .. })));
}

#[test]
fn an_unknown_name_gets_the_nearest() {
    let error = fit("rtx-5080").expect_err("unknown").to_string();
    assert!(error.contains("no target `rtx-5080` (did you mean rtx-5090"), "{error}");
    assert!(error.contains("`halfbyte targets`"), "{error}");
    let error = fit("studio").expect_err("unknown").to_string();
    assert!(error.contains("mac-studio-512, mac-studio-256"), "{error}");
    let error = fit("quantum-computer").expect_err("unknown").to_string();
    assert!(error.contains("no target `quantum-computer`. `halfbyte"), "{error}");
}

const MINE: &str = r#"
[[engine]]
name = "llama.cpp/cuda"
program = "llama.cpp"
backend = "cuda"
formats = ["f16", "q8_0"]

[[target]]
name = "vram-48"
description = "my card"
page = "4 KiB"
engines = ["llama.cpp/cuda"]

[[target.device]]
name = "mine"
kind = "card"
memory = "48 GiB"

[target.host]
name = "host"
kind = "host"
memory = "64 GB"
bandwidth = "80.5 GB/s"

[[target]]
name = "rack"
description = "two of them"
page = "4 KiB"
engines = ["llama.cpp/cuda"]
device = [
  { name = "a", kind = "card", memory = "24 GiB" },
  { name = "b", kind = "card", memory = "24 GiB", available = "20 GiB" },
]
"#;

#[test]
fn a_users_file_adds_and_replaces() {
    let presets = Catalog::presets().targets.len();
    let catalog = user(MINE).expect("file");
    assert_eq!(catalog.targets.len(), presets + 1, "one replaced, one new");
    let mine = catalog.get("vram-48").expect("replaced");
    assert_eq!(mine.description, "my card");
    assert_eq!(mine.devices[0].usable, 47 * GIB);
    assert_eq!(mine.engines[0].formats.len(), 2);
    let host = mine.host.as_ref().expect("host");
    assert_eq!((host.memory, host.bandwidth), (64_000_000_000, Some(80_500_000_000)));
    let rack: Vec<u64> =
        catalog.get("rack").expect("new").devices.iter().map(|device| device.usable / GIB).collect();
    assert_eq!(rack, [23, 19]);
    assert_eq!(
        catalog.get("rtx-5090").expect("preset").engines[0].formats.len(),
        2,
        "the engine of all targets"
    );
}

#[test]
fn a_wrong_file_is_refused_at_its_line() {
    let replaced = |from: &str, to: &str| {
        assert!(MINE.contains(from), "{from}");
        complaint(&MINE.replacen(from, to, 1))
    };
    for (from, to, line, words) in [
        ("kind = \"card\"", "colour = \"red\"", 16, "unknown field `colour`"),
        ("kind = \"card\"", "kind = \"cart\"", 16, "unknown variant `cart`"),
        ("memory = \"48 GiB\"", "memory = 48", 17, "a size with its unit"),
        ("memory = \"48 GiB\"", "memory = \"48\"", 17, "the unit is missing"),
        ("memory = \"48 GiB\"", "memory = \"48 GiBB\"", 17, "no unit of size"),
        ("memory = \"64 GB\"", "memory = \"64 GB/s\"", 22, "the unit is missing"),
        ("bandwidth = \"80.5 GB/s\"", "bandwidth = \"80.5 GB\"", 23, "no bandwidth"),
        ("memory = \"48 GiB\"", "memory = \"48 GiB\"\nusable = \"49 GiB\"", 18, "more than its memory"),
        ("kind = \"card\"", "kind = \"unified\"", 15, "unified memory needs `usable`"),
        ("page = \"4 KiB\"", "page = \"5 KiB\"", 11, "a page is a power of two"),
        ("[\"llama.cpp/cuda\"]", "[\"tgi\"]", 12, "no engine `tgi`, but llama.cpp/metal"),
        ("program = \"llama.cpp\"", "program = \"vllm\"", 3, "vllm has no `backend`"),
        ("[\"llama.cpp/cuda\"]", "[]", 12, "a target needs an engine"),
        ("\"q8_0\"", "\"q9_0\"", 6, "no format `q9_0`"),
        ("backend = \"cuda\"", "", 3, "llama.cpp needs a `backend`"),
        ("name = \"vram-48\"", "name = \"48gb\"", 9, "begin with a digit"),
        ("name = \"rack\"", "name = \"vram-48\"", 26, "second target `vram-48`"),
        ("kind = \"host\"", "kind = \"card\"", 20, "of the kind `host`"),
        ("available = \"20 GiB\"", "available = \"25 GiB\"", 32, "more than its memory"),
        ("description = \"my card\"", "", 8, "missing field `description`"),
        ("[[engine]]", "[[engine]", 2, ""),
    ] {
        let (found, detail) = replaced(from, to);
        assert_eq!(found, line, "{to}: {detail}");
        assert!(detail.contains(words), "{to}: {detail}");
    }
    // The key is in the message: it repeats the line.
    assert_eq!(
        replaced("memory = \"48 GiB\"", "memory = \"48\"").1,
        "`memory = \"48\"`: `48` is not a size such as \"512 GiB\": the unit is missing"
    );
    assert!(matches!(Catalog::with_file(Some(Path::new("no/such/file.toml"))), Err(Error::Io { .. })));
}

//! `halfbyte targets`.

use std::io::Write;

use anyhow::Result;
use comfy_table::Table;
use kernels::{Format, table as kernel_table};
use quantize::plan::Container;
use quantize::target::{Catalog, Device, Engine, Target, machine::ThisMachine, size};
use serde_json::{Value, json};

use crate::{
    args,
    table::{print_json, table},
};

/// Lists the targets, or shows one with the sources of its figures.
pub fn run(args: &args::Targets) -> Result<()> {
    let catalog = Catalog::with_file(args.target_file.as_deref()).map_err(quantize::Error::from)?;
    match &args.name {
        Some(name) => {
            let target = catalog.fit(name, &ThisMachine).map_err(quantize::Error::from)?;
            if args.json { print_json(&as_json(&target)) } else { show(&target) }
        }
        None if args.json => print_json(&catalog.targets.iter().map(as_json).collect::<Vec<_>>()),
        None => list(&catalog),
    }
}

fn list(catalog: &Catalog) -> Result<()> {
    let mut table = table(&["target", "memory", "usable", "GB/s", "engines", "formats"], &[1, 2, 3]);
    for target in &catalog.targets {
        let devices = &target.devices;
        table.add_row([
            target.name.clone(),
            each(devices, |device| size(device.memory)),
            each(devices, |device| size(device.usable)),
            each(devices, |device| device.bandwidth.map(rate).unwrap_or_default()),
            target.engines.iter().map(|engine| engine.name.as_str()).collect::<Vec<_>>().join(", "),
            formats(target),
        ]);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{table}\n")?;
    writeln!(
        out,
        "usable: what weights, KV cache and buffers may take together. `halfbyte targets NAME` shows the sources; `auto` is \
         this machine,\n37GiB a device of that size, vram-48+384GiB a card with a host of so much memory."
    )?;
    Ok(())
}

fn show(target: &Target) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}: {}\n", target.name, target.description)?;
    let mut figures = table(&["device", "", "", "source"], &[2]);
    for device in target.devices.iter().chain(&target.host) {
        add_device(&mut figures, device);
    }
    writeln!(out, "{figures}\n\npage {}\n", size(target.page))?;
    let mut engines = table(&["engine", "formats", "source"], &[]);
    for engine in &target.engines {
        engines.add_row([engine.name.clone(), of_engine(engine), engine.sources.join("\n")]);
    }
    writeln!(out, "{engines}")?;
    if !target.notes.is_empty() {
        writeln!(out, "\n{}", target.notes.join("\n"))?;
    }
    Ok(())
}

fn add_device(table: &mut Table, device: &Device) {
    let basis = &device.basis;
    let bandwidth =
        device.bandwidth.map_or("not known".to_owned(), |bandwidth| format!("{} GB/s", rate(bandwidth)));
    let name = format!("{} ({})", device.name, device.kind.name());
    table.add_row([&name, "memory", &size(device.memory), &basis.memory]);
    table.add_row(["", "usable", &size(device.usable), &basis.usable]);
    table.add_row(["", "bandwidth", &bandwidth, &basis.bandwidth]);
}

/// The devices' figures, once if they are all the same: `2 × 48 GiB`, `40.75 GiB + 40.29 GiB`.
fn each(devices: &[Device], figure: impl Fn(&Device) -> String) -> String {
    let figures: Vec<String> = devices.iter().map(figure).collect();
    match &figures[..] {
        [one] => one.clone(),
        [first, rest @ ..] if !first.is_empty() && rest.iter().all(|other| other == first) => {
            format!("{} × {first}", figures.len())
        }
        _ => figures.join(" + ").trim_matches([' ', '+']).to_owned(),
    }
}

fn rate(bytes: u64) -> String {
    let text = format!("{:.1}", bytes as f64 / 1e9);
    text.trim_end_matches(".0").to_owned()
}

const CONTAINERS: [(Container, &str, &[&Format]); 3] = [
    (Container::Gguf, "GGUF", kernel_table::GGUF),
    (Container::Mlx, "MLX", kernel_table::MLX),
    (Container::CompressedTensors, "compressed-tensors", kernel_table::COMPRESSED_TENSORS),
];

/// What a target runs: `GGUF: all but nvfp4; MLX: all`.
fn formats(target: &Target) -> String {
    let loaded = CONTAINERS.iter().filter(|(container, ..)| !target.formats(*container).is_empty());
    let parts: Vec<String> = loaded
        .map(|(container, name, all)| {
            format!("{name}: {}", of_container(all, |format| target.runs(*container, format)))
        })
        .collect();
    parts.join("; ")
}

fn of_engine(engine: &Engine) -> String {
    let container = CONTAINERS.iter().find(|(container, ..)| *container == engine.container());
    container
        .map(|(_, name, all)| format!("{name}: {}", of_container(all, |format| engine.runs(format))))
        .unwrap_or_default()
}

/// Which of the formats that can be written are run, by the shorter list; without variants for scales of other types.
fn of_container(all: &[&Format], runs: impl Fn(&Format) -> bool) -> String {
    let is_variant = |format: &Format| format.name.ends_with("-f16") || format.name.ends_with("-f32");
    let writable = all.iter().filter(|format| format.encode.is_some() && !is_variant(format));
    let (run, not): (Vec<&Format>, Vec<&Format>) = writable.copied().partition(|format| runs(format));
    let names = |formats: &[&Format]| formats.iter().map(|format| format.name).collect::<Vec<_>>().join(", ");
    if not.is_empty() {
        "all".to_owned()
    } else if not.len() < run.len() {
        format!("all but {}", names(&not))
    } else {
        names(&run)
    }
}

fn as_json(target: &Target) -> Value {
    let engine = |engine: &Engine| {
        json!({
            "name": engine.name,
            "container": CONTAINERS.iter().find(|(container, ..)| *container == engine.container())
                .map(|(_, name, _)| name.to_ascii_lowercase()),
            "formats": engine.formats.iter().map(|format| format.name).collect::<Vec<_>>(),
            "sources": engine.sources,
        })
    };
    json!({
        "name": target.name,
        "description": target.description,
        "devices": target.devices.iter().map(device_json).collect::<Vec<_>>(),
        "host": target.host.as_ref().map(device_json),
        "page": target.page,
        "engines": target.engines.iter().map(engine).collect::<Vec<_>>(),
        "notes": target.notes,
    })
}

fn device_json(device: &Device) -> Value {
    json!({
        "name": device.name,
        "pci": device.pci,
        "kind": device.kind.name(),
        "memory": device.memory,
        "usable": device.usable,
        "bandwidth": device.bandwidth,
        "sources": {
            "memory": device.basis.memory,
            "usable": device.basis.usable,
            "bandwidth": device.basis.bandwidth,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_the_shorter_list() {
        let catalog = Catalog::presets();
        let of = |name: &str| formats(catalog.get(name).expect("preset"));
        assert_eq!(of("mac-studio-512"), "GGUF: all but nvfp4; MLX: all");
        assert_eq!(of("atlas-300i-duo"), "GGUF: f32, f16");
        assert_eq!(of("mtt-s4000"), "GGUF: all but q2_k");
        assert_eq!(of("dgx-spark"), "GGUF: all");
        assert_eq!(
            of("rtx-5090"),
            "GGUF: all; compressed-tensors: f16, bf16, w4a16-g32, w4a16-g64, w4a16-g128"
        );
    }

    #[test]
    fn several_devices_are_told_in_one_cell() {
        let catalog = Catalog::presets();
        let atlas = &catalog.get("atlas-300i-duo").expect("preset").devices;
        assert_eq!(each(atlas, |device| size(device.memory)), "2 × 48 GiB");
        assert_eq!(each(atlas, |device| size(device.usable)), "40.75 GiB + 40.29 GiB");
        assert_eq!(each(atlas, |_| String::new()), "");
    }
}

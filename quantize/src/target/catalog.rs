//! The targets by name: the presets, and what a user adds to them.

use std::path::Path;

use kernels::table;
use toml::Spanned;

use super::{
    Basis, Device, DeviceKind, Engine, EngineKind, Error, Target,
    file::{File, MacosLimit},
    host_reserve, less,
    machine::{self, System},
    marlin, parse_size,
};

const PRESETS: &str = include_str!("targets.toml");

/// The page that any machine's page divides.
const ANY_PAGE: u64 = 16 << 10;

/// Below this a size was meant in another unit.
const SMALLEST: u64 = 1 << 20;

/// Targets and engines by name.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The machines, in the order of their files.
    pub targets: Vec<Target>,
    engines: Vec<Engine>,
    macos_limits: Vec<MacosLimit>,
}

impl Catalog {
    /// The presets.
    pub fn presets() -> Self {
        let mut catalog = Catalog { targets: Vec::new(), engines: Vec::new(), macos_limits: Vec::new() };
        catalog.add(Path::new("targets.toml"), PRESETS).expect("the presets are read by a test");
        catalog
    }

    /// The presets with a user's file; its entries replace those of the same name.
    pub fn with_file(path: Option<&Path>) -> Result<Self, Error> {
        let mut catalog = Self::presets();
        if let Some(path) = path {
            let text = std::fs::read_to_string(path)
                .map_err(|source| Error::Io { path: path.to_owned(), source })?;
            catalog.add(path, &text)?;
        }
        Ok(catalog)
    }

    /// Adds what `text`, the content of `path`, describes. An engine that it replaces is replaced in all targets.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let wrong = |at: usize, detail: String| {
            let before = text.get(..at).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            let words = text.lines().nth(line - 1).unwrap_or("").trim();
            Error::File { path: path.to_owned(), line, detail: format!("`{words}`: {detail}") }
        };
        let file: File = toml::from_str(text)
            .map_err(|error| wrong(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        let at = |name: &Spanned<String>| name.span().start;

        let mut seen: Vec<String> = Vec::new();
        for engine in file.engine {
            let (start, name) = (at(&engine.name), engine.name.get_ref().clone());
            if seen.contains(&name) {
                return Err(wrong(start, format!("the file has a second engine `{name}`")));
            }
            seen.push(name.clone());
            let engine = engine.build().map_err(|(start, detail)| wrong(start, detail))?;
            for old in self.targets.iter_mut().flat_map(|target| &mut target.engines) {
                if old.name == name {
                    old.clone_from(&engine);
                }
            }
            replace(&mut self.engines, engine, |engine| engine.name == name);
        }
        seen.clear();
        for target in file.target {
            let (start, name) = (at(&target.name), target.name.get_ref().clone());
            if seen.contains(&name) {
                return Err(wrong(start, format!("the file has a second target `{name}`")));
            }
            seen.push(name.clone());
            let target = target.build(&self.engines).map_err(|(start, detail)| wrong(start, detail))?;
            replace(&mut self.targets, target, |target| target.name == name);
        }
        for limit in file.macos_limit {
            let memory = limit.memory.0;
            replace(&mut self.macos_limits, limit, |limit| limit.memory.0 == memory);
        }
        self.macos_limits.sort_by_key(|limit| limit.memory.0);
        Ok(())
    }

    /// The target of this name.
    pub fn get(&self, name: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == name)
    }

    /// What a user means with `--fit`: a name; a size such as `37GiB`, a device on which that much may be taken; `auto`, this
    /// machine; and with `+384GiB` a host of that much memory beside its cards.
    pub fn fit(&self, text: &str, system: &dyn System) -> Result<Target, Error> {
        let text = text.trim();
        if text == "auto" {
            return machine::describe(system, self);
        }
        if let Some(target) = self.get(text) {
            return Ok(target.clone());
        }
        let wrong = |detail: String| Error::Fit { text: text.to_owned(), detail };
        if let Some((name, memory)) = text.rsplit_once('+') {
            let mut target = self.fit(name, system)?;
            let memory = given_size(memory).map_err(&wrong)?;
            if target.devices.iter().any(|device| device.kind != DeviceKind::Card) {
                return Err(wrong(format!(
                    "{} has no card beside which the host's memory would lie",
                    target.name
                )));
            }
            target.name = text.to_owned();
            target.description += " and the host's memory";
            target.host = Some(host(memory));
            return Ok(target);
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(any_engine(text, given_size(text).map_err(wrong)?));
        }
        Err(Error::Unknown { name: text.to_owned(), near: self.near(text) })
    }

    /// Names like this one: those that contain it, or a few letters away.
    fn near(&self, text: &str) -> Vec<String> {
        let text = text.to_ascii_lowercase();
        let mut near: Vec<(usize, &String)> = (self.targets.iter())
            .map(|target| &target.name)
            .map(|name| (if name.contains(&text) { 0 } else { distance(&text, name) }, name))
            .filter(|(distance, _)| *distance <= text.len() / 3)
            .collect();
        near.sort_by_key(|(distance, _)| *distance);
        near.into_iter().take(3).map(|(_, name)| name.clone()).collect()
    }

    /// The engine of this name.
    pub(super) fn engine(&self, name: &str) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.name == name)
    }

    /// The known device that a system calls `name` and that has `memory` bytes, or up to an eighth more, of which its driver
    /// keeps some.
    pub(super) fn device(&self, name: &str, memory: u64) -> Option<&Device> {
        let fits = |device: &Device| (device.memory - device.memory / 8..=device.memory).contains(&memory);
        self.devices().map(|(_, device)| device).find(|device| device.name == name && fits(device))
    }

    /// The known device with this vendor and device on the PCI bus, and its target.
    pub(super) fn pci(&self, id: &str) -> Option<(&Target, &Device)> {
        self.devices().find(|(_, device)| device.pci.as_deref() == Some(id))
    }

    fn devices(&self) -> impl Iterator<Item = (&Target, &Device)> {
        self.targets.iter().flat_map(|target| target.devices.iter().map(move |device| (target, device)))
    }

    /// What macOS lets a GPU take of `memory` bytes unless told otherwise, and how that is known: the share seen on the largest
    /// machine that is no larger, for the share grows with the memory.
    pub(super) fn macos_limit(&self, memory: u64) -> Option<(u64, String)> {
        let limit = self.macos_limits.iter().rfind(|limit| limit.memory.0 <= memory)?;
        if limit.memory.0 == memory {
            return Some((limit.usable.0, limit.source.clone()));
        }
        let usable = u128::from(memory) * u128::from(limit.usable.0) / u128::from(limit.memory.0);
        let how = format!("the share seen on a machine of {}: {}", super::size(limit.memory.0), limit.source);
        Some((u64::try_from(usable).ok()?, how))
    }
}

/// Memory of a host that has `memory` bytes.
fn host(memory: u64) -> Device {
    Device {
        name: "host".to_owned(),
        pci: None,
        kind: DeviceKind::Host,
        memory,
        usable: memory.saturating_sub(host_reserve(memory)),
        bandwidth: None,
        basis: Basis {
            memory: "given".to_owned(),
            usable: format!("its memory{}", less(host_reserve(memory))),
            bandwidth: String::new(),
        },
    }
}

/// A device of which `usable` bytes may be taken, whatever runs on it.
fn any_engine(name: &str, usable: u64) -> Target {
    let engine = |name: &str, kind, formats| Engine {
        name: name.to_owned(),
        kind,
        formats,
        sources: vec!["any engine: all formats of the container".to_owned()],
    };
    Target {
        name: name.to_owned(),
        description: format!("a device on which {} may be taken", super::size(usable)),
        devices: vec![Device {
            name: "device".to_owned(),
            pci: None,
            kind: DeviceKind::Card,
            memory: usable,
            usable,
            bandwidth: None,
            basis: Basis { usable: "given".to_owned(), memory: "given".to_owned(), bandwidth: String::new() },
        }],
        host: None,
        engines: vec![
            engine("llama.cpp", EngineKind::LlamaCpp(None), table::GGUF.to_vec()),
            engine("mlx", EngineKind::Mlx, table::MLX.to_vec()),
            engine("vllm", EngineKind::Vllm, marlin()),
        ],
        page: ANY_PAGE,
        notes: Vec::new(),
    }
}

fn given_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < SMALLEST {
        return Err(format!("`{text}` is {bytes} bytes. Write the unit: {text}GiB"));
    }
    Ok(bytes)
}

fn replace<T>(all: &mut Vec<T>, new: T, same: impl Fn(&T) -> bool) {
    match all.iter_mut().find(|old| same(old)) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

/// Letters to insert, delete or change to make one word the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

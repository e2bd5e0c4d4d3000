//! `--fit auto`: the machine that this runs on, as a target.
//!
//! Everything that is read comes through [`System`], so that the recorded answers of other machines test it.

mod apple;
mod linux;
#[cfg(test)]
mod tests;

use std::process::Command;

use super::{Basis, Catalog, Device, DeviceKind, Engine, Error, Target};

/// The operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    /// macOS.
    Macos,
    /// Linux, under Windows' too.
    Linux,
    /// Any other.
    Other,
}

/// What can be asked of a machine.
pub trait System {
    /// Its operating system.
    fn os(&self) -> Os;
    /// What a program wrote to standard output, if it is there and succeeded.
    fn run(&self, program: &str, args: &[&str]) -> Option<String>;
    /// A small text file's content, if it can be read.
    fn read(&self, path: &str) -> Option<String>;
    /// The names of a folder's entries, sorted; none if it can't be read.
    fn list(&self, folder: &str) -> Vec<String>;
}

/// The machine that this runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisMachine;

impl System for ThisMachine {
    fn os(&self) -> Os {
        match std::env::consts::OS {
            "macos" => Os::Macos,
            "linux" => Os::Linux,
            _ => Os::Other,
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().ok()?;
        if !output.status.success() {
            return None;
        }
        String::from_utf8(output.stdout).ok()
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// The machine as a target named `auto`.
///
/// Errors: the system does not tell how much memory it has.
pub fn describe(system: &dyn System, catalog: &Catalog) -> Result<Target, Error> {
    match system.os() {
        Os::Macos => apple::describe(system, catalog),
        Os::Linux => linux::describe(system, catalog),
        Os::Other => {
            Err(Error::Machine("halfbyte can't ask this operating system for its memory".to_owned()))
        }
    }
}

/// A machine without a device of its own for models: its processor computes, from the host's memory.
fn processor_only(
    host: Device,
    page: u64,
    catalog: &Catalog,
    mut notes: Vec<String>,
) -> Result<Target, Error> {
    notes.push("No device was found that computes faster than the processor: this is its memory.".to_owned());
    Ok(Target {
        name: "auto".to_owned(),
        description: "this machine's processor".to_owned(),
        devices: vec![host],
        host: None,
        engines: engines(catalog, &["llama.cpp/cpu"]),
        page,
        notes,
    })
}

/// The catalog's engines of these names.
fn engines(catalog: &Catalog, names: &[&str]) -> Vec<Engine> {
    names.iter().filter_map(|name| catalog.engine(name)).cloned().collect()
}

/// A device that the system names so; its bandwidth is that of the known device of this name and size.
fn device(
    catalog: &Catalog,
    name: &str,
    kind: DeviceKind,
    (memory, whence): (u64, &str),
    (usable, how): (u64, String),
) -> Device {
    let known = catalog.device(name, memory);
    Device {
        name: name.to_owned(),
        pci: None,
        kind,
        memory,
        usable: usable.min(memory),
        bandwidth: known.and_then(|known| known.bandwidth),
        basis: Basis {
            memory: whence.to_owned(),
            usable: how,
            bandwidth: known.map(|known| known.basis.bandwidth.clone()).unwrap_or_default(),
        },
    }
}

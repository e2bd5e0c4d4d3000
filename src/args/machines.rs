//! Devices that run a model, and machines that one is made for.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use verify::Device;

/// What the model runs on.
#[derive(ClapArgs)]
pub struct OnDevice {
    /// What computes when the model is run: cpu, gpu, gpu:N (see `halfbyte devices`), or auto: a graphics processor if there is one
    /// that computes rightly, never a software one
    #[arg(long, value_name = "DEVICE", default_value_t, value_parser = str::parse::<Device>)]
    pub device: Device,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte devices
  halfbyte devices --check
  halfbyte devices --check --device gpu:1
  halfbyte devices --check --json

With --check every operation is run on random input, on the device and on the processor. Exit codes: 0 all agree, 1 failed, 2 wrong usage.")]
pub struct Devices {
    /// Run every operation, and compare with what the processor computes
    #[arg(long)]
    pub check: bool,
    /// Only this one: gpu:N [default: all]
    #[arg(long, value_name = "DEVICE", requires = "check", value_parser = str::parse::<Device>)]
    pub device: Option<Device>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte targets
  halfbyte targets mac-studio-512
  halfbyte targets auto
  halfbyte targets vram-48+384GiB --json
  halfbyte targets my-rack --target-file rack.toml")]
pub struct Targets {
    /// One target in full: a name; `auto`, this machine; a size such as 37GiB; `vram-48+384GiB`, a card beside a host's memory
    pub name: Option<String>,
    /// Targets of your own (TOML), which replace those of the same name
    #[arg(long, value_name = "FILE")]
    pub target_file: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

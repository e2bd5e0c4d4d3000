//! `halfbyte devices`, and opening what `--device` names.

use anyhow::Result;
use verify::{Error, Processor};

use crate::args;

impl args::OnDevice {
    /// Opens the device; lines about it go to standard error.
    pub fn open(&self) -> Result<Processor> {
        Ok(Processor::open(self.device, |line| eprintln!("{line}"))?)
    }
}

/// Without a desktop there is nobody whom Mesa could ask for the preferred device: it complains on standard error if it isn't kept from
/// asking. To be called before there are threads.
pub fn hush() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: this is the only thread.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Lists the graphics processors, or checks them.
#[cfg(not(feature = "gpu"))]
pub fn run(_: &args::Devices) -> Result<()> {
    Err(Error::Usage("this halfbyte was built without its feature `gpu`".into()).into())
}

/// Lists the graphics processors, or checks them.
#[cfg(feature = "gpu")]
pub fn run(args: &args::Devices) -> Result<()> {
    gpu::run(args)
}

#[cfg(feature = "gpu")]
mod gpu {
    use std::io::Write;

    use anyhow::{Result, bail};
    use serde_json::json;
    use verify::gpu::{Device, adapters, check, open};

    use crate::{
        args,
        table::{print_json, table},
    };

    pub fn run(args: &args::Devices) -> Result<()> {
        let numbers: Vec<usize> = match args.device {
            None => (0..adapters().len()).collect(),
            Some(verify::Device::Gpu(number)) => vec![number],
            Some(other) => bail!(super::Error::Usage(format!("{other} is no single graphics processor"))),
        };
        if numbers.is_empty() && !args.json {
            println!("no graphics processor was found; models run on the processor");
            return Ok(());
        }
        let mut devices = Vec::new();
        let mut wrong = Vec::new();
        for number in numbers {
            // One that refuses hides nobody.
            match open(number, |_| ()) {
                Ok(device) => devices.push((number, device)),
                Err(error @ super::Error::Usage(_)) => return Err(error.into()),
                Err(error) => wrong.push(format!("gpu:{number}: {error}")),
            }
        }
        if !args.check {
            list(&devices, args.json)?;
            return if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("; ")) };
        }
        let mut results = Vec::new();
        for (number, device) in &devices {
            let checked = match check::check(device) {
                Ok(checked) => checked,
                Err(error) => {
                    wrong.push(format!("gpu:{number}: {error}"));
                    continue;
                }
            };
            let failed = checked.iter().filter(|checked| !checked.holds()).count();
            if failed > 0 {
                wrong.push(format!("gpu:{number} computes {failed} of {} operations wrongly", checked.len()));
            }
            if args.json {
                let operations = checked.iter().map(|checked| {
                    json!({
                        "operation": checked.operation, "error": checked.error, "allowed": checked.allowed,
                        "holds": checked.holds(),
                    })
                });
                results.push(json!({
                    "device": format!("gpu:{number}"), "name": device.info.name,
                    "operations": operations.collect::<Vec<_>>(),
                }));
            } else {
                print(*number, device, &checked)?;
            }
        }
        if args.json {
            print_json(&results)?;
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}; use --device cpu", wrong.join("; ")) }
    }

    fn list(devices: &[(usize, std::sync::Arc<Device>)], as_json: bool) -> Result<()> {
        let kind = |device: &Device| match (device.is_software(), device.is_unified()) {
            (true, _) => "software",
            (false, true) => "memory shared with the processor",
            (false, false) => "memory of its own",
        };
        if as_json {
            let one = |(number, device): &(usize, std::sync::Arc<Device>)| {
                json!({
                    "device": format!("gpu:{number}"), "name": device.info.name,
                    "backend": device.info.backend.to_str(), "driver": device.info.driver_info,
                    "software": device.is_software(), "unified_memory": device.is_unified(),
                    "half_precision": device.has_halves(), "cooperative_matrices": device.is_cooperative(),
                    "largest_binding": device.binding,
                })
            };
            return print_json(&devices.iter().map(one).collect::<Vec<_>>());
        }
        let mut table = table(&["device", "name", "driver", "kind", "f16", "matrices"], &[]);
        let yes = |has: bool| if has { "yes" } else { "no" }.to_owned();
        for (number, device) in devices {
            table.add_row([
                format!("gpu:{number}"),
                device.info.name.clone(),
                format!("{} {}", device.info.backend.to_str(), device.info.driver_info),
                kind(device).to_owned(),
                yes(device.has_halves()),
                yes(device.is_cooperative()),
            ]);
        }
        writeln!(std::io::stdout().lock(), "{table}")?;
        Ok(())
    }

    fn print(number: usize, device: &Device, checked: &[check::Checked]) -> Result<()> {
        let mut table = table(&["operation", "error", "allowed", ""], &[1, 2]);
        for checked in checked {
            table.add_row([
                checked.operation.clone(),
                format!("{:.1e}", checked.error),
                format!("{:.0e}", checked.allowed),
                if checked.holds() { "ok" } else { "WRONG" }.to_owned(),
            ]);
        }
        let mut out = std::io::stdout().lock();
        writeln!(out, "gpu:{number}: {} ({})\n\n{table}\n", device.info.name, device.info.backend.to_str())?;
        let right = checked.iter().filter(|checked| checked.holds()).count();
        writeln!(out, "{right} of {} operations agree with the processor", checked.len())?;
        Ok(())
    }
}

//! `halfbyte`: makes large language models fit the machine their owner has.

mod args;
mod calibration;
mod check_verb;
mod convert_verb;
mod devices_verb;
mod engine;
mod fetch_verb;
mod formats_verb;
mod inspect;
mod interrupt;
mod plan_verb;
mod progress;
mod publish_verb;
mod quantize_verb;
mod shrink;
mod source;
mod steps;
mod table;
mod targets_verb;
mod text;
mod transfers;
mod verify_verb;

use std::process::ExitCode;

use args::{Args, Verb};
use clap::Parser;

/// Failed: the message says why.
const FAILED: u8 = 1;
/// Wrong use of the command line; clap exits with it too.
const USAGE: u8 = 2;
/// Measured, and worse than was allowed.
const GATE: u8 = 3;
/// Stopped by Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    devices_verb::hush();
    let args = Args::parse();
    let result = match &args.verb {
        Verb::Fetch(options) => fetch_verb::run(options),
        Verb::Shrink(options) => shrink::run(options),
        Verb::Plan(options) => plan_verb::run(options),
        Verb::Quantize(options) => quantize_verb::run(options),
        Verb::Convert(options) => convert_verb::run(options),
        Verb::Verify(options) => verify_verb::run(options),
        Verb::Publish(options) => publish_verb::run(options),
        Verb::Check(options) => check_verb::run(options),
        Verb::Inspect(options) => inspect::run(options),
        Verb::Formats(options) => formats_verb::run(options),
        Verb::Targets(options) => targets_verb::run(options),
        Verb::Devices(options) => devices_verb::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A reader that has seen enough (`| head`) is no failure.
            if error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            }) {
                return ExitCode::SUCCESS;
            }
            eprintln!("halfbyte: {}", text::causes(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// What a script is told about an error.
fn code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.chain().find_map(hub_error) {
        return match error {
            hub::Error::Interrupted => INTERRUPTED,
            hub::Error::Usage(_) => USAGE,
            _ => FAILED,
        };
    }
    if let Some(error) = error.downcast_ref::<quantize::Error>() {
        match error {
            quantize::Error::Interrupted { .. } => INTERRUPTED,
            quantize::Error::Usage(_)
            | quantize::Error::Choice { .. }
            | quantize::Error::Recipe { .. }
            | quantize::Error::Target(_) => USAGE,
            _ => FAILED,
        }
    } else if let Some(error) = error.downcast_ref::<verify::Error>() {
        match error {
            verify::Error::Interrupted => INTERRUPTED,
            verify::Error::Usage(_) => USAGE,
            _ => FAILED,
        }
    } else if error.is::<verify_verb::Exceeded>() {
        GATE
    } else {
        FAILED
    }
}

/// A Hub's error, which may have come through a read.
fn hub_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a hub::Error> {
    let read = || cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_can_tell_errors_apart() {
        let usage = || "wrong".to_owned();
        for (error, expected) in [
            (verify::Error::Interrupted.into(), INTERRUPTED),
            (verify::Error::Usage(usage()).into(), USAGE),
            (verify::Error::TooFewTokens { scored: 1 }.into(), FAILED),
            (quantize::Error::Interrupted { partial: "p".into() }.into(), INTERRUPTED),
            (quantize::Error::Usage(usage()).into(), USAGE),
            (anyhow::anyhow!("else"), FAILED),
            (hub::Error::Interrupted.into(), INTERRUPTED),
            (hub::Error::Usage(usage()).into(), USAGE),
            (std::io::Error::other(hub::Error::Interrupted).into(), INTERRUPTED),
            (
                quantize::Error::from(formats::Error::Io {
                    path: "f".into(),
                    source: std::io::Error::other(hub::Error::Interrupted),
                })
                .into(),
                INTERRUPTED,
            ),
        ] {
            assert_eq!(code(&error), expected, "{error}");
        }
    }
}

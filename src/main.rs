//! `halfbyte`: makes large language models fit the machine their owner has.

mod args;
mod formats_verb;
mod inspect;
mod progress;
mod quantize_verb;
mod table;
mod text;

use std::process::ExitCode;

use args::{Args, Verb};
use clap::Parser;

/// Failed: the message says why.
const FAILED: u8 = 1;
/// Wrong use of the command line; clap exits with it too.
const USAGE: u8 = 2;
/// Stopped by Ctrl-C; the same command goes on.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.verb {
        Verb::Quantize(options) => quantize_verb::run(options),
        Verb::Inspect(options) => inspect::run(options),
        Verb::Formats(options) => formats_verb::run(options),
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
            eprintln!("halfbyte: {error:#}");
            let code = match error.downcast_ref::<quantize::Error>() {
                Some(quantize::Error::Interrupted { .. }) => INTERRUPTED,
                Some(quantize::Error::Usage(_)) => USAGE,
                _ => FAILED,
            };
            ExitCode::from(code)
        }
    }
}

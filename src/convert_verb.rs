//! `halfbyte convert`.

use std::io::Write;

use anyhow::Result;
use formats::Source;
use quantize::{
    job::Job,
    lossless::LOSSLESS,
    plan::Options,
    proof::{Proof, prove},
};
use serde_json::{Value, json};

use crate::{
    args,
    interrupt::interruptible,
    progress::Watch,
    quantize_verb::{plan_json, print_plan, run_options, write},
    source::{self, Need},
    table::print_json,
    text,
};

/// Moves quantized weights into another container as they are, and proves it by decoding both.
pub fn run(args: &args::Convert) -> Result<()> {
    let source = source::open(&args.source, Need::Weights { disk: None })?;
    let like = args.like.as_deref().map(|like| source::open(like, Need::Headers)).transpose()?;
    let options = Options { shard_size: args.shard_size, like, ..Options::new(args.to.into(), LOSSLESS) };
    let job = Job::plan(&source, &args.out, &options)?;
    for warning in &job.warnings {
        eprintln!("warning: {warning}");
    }
    if args.dry_run {
        return if args.json { print_json(&plan_json(&job)) } else { print_plan(&job) };
    }
    let cancel = interruptible()?;
    let options = run_options(args.threads, args.memory, args.overwrite);
    let done = write(std::slice::from_ref(&job), &source, None, options, None, &cancel)?.pop().flatten();
    let proof = prove(&source, &Source::from(job.first_file()), &Watch::new(), &cancel)?;
    source.done();
    if args.json {
        let mut result = match &done {
            Some(done) => done.json(),
            None => plan_json(&job),
        };
        result["already_there"] = done.is_none().into();
        result["proof"] = proof_json(&proof);
        return print_json(&result);
    }
    match &done {
        Some(done) => done.print()?,
        None => println!(
            "{} is already there, whole and from this very source.",
            job.destination.path().display()
        ),
    }
    writeln!(std::io::stdout().lock(), "{}", proof_line(&proof))?;
    Ok(())
}

fn proof_line(proof: &Proof) -> String {
    let Proof { tensors, weights } = *proof;
    format!(
        "proved: the {} weights of {tensors} tensors, read again from both, stand for the same numbers",
        text::count(weights)
    )
}

fn proof_json(proof: &Proof) -> Value {
    json!({ "tensors": proof.tensors, "weights": proof.weights })
}

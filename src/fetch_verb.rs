//! `halfbyte fetch`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use hub::{Named, api::RemoteFile, snapshot::Snapshot};
use serde_json::{Value, json};

use crate::{
    args, source,
    table::{print_json, table},
    text,
    transfers::Transfers,
};

/// Fetches a model into the cache, or shows what that would take.
pub fn run(args: &args::Fetch) -> Result<()> {
    let named = Named::parse(&args.repo)?;
    let (client, progress) = (source::client()?, Transfers::new());
    let snapshot = Snapshot::find(&client, &named, &progress)?;
    let missing = snapshot.missing();
    if args.dry_run {
        return if args.json { print_json(&plan(&snapshot)) } else { show(&snapshot, missing) };
    }
    let start = Instant::now();
    let source = snapshot.fetched(&client, &progress)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let mut result = plan(&snapshot);
        result["path"] = json!(source.path());
        result["fetched_bytes"] = json!(missing);
        result["seconds"] = json!(seconds);
        return print_json(&result);
    }
    let mut line =
        format!("{}@{}: {}", snapshot.repo, snapshot.commit, text::bytes(bytes(&snapshot.weights)));
    if missing > 0 {
        let rate = text::bytes((missing as f64 / seconds.max(1e-3)) as u64);
        line +=
            &format!(", of which {} fetched in {} ({rate}/s)", text::bytes(missing), text::duration(seconds));
    } else {
        line += ", all of it there already";
    }
    eprintln!("{line}");
    // Alone on standard output, for scripts.
    println!("{}", source.path().display());
    Ok(())
}

fn bytes(files: &[RemoteFile]) -> u64 {
    files.iter().map(|file| file.bytes).sum()
}

fn plan(snapshot: &Snapshot) -> Value {
    let file = |file: &RemoteFile| {
        let algorithm = match &file.hash {
            hub::api::Hash::Sha256(_) => "sha256",
            hub::api::Hash::GitBlob(_) => "git_sha1",
        };
        json!({ "name": file.path, "bytes": file.bytes, algorithm: file.hash.hex() })
    };
    json!({
        "repo": snapshot.repo.to_string(),
        "commit": snapshot.commit,
        "weights": snapshot.weights.iter().map(file).collect::<Vec<_>>(),
        "other": snapshot.small.iter().map(file).collect::<Vec<_>>(),
        "missing_bytes": snapshot.missing(),
    })
}

fn show(snapshot: &Snapshot, missing: u64) -> Result<()> {
    let mut table = table(&["file", "bytes", "hash"], &[1]);
    for file in snapshot.small.iter().chain(&snapshot.weights) {
        table.add_row([file.path.as_str(), &file.bytes.to_string(), file.hash.hex()]);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{table}\n").context("can't write")?;
    writeln!(
        out,
        "{}@{}: {} of weights in {} files, {} to fetch",
        snapshot.repo,
        snapshot.commit,
        text::bytes(bytes(&snapshot.weights)),
        snapshot.weights.len(),
        text::bytes(missing)
    )?;
    Ok(())
}

//! The mock as a process, for acceptance scripts.

use std::io::Write as _;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use halfbyte_mock_hub::{MockHub, Options, RepoSpec, TokenSpec};

/// A mock of the Hugging Face Hub on loopback.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serves until it is killed. Prints `endpoint http://127.0.0.1:PORT` when it can be asked.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// The Hub's port; any free one unless told otherwise.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// A public repository with a folder's files; repeatable.
    #[arg(long, value_name = "OWNER/NAME=FOLDER")]
    repo: Vec<String>,
    /// The same, private: for `--token`s only.
    #[arg(long, value_name = "OWNER/NAME=FOLDER")]
    private_repo: Vec<String>,
    /// The same, gated: seen by all, its files for `--token`s only.
    #[arg(long, value_name = "OWNER/NAME=FOLDER")]
    gated_repo: Vec<String>,
    /// A token that may read and write everything; repeatable.
    #[arg(long)]
    token: Vec<String>,
    /// A token that may only read what is public; repeatable.
    #[arg(long)]
    read_token: Vec<String>,
    /// Where uploads go; a temporary folder unless told otherwise, which is left behind if the mock is killed.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Accepts uploads but does not keep them.
    #[arg(long)]
    discard_uploads: bool,
    /// How large files are to be uploaded; `basic` makes clients that speak Xet give up.
    #[arg(long, default_value = "xet")]
    transfer: String,
    /// Entries on a page of a listing.
    #[arg(long, default_value_t = 1000)]
    page_size: usize,
}

fn main() -> Result<()> {
    match Command::parse().verb {
        Verb::Serve(serve) => run(serve),
    }
}

fn run(serve: Serve) -> Result<()> {
    let hub = MockHub::start(Options {
        port: serve.port,
        store: serve.store,
        discard_uploads: serve.discard_uploads,
        transfer: serve.transfer,
        page_size: serve.page_size,
        ..Options::default()
    })
    .context("starting the servers")?;
    let mut ids = Vec::new();
    for (repos, kind) in [
        (&serve.repo, RepoSpec::folder as fn(RepoSpec, &std::path::Path) -> _),
        (&serve.private_repo, |spec, folder| spec.private().folder(folder)),
        (&serve.gated_repo, |spec, folder| spec.gated().folder(folder)),
    ] {
        for repo in repos {
            let Some((id, folder)) = repo.split_once('=') else { bail!("{repo} is not OWNER/NAME=FOLDER") };
            let spec = kind(RepoSpec::new(id), folder.as_ref()).with_context(|| folder.to_owned())?;
            hub.add_repo(spec);
            ids.push(id.to_owned());
        }
    }
    for token in serve.token {
        let spec = ids.iter().fold(TokenSpec::write(), |spec, id| spec.access(id));
        hub.add_token(&token, spec);
    }
    for token in serve.read_token {
        hub.add_token(&token, TokenSpec::read());
    }
    println!("endpoint {}", hub.endpoint());
    std::io::stdout().flush()?;
    loop {
        thread::park();
    }
}

//! The mock as a process, for acceptance scripts.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use halfbyte_mock_hub::{MockHub, Options, RepoSpec, TokenSpec, synthetic};

/// A mock of the Hugging Face Hub on loopback.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serves until it is killed. Prints `endpoint http://127.0.0.1:PORT` when it can be asked.
    Serve(Box<Serve>),
    /// Computes the SHA-256 of all shards of the synthetic DeepSeek-R1 ahead: 689 GB to hash.
    HashR1(R1),
}

#[derive(Args)]
struct R1 {
    /// What the synthetic DeepSeek-R1's weights are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where its shards' SHA-256 are kept.
    #[arg(long, default_value = "mock-hub-cache")]
    cache: PathBuf,
    /// Threads that hash.
    #[arg(long, default_value_t = 2)]
    threads: usize,
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
    /// The synthetic DeepSeek-R1 under this name.
    #[arg(long, value_name = "OWNER/NAME")]
    r1: Option<String>,
    /// Only these of its layers, as a model of its own: the three dense ones (0,1,2) and any others.
    #[arg(long, value_name = "N,N…", requires = "r1", value_delimiter = ',')]
    r1_layers: Vec<u64>,
    /// What its weights are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where its shards' SHA-256 are kept; `hash-r1` computes them ahead.
    #[arg(long, default_value = "mock-hub-cache")]
    cache: PathBuf,
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
        Verb::Serve(serve) => run(*serve),
        Verb::HashR1(r1) => hash(&r1),
    }
}

fn hash(r1: &R1) -> Result<()> {
    let start = Instant::now();
    let told = AtomicU64::new(0);
    synthetic::hash_deepseek_r1(r1.seed, &r1.cache, r1.threads, |done| {
        let step = done >> 32;
        if told.fetch_max(step, Ordering::Relaxed) < step {
            let rate = done as f64 / 1e9 / start.elapsed().as_secs_f64();
            let total = synthetic::FILE_BYTES as f64 / 1e9;
            eprintln!("{:.0} of {total:.0} GB, {rate:.2} GB/s", done as f64 / 1e9);
        }
    })
    .context("hashing the shards")
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
    if let Some(id) = serve.r1 {
        let spec = match &serve.r1_layers[..] {
            [] => synthetic::deepseek_r1(serve.seed, &serve.cache),
            layers => synthetic::deepseek_r1_part(serve.seed, &serve.cache, layers),
        };
        hub.add_repo(spec.context("the cache's folder")?.named(&id));
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

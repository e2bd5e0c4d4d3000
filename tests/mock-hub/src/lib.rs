//! A mock of the Hugging Face Hub: a real HTTP/1.1 server on loopback that behaves as the Hub does where models are
//! listed, read and written, and misbehaves where it is told to.
//!
//! ```no_run
//! use halfbyte_mock_hub::{Fault, Kind, MockHub, Options, RepoSpec};
//!
//! let hub = MockHub::start(Options::default()).expect("a mock");
//! hub.add_repo(RepoSpec::new("owner/name").file("config.json", "{}"));
//! hub.fault(Fault::new("config.json", Kind::CutAfter(1)));
//! println!("{}", hub.endpoint());
//! ```
//!
//! Large files are redirected to a second server, the CDN, that is addressed by another host name and wants a signed
//! URL and no token. Uploads go through Xet into a local store that the client's library writes itself
//! (`local://…` in the place of a server's address); the mock reads it. So client and mock have to be on one machine.

mod api;
mod content;
mod faults;
mod http;
mod repo;
mod server;
mod stats;
pub mod synthetic;
mod xet_store;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub use content::{Content, Memory, OnDisk, sha256_of};
pub use faults::{Fault, Host, Kind};
pub use repo::{LfsRule, RepoSpec};
pub use stats::{Logged, PathStats, Stats};

use repo::Repo;
use xet_store::Store;

/// How the mock is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The Hub's port; any free one if it is 0.
    pub port: u16,
    /// Where uploads lie; a temporary folder unless told otherwise.
    pub store: Option<PathBuf>,
    /// Entries on a page of a tree's listing.
    pub page_size: usize,
    /// How large files are to be uploaded: `xet`, or something that no client here can do, such as `basic`.
    pub transfer: String,
    /// Accepts uploads without keeping them: trees list them with their lengths and hashes, but nothing can be read.
    /// Xorbs are deleted a second after they were written, so the store stays small.
    pub discard_uploads: bool,
    /// How long the CDN's URLs are good for.
    pub signed_for: Duration,
    /// Whether answers to commits also have `prUrl` and `prNum`, which hf-hub 1.0 reads. The real Hub is not known to
    /// send them: it has `pullRequestUrl`, and hf-hub finds no number in that.
    pub pr_fields: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            port: 0,
            store: None,
            page_size: 1000,
            transfer: "xet".to_owned(),
            discard_uploads: false,
            signed_for: Duration::from_secs(3600),
            pr_fields: false,
        }
    }
}

/// What a token is good for.
#[derive(Clone, Debug)]
pub struct TokenSpec {
    /// Whose it is.
    pub user: String,
    /// Whether it may write at all.
    pub can_write: bool,
    /// Private and gated repositories that it may read. Those it creates are added.
    pub may_access: Vec<String>,
    /// Owners of repositories that it may write to and create; any if there are none.
    pub namespaces: Vec<String>,
}

impl TokenSpec {
    /// A token that may write everywhere.
    pub fn write() -> TokenSpec {
        TokenSpec { can_write: true, ..TokenSpec::read() }
    }

    /// A token that may only read.
    pub fn read() -> TokenSpec {
        TokenSpec {
            user: "mock-user".to_owned(),
            can_write: false,
            may_access: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    /// Also for a private or gated repository.
    pub fn access(mut self, repo: &str) -> TokenSpec {
        self.may_access.push(repo.to_owned());
        self
    }

    /// Writes only where this is the owner.
    pub fn namespace(mut self, owner: &str) -> TokenSpec {
        self.namespaces.push(owner.to_owned());
        self
    }
}

/// All there is behind the two servers.
pub(crate) struct State {
    pub(crate) endpoint: String,
    pub(crate) cdn: String,
    pub(crate) options: Options,
    pub(crate) store: Store,
    pub(crate) stopped: AtomicBool,
    repos: Mutex<BTreeMap<String, Repo>>,
    tokens: Mutex<BTreeMap<String, TokenSpec>>,
    faults: Mutex<Vec<Fault>>,
    stats: Mutex<Stats>,
    _temporary: Option<tempfile::TempDir>,
}

impl State {
    pub(crate) fn repos(&self) -> MutexGuard<'_, BTreeMap<String, Repo>> {
        self.repos.lock().expect("the repositories' lock")
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, BTreeMap<String, TokenSpec>> {
        self.tokens.lock().expect("the tokens' lock")
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.faults.lock().expect("the faults' lock")
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().expect("the statistics' lock")
    }

    pub(crate) fn replace(&self, repo: &str, path: &str, content: Arc<dyn Content>) -> Option<String> {
        Some(self.repos().get_mut(repo)?.replace(path, content))
    }
}

/// The mock. It stops when it is dropped.
pub struct MockHub {
    state: Arc<State>,
    servers: server::Servers,
}

impl MockHub {
    /// Starts both servers.
    ///
    /// # Errors
    /// If a port or the folder for uploads can't be had.
    pub fn start(options: Options) -> io::Result<MockHub> {
        let temporary = match options.store {
            Some(_) => None,
            None => Some(tempfile::tempdir()?),
        };
        let folder = match (&options.store, &temporary) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => folder.path().to_owned(),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        let listeners = server::Listeners::bind(options.port)?;
        let state = Arc::new(State {
            endpoint: listeners.endpoint()?,
            cdn: listeners.cdn()?,
            store: Store::new(folder, options.discard_uploads)?,
            options,
            stopped: AtomicBool::new(false),
            repos: Mutex::default(),
            tokens: Mutex::default(),
            faults: Mutex::default(),
            stats: Mutex::default(),
            _temporary: temporary,
        });
        let servers = listeners.serve(&state);
        Ok(MockHub { state, servers })
    }

    /// The Hub's address, as `HF_ENDPOINT` has it.
    pub fn endpoint(&self) -> String {
        self.state.endpoint.clone()
    }

    /// The CDN's address.
    pub fn cdn(&self) -> String {
        self.state.cdn.clone()
    }

    /// Adds a repository, in the place of one of the same name. The id of its first commit.
    pub fn add_repo(&self, spec: RepoSpec) -> String {
        let repo = Repo::new(spec);
        let head = repo.main().id.clone();
        self.state.repos().insert(repo.id.clone(), repo);
        head
    }

    /// Makes a token known.
    pub fn add_token(&self, token: &str, spec: TokenSpec) {
        self.state.tokens().insert(token.to_owned(), spec);
    }

    /// Gives a file of `main` other bytes, or makes a new one: a new commit. Its id, if the repository is there.
    pub fn replace_file(&self, repo: &str, path: &str, bytes: impl Into<Vec<u8>>) -> Option<String> {
        self.state.replace(repo, path, Arc::new(Memory::new(bytes)))
    }

    /// The commit that a revision of a repository is at.
    pub fn head(&self, repo: &str, revision: &str) -> Option<String> {
        Some(self.state.repos().get(repo)?.revision(revision)?.id.clone())
    }

    /// The paths of a revision's tree.
    pub fn paths(&self, repo: &str, revision: &str) -> Option<Vec<String>> {
        Some(self.state.repos().get(repo)?.revision(revision)?.tree.keys().cloned().collect())
    }

    /// A file of a revision.
    pub fn content(&self, repo: &str, revision: &str, path: &str) -> Option<Arc<dyn Content>> {
        Some(self.state.repos().get(repo)?.revision(revision)?.tree.get(path)?.content.clone())
    }

    /// Orders a fault. Of several that match a request, the one ordered first hits it.
    pub fn fault(&self, fault: Fault) {
        self.state.faults().push(fault);
    }

    /// Forgets all faults.
    pub fn clear_faults(&self) {
        self.state.faults().clear();
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.state.stats().clone()
    }

    /// Forgets what happened.
    pub fn reset_stats(&self) {
        *self.state.stats() = Stats::default();
    }
}

impl Drop for MockHub {
    fn drop(&mut self) {
        self.servers.stop(&self.state);
    }
}

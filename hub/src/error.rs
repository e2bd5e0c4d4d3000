//! What can go wrong between here and a Hub. Messages name the repository, the file and the numbers; none has a token or a signed
//! address in it.

use std::path::{Path, PathBuf};

/// A condition that stops the work with a Hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// What the user gave can't be used.
    #[error("{0}")]
    Usage(String),

    /// No answer, after all attempts.
    #[error("{place}: {problem} ({attempts} attempts). Run the same command again: it goes on where it was")]
    Unreachable {
        /// The address, without its query.
        place: String,
        /// The last thing that went wrong.
        problem: String,
        /// How often it was tried.
        attempts: u32,
    },

    /// An answer that was not asked for.
    #[error("{place}: the server answered {status}{}", said(.message))]
    Status {
        /// The address, without its query.
        place: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },

    /// There is no such repository, or it is private.
    #[error("{repo}: no such repository at {endpoint}, or it is private and {}", access(*.has_token))]
    NoRepo {
        /// The repository.
        repo: String,
        /// The Hub.
        endpoint: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// Its owner wants to be asked first.
    #[error("{repo} is gated: {}", gate(*.has_token, .endpoint, .repo))]
    Gated {
        /// The repository.
        repo: String,
        /// The Hub.
        endpoint: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The token is none, or may not do this.
    #[error("{endpoint} does not accept the token for {what}{}: check HF_TOKEN, or make one that may write", said(.message))]
    Token {
        /// The Hub.
        endpoint: String,
        /// What was to be done.
        what: String,
        /// What the server said.
        message: String,
    },

    /// There is no such branch, tag or commit.
    #[error("{repo} has no revision {revision}")]
    NoRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
    },

    /// There is no such file.
    #[error("{repo} has no file {file}")]
    NoFile {
        /// The repository.
        repo: String,
        /// What was asked for.
        file: String,
    },

    /// The repository holds nothing that can be read, or too much to choose from.
    #[error("{repo}: {reason}")]
    NoModel {
        /// The repository, with its commit.
        repo: String,
        /// What is there instead and what to do.
        reason: String,
    },

    /// The network may not be used, and the cache does not have it.
    #[error("{what} is not in {cache}, and HF_HUB_OFFLINE is set")]
    Offline {
        /// What is missing.
        what: String,
        /// The cache.
        cache: PathBuf,
    },

    /// A name that leads out of the folder it belongs in.
    #[error(
        "{repo} lists a file named {name:?}, which could lie outside of its folder: nothing of it is fetched"
    )]
    UnsafeName {
        /// The repository.
        repo: String,
        /// The name.
        name: String,
    },

    /// The bytes are not those that the Hub states.
    #[error(
        "{file} of {repo}: its {algorithm} is {found}, the Hub states {expected}, also after it was fetched anew: what was fetched \
         is removed"
    )]
    WrongHash {
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// The hash: SHA-256, or git's SHA-1.
        algorithm: &'static str,
        /// What the Hub states.
        expected: String,
        /// What was found.
        found: String,
    },

    /// The Hub states something else of a file than it did before, at the same commit.
    #[error("{file} of {repo}: the Hub now states {now} for it, before it was {before}, at the same commit")]
    Changed {
        /// The repository.
        repo: String,
        /// The file in it.
        file: String,
        /// What it was.
        before: String,
        /// What it is.
        now: String,
    },

    /// The answer does not make sense.
    #[error("{place}: {problem}")]
    Answer {
        /// The address, without its query.
        place: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A list of files, a manifest or a signature is not what it should be.
    #[error("{file}: {problem}")]
    Listing {
        /// The file, with its folder or repository.
        file: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The files that one step of the work reads are more than the scratch may hold.
    #[error(
        "{files} take {needed} bytes and are needed at the same time, but --disk allows {budget}: give at least {needed}, or leave \
         --disk out"
    )]
    Budget {
        /// The files.
        files: String,
        /// Their bytes.
        needed: u64,
        /// What is allowed.
        budget: u64,
    },

    /// The disk is full.
    #[error("{path}: {needed} bytes are needed and {free} are free")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What is needed.
        needed: u64,
        /// What there is.
        free: u64,
    },

    /// Another process does the same.
    #[error("{path} is in use by another process")]
    Busy {
        /// What is locked.
        path: PathBuf,
    },

    /// A file that is needed could not be fetched: what was said of it.
    #[error("{0}")]
    Fetch(String),

    /// Stopped by the user.
    #[error("interrupted; the same command goes on where it was")]
    Interrupted,
}

/// What hub functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Gives an error of the system's its path.
    pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
        |source| Error::Io { path: path.to_owned(), source }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn access(has_token: bool) -> &'static str {
    if has_token { "HF_TOKEN has no access to it" } else { "no token was given: set HF_TOKEN" }
}

fn gate(has_token: bool, endpoint: &str, repo: &str) -> String {
    if has_token {
        format!("the token's owner has not been given access yet: ask for it at {endpoint}/{repo}")
    } else {
        format!("ask for access at {endpoint}/{repo}, then set HF_TOKEN to a token of yours")
    }
}

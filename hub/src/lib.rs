//! Hugging Face's Hub: models are read from it and published on it.
//!
//! - [`settings`]: endpoint, token, cache and whether the network may be used, from the environment.
//! - [`repo`]: how a repository, a revision and a file in it are named.
//! - [`client`]: requests, with redirects, retries and what the Hub says of errors; [`api`]: revisions and trees.
//! - [`cache`]: the folder that all of Hugging Face's tools share.
//! - [`transfer`]: a file, fetched in pieces that survive a kill, and checked; [`pieces`]: which of them are there.
//! - [`snapshot`]: the files of a repository that a model needs, at one commit.
//! - [`scratch`]: weights that pass through a bounded part of the disk while they are read.
//!
//! Nothing here trusts what a server says: names stay within their folder, lengths and hashes are checked, and the token goes to no
//! other host than the Hub itself.

pub mod api;
pub mod cache;
pub mod client;
pub mod error;
pub mod pieces;
pub mod progress;
pub mod repo;
pub mod scratch;
pub mod settings;
pub mod snapshot;
pub mod transfer;

pub use client::Client;
pub use error::{Error, Result};
pub use repo::{Named, RepoId};
pub use settings::Settings;

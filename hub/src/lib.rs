//! Hugging Face's Hub: models are read from it and published on it.
//!
//! - [`settings`]: endpoint, token, cache and whether the network may be used, from the environment.
//! - [`repo`]: how a repository, a revision and a file in it are named.
//! - [`client`]: requests, with redirects, retries and what the Hub says of errors; [`api`]: revisions and trees.
//! - [`cache`]: the folder that all of Hugging Face's tools share.
//! - [`transfer`]: a file, fetched in pieces that survive a kill, and checked; [`pieces`]: which of them are there.
//! - [`snapshot`]: the files of a repository that a model needs, at one commit.
//! - [`scratch`]: weights that pass through a bounded part of the disk while they are read.
//! - [`manifest`]: what a published model is, was made from and was measured to be; [`sums`]: the hashes of its files;
//!   [`sign`]: who says so; [`check`]: whether it holds, of a folder or of a repository.
//! - [`publish`]: a model's way into a repository, through a pull request that is merged when all is there.
//! - [`digest`]: the hashes of files on this disk.
//!
//! Nothing here trusts what a server says: names stay within their folder, lengths and hashes are checked, and the token goes to no
//! other host than the Hub itself.

pub mod api;
pub mod cache;
pub mod check;
pub mod client;
pub mod digest;
pub mod error;
pub mod manifest;
pub mod pieces;
pub mod progress;
pub mod publish;
mod redact;
pub mod repo;
pub mod scratch;
pub mod settings;
pub mod sign;
pub mod snapshot;
pub mod sums;
pub mod transfer;

pub use client::Client;
pub use error::{Error, Result};
pub use manifest::Manifest;
pub use repo::{Named, RepoId};
pub use settings::Settings;

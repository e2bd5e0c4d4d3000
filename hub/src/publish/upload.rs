//! Commits through hf-hub, which has Xet: what goes in, and what its errors mean here.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::progress::{ProgressEvent, ProgressHandler, UploadEvent};
use hf_hub::repository::{CommitInfo, CommitOperation};
use hf_hub::{HFClient, HFError, HFRepositorySync, RepoTypeModel};

use crate::client::{Client, Failed, place};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::redact::redact;
use crate::repo::RepoId;
use crate::settings::Token;

/// A repository, as hf-hub writes to it.
pub(super) struct Uploads {
    hub: HFRepositorySync<RepoTypeModel>,
    repo: RepoId,
    endpoint: String,
    token: Token,
}

/// A commit that is to be made.
pub(super) struct Commit<'a> {
    pub files: &'a [(String, PathBuf)],
    pub message: &'a str,
    pub description: &'a str,
    /// The branch; the main one, off which a pull request branches, if there is none yet.
    pub branch: Option<String>,
}

/// Why a commit was not made.
pub(super) enum Trouble {
    /// It may go well another time.
    Passing(Failed),
    /// It will not.
    Lasting(Error),
}

impl Uploads {
    /// By the client's settings: hf-hub would read the environment for what it is not told.
    ///
    /// # Errors
    /// [`Error::Usage`] without a token; [`Error::Answer`] if hf-hub can't be set up.
    pub fn new(client: &Client, repo: &RepoId) -> Result<Uploads> {
        let settings = client.settings();
        let Some(token) = settings.token.clone() else {
            return Err(Error::Usage(format!(
                "publishing needs a token: set HF_TOKEN to one of {}/settings/tokens that may write to {}",
                settings.endpoint, repo.owner
            )));
        };
        let hub = HFClient::builder()
            .endpoint(&settings.endpoint)
            .token(token.reveal())
            .cache_dir(&settings.cache)
            .cache_enabled(false)
            .user_agent(concat!("halfbyte/", env!("CARGO_PKG_VERSION")))
            // An attempt whose answer is lost may have opened a pull request: whether it has is looked up before the next one.
            .retry_max_attempts(0)
            .build_sync()
            .map_err(|error| Error::Answer {
                place: settings.endpoint.clone(),
                problem: redact(&error.to_string(), Some(&token)),
            })?;
        let hub = hub.model(&repo.owner, &repo.name);
        Ok(Uploads { hub, repo: repo.clone(), endpoint: settings.endpoint.clone(), token })
    }

    /// Uploads files and makes a commit of them: on a branch, or as a new pull request.
    pub fn commit(
        &self,
        commit: &Commit<'_>,
        progress: &Arc<dyn Progress>,
    ) -> std::result::Result<CommitInfo, Trouble> {
        let operations = commit.files.iter().map(|(name, path)| CommitOperation::add_file(name, path));
        let watch = Watch { progress: Arc::clone(progress), done: AtomicU64::new(0) };
        self.hub
            .create_commit()
            .operations(operations.collect())
            .commit_message(commit.message)
            .commit_description(commit.description)
            .create_pr(commit.branch.is_none())
            .maybe_revision(commit.branch.clone())
            .progress(watch)
            .send()
            .map_err(|error| self.trouble(error, commit))
    }

    /// What an error of hf-hub's means.
    fn trouble(&self, error: HFError, commit: &Commit<'_>) -> Trouble {
        let clean = |text: &str| redact(text, Some(&self.token));
        let said = clean(&error.to_string());
        let place_of = |url: &str| clean(&place(url));
        let lasting = match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => Error::Token {
                endpoint: self.endpoint.clone(),
                what: format!("uploading to {}", self.repo),
                message: clean(context.server_message.as_deref().unwrap_or_default()),
            },
            HFError::RepoNotFound { .. } => Error::NoRepo {
                repo: self.repo.to_string(),
                endpoint: self.endpoint.clone(),
                has_token: true,
            },
            HFError::Io(source) => {
                let path = commit.files.first().map(|(_, path)| path.clone()).unwrap_or_default();
                Error::Io { path, source }
            }
            HFError::Http { context } if !matches!(context.status.as_u16(), 408 | 500..=599) => {
                Error::Status {
                    place: place_of(&context.url),
                    status: context.status.as_u16(),
                    message: clean(context.server_message.as_deref().unwrap_or_default()),
                }
            }
            HFError::InvalidParameter(_) | HFError::Url(_) => {
                Error::Answer { place: self.repo.to_string(), problem: said }
            }
            HFError::RateLimited { retry_after, .. } => {
                return Trouble::Passing(Failed { problem: said, retry_after });
            }
            _ => return Trouble::Passing(Failed::new(said)),
        };
        Trouble::Lasting(lasting)
    }
}

/// Tells how far an upload is. Bytes that Xet finds at the Hub already count as well.
struct Watch {
    progress: Arc<dyn Progress>,
    done: AtomicU64,
}

impl ProgressHandler for Watch {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Upload(UploadEvent::Progress { bytes_completed, .. }) = event {
            let before = self.done.fetch_max(*bytes_completed, Ordering::Relaxed);
            self.progress.advance(bytes_completed.saturating_sub(before));
        }
    }
}

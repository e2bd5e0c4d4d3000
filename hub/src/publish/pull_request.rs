//! What the Hub's API says of repositories that are written to, and of their pull requests (`/api/models/{repo}/discussions`, as
//! huggingface_hub's `hf_api.py` uses it).

use serde::Deserialize;
use serde_json::json;
use ureq::http::Method;

use crate::client::{About, Ask, Client};
use crate::error::{Error, Result};
use crate::repo::RepoId;

/// Pages of a list that are looked at.
const MOST_PAGES: usize = 100;
const LFS: &str = "application/vnd.git-lfs+json";

/// A pull request.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PullRequest {
    pub num: u64,
    #[serde(default)]
    pub title: String,
    #[serde(default)]
    pub status: String,
    #[serde(default, rename = "isPullRequest")]
    is_pull_request: bool,
    #[serde(default)]
    author: Author,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Author {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Page {
    discussions: Vec<PullRequest>,
    #[serde(default)]
    count: usize,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    private: bool,
}

#[derive(Deserialize)]
struct Me {
    name: String,
}

#[derive(Deserialize)]
struct Batch {
    transfer: Option<String>,
}

fn about(repo: &RepoId) -> About<'_> {
    About { repo, revision: None, file: None }
}

impl Client {
    /// Whose token it is.
    ///
    /// # Errors
    /// [`Error::Token`] if it is nobody's; [`Error::Unreachable`].
    pub(super) fn me(&self, repo: &RepoId) -> Result<String> {
        let url = self.url("/api/whoami-v2");
        let (me, _): (Me, _) = self.json(&Ask::get(&url), &about(repo))?;
        Ok(me.name)
    }

    /// Whether a repository is private; none if there is none that the token may see.
    ///
    /// # Errors
    /// What the Hub says; [`Error::Unreachable`].
    pub(super) fn is_private(&self, repo: &RepoId) -> Result<Option<bool>> {
        let url = self.url(&format!("/api/models/{repo}"));
        match self.json::<Info>(&Ask::get(&url), &about(repo)) {
            Ok((info, _)) => Ok(Some(info.private)),
            Err(Error::NoRepo { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a repository, unless it is there.
    ///
    /// # Errors
    /// [`Error::Token`] if the token may not; [`Error::Unreachable`].
    pub(super) fn create(&self, repo: &RepoId, private: bool) -> Result<()> {
        let url = self.url("/api/repos/create");
        let RepoId { owner, name } = repo;
        let body = json!({ "type": "model", "organization": owner, "name": name, "private": private });
        match self.post(&url, &body, repo) {
            // An earlier attempt made it, whose answer was lost.
            Err(Error::Status { status: 409, .. }) => Ok(()),
            result => result,
        }
    }

    /// The open pull requests that one user has opened, the last one first.
    ///
    /// # Errors
    /// What the Hub says; [`Error::Unreachable`].
    pub(super) fn open_pull_requests(&self, repo: &RepoId, author: &str) -> Result<Vec<PullRequest>> {
        let (mut all, mut seen) = (Vec::new(), 0);
        let author_part = crate::api::segment(author);
        for page in 0..MOST_PAGES {
            let query = format!("type=pull_request&status=open&author={author_part}&p={page}");
            let url = self.url(&format!("/api/models/{repo}/discussions?{query}"));
            let (Page { discussions, count }, _) = self.json(&Ask::get(&url), &about(repo))?;
            seen += discussions.len();
            let is_last = discussions.is_empty() || seen >= count;
            all.extend(discussions);
            if is_last {
                break;
            }
        }
        // Anybody may open a pull request with any title: what is gone on with must be one's own.
        all.retain(|pr: &PullRequest| {
            pr.is_pull_request && pr.author.name == author && matches!(pr.status.as_str(), "open" | "draft")
        });
        all.sort_by_key(|pr| std::cmp::Reverse(pr.num));
        Ok(all)
    }

    /// Merges a pull request into the main branch.
    ///
    /// # Errors
    /// What the Hub says; [`Error::Unreachable`].
    pub(super) fn merge(&self, repo: &RepoId, number: u64, comment: &str) -> Result<()> {
        let one = self.url(&format!("/api/models/{repo}/discussions/{number}"));
        let result = self.post(&format!("{one}/merge"), &json!({ "comment": comment }), repo);
        if matches!(result, Err(Error::Interrupted) | Ok(())) {
            return result;
        }
        // An earlier attempt may have merged it, whose answer was lost.
        let (found, _): (PullRequest, _) = self.json(&Ask::get(&one), &about(repo))?;
        if found.status == "merged" { Ok(()) } else { result }
    }

    /// By which protocol the Hub wants a file of that hash uploaded, if it says so.
    ///
    /// # Errors
    /// What the Hub says; [`Error::Unreachable`].
    pub(super) fn transfer(&self, repo: &RepoId, bytes: u64, sha256: &str) -> Result<Option<String>> {
        let url = self.url(&format!("/{repo}.git/info/lfs/objects/batch"));
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart", "xet"],
            "objects": [{ "oid": sha256, "size": bytes }],
            "hash_algo": "sha256",
        });
        let ask = Ask { method: Method::POST, json: Some(&body), media: Some(LFS), ..Ask::get(&url) };
        let (batch, _): (Batch, _) = self.json(&ask, &about(repo))?;
        Ok(batch.transfer)
    }

    fn post(&self, url: &str, body: &serde_json::Value, repo: &RepoId) -> Result<()> {
        let ask = Ask { method: Method::POST, json: Some(body), ..Ask::get(url) };
        self.ok(self.ask(&ask)?, &about(repo)).map(drop)
    }
}

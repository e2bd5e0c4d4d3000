//! Writing a model to a repository: file by file into a pull request, which is merged when all is there.
//!
//! The main branch never shows half a model. What was uploaded stays with the pull request, so that an interrupted run goes on where
//! it was, and files may be uploaded and dropped one by one while the next ones are still being made.

mod pull_request;
mod upload;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::{Hash, RemoteFile, Tree};
use crate::client::{Attempts, Client, Failed};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repo::{RepoId, is_safe};
use crate::transfer::hash_of;

use upload::{Commit, Trouble, Uploads};

/// Files of more bytes than this are uploaded through Xet or not at all: the Hub takes none that are larger in a commit itself.
pub const MOST_INLINE: u64 = 10_000_000;
const XET: &str = "xet";
const MAIN: &str = "main";
/// Characters of a pull request's title before the job's mark.
const MOST_TITLE: usize = 150;
/// Digits of the job's hash that its pull request is known by.
const JOB_DIGITS: usize = 16;

/// What is wanted of a publication.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Whether a repository that has to be made is private, and one that is there must be.
    pub private: bool,
    /// The recipe's SHA-256: an open pull request with it is gone on with.
    pub job: String,
    /// What is published, in a few words.
    pub title: String,
}

/// A publication under way.
pub struct Publisher {
    client: Arc<Client>,
    uploads: Uploads,
    repo: RepoId,
    wish: Wish,
    /// Who publishes.
    me: String,
    pull_request: Option<u64>,
    /// What the pull request has, or the main branch before there is one.
    tree: Tree,
    /// What main has to have in the end.
    wanted: Vec<RemoteFile>,
    progress: Arc<dyn Progress>,
}

/// A finished publication.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Published {
    /// The commit that has it all: of main, or of the pull request where that was left open.
    pub commit: String,
    /// Where it can be seen.
    pub url: String,
    /// The pull request, if something had to be changed.
    pub pull_request: Option<u64>,
}

/// What a repository's main branch has now; none if there is no repository that one may see.
///
/// # Errors
/// What the Hub says; [`Error::Unreachable`].
pub fn present(client: &Client, repo: &RepoId) -> Result<Option<Tree>> {
    match client.commit(repo, MAIN).and_then(|commit| client.tree(repo, &commit)) {
        Ok(tree) => Ok(Some(tree)),
        Err(Error::NoRepo { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file on this disk is the one that a Hub has.
///
/// # Errors
/// If it has to be read and can't be.
pub fn is_same(client: &Client, remote: &RemoteFile, path: &Path, bytes: u64, sha256: &str) -> Result<bool> {
    Ok(remote.bytes == bytes
        && match &remote.hash {
            Hash::Sha256(hash) => hash == sha256,
            Hash::GitBlob(hash) => hash_of(client, path, &remote.hash)? == *hash,
        })
}

impl Client {
    /// Refuses what can't end in a publication, without asking the Hub.
    ///
    /// # Errors
    /// [`Error::Usage`] without a token, or offline.
    pub fn can_publish(&self) -> Result<()> {
        let settings = self.settings();
        if settings.offline {
            return Err(Error::Usage("HF_HUB_OFFLINE is set: nothing can be published".to_owned()));
        }
        if settings.token.is_none() {
            return Err(Error::Usage(format!(
                "publishing needs a token: set HF_TOKEN to one of {}/settings/tokens that may write",
                settings.endpoint
            )));
        }
        Ok(())
    }
}

impl Publisher {
    /// Makes the repository if there is none, and finds the pull request of an earlier run of the same job.
    ///
    /// # Errors
    /// [`Error::Usage`] without a token, offline, or if the repository is public but should be private; [`Error::Token`] if the token
    /// may not do it; [`Error::Unreachable`].
    pub fn open(
        client: &Arc<Client>,
        repo: &RepoId,
        wish: Wish,
        progress: &Arc<dyn Progress>,
    ) -> Result<Publisher> {
        client.can_publish()?;
        let uploads = Uploads::new(client, repo)?;
        let me = client.me(repo)?;
        match client.is_private(repo)? {
            None => client.create(repo, wish.private)?,
            Some(false) if wish.private => {
                return Err(Error::Usage(format!(
                    "{repo} is there and is public: make it private at {}/{repo}/settings, or leave --private out",
                    client.settings().endpoint
                )));
            }
            Some(_) => {}
        }
        let mut publisher = Publisher {
            client: Arc::clone(client),
            uploads,
            repo: repo.clone(),
            wish,
            me,
            pull_request: None,
            tree: Tree { repo: repo.clone(), commit: String::new(), files: Vec::new() },
            wanted: Vec::new(),
            progress: Arc::clone(progress),
        };
        publisher.look()?;
        if let Some(number) = publisher.pull_request {
            progress.note(&format!("going on with pull request {number} of {repo}"));
        }
        Ok(publisher)
    }

    /// Uploads a large file in a commit of its own, unless it is there. Once this returns the Hub has it, and it may be dropped here.
    /// Whether it had to be uploaded.
    ///
    /// # Errors
    /// [`Error::Answer`] if the Hub does not take it through Xet; [`Error::Token`]; [`Error::Unreachable`] after several attempts;
    /// [`Error::Interrupted`].
    pub fn put(&mut self, path: &Path, name: &str, bytes: u64, sha256: &str) -> Result<bool> {
        let file = Local { name: name.to_owned(), path: path.to_owned(), bytes, sha256: sha256.to_owned() };
        self.put_files(vec![file], 0, &format!("Add {name}"))
    }

    /// Looks whether a file that an earlier run uploaded is still there: it is part of what main has to have in the end.
    ///
    /// # Errors
    /// [`Error::NoFile`] if it is not.
    pub fn expect(&mut self, name: &str, bytes: u64, sha256: &str) -> Result<()> {
        let is_same = |file: &&RemoteFile| file.bytes == bytes && file.hash.hex() == sha256;
        let Some(file) = self.tree.find(name).filter(is_same).cloned() else {
            return Err(Error::NoFile { repo: self.repo.to_string(), file: name.to_owned() });
        };
        self.wanted.retain(|wanted| wanted.path != name);
        self.wanted.push(file);
        Ok(())
    }

    /// Uploads the other files in one commit, apart from those that are there. Nothing is deleted. Whether there was anything to
    /// upload.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_all(&mut self, files: &[(String, PathBuf)]) -> Result<bool> {
        let local = files.iter().map(|(name, path)| {
            let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
            let sha256 = hash_of(&self.client, path, &Hash::Sha256(String::new()))?;
            Ok(Local { name: name.clone(), path: path.clone(), bytes, sha256 })
        });
        let local = local.collect::<Result<Vec<_>>>()?;
        let message = match &local[..] {
            [only] => format!("Add {}", only.name),
            _ => format!("Add {} files", local.len()),
        };
        self.put_files(local, MOST_INLINE, &message)
    }

    /// Merges the pull request and looks whether main has it all then; or leaves it open.
    ///
    /// # Errors
    /// [`Error::Status`] if it can't be merged; as [`put`](Self::put).
    pub fn finish(self, merge: bool) -> Result<Published> {
        let Publisher { client, repo, .. } = &self;
        if client.is_cancelled() {
            return Err(Error::Interrupted);
        }
        let url = client.url(&format!("/{repo}"));
        let Some(number) = self.pull_request else {
            return Ok(Published { commit: client.commit(repo, MAIN)?, url, pull_request: None });
        };
        if !merge {
            let commit = client.commit(repo, &branch(number))?;
            let url = format!("{url}/discussions/{number}");
            return Ok(Published { commit, url, pull_request: Some(number) });
        }
        let comment =
            format!("Published by halfbyte {}, recipe {}", env!("CARGO_PKG_VERSION"), self.wish.job);
        client.merge(repo, number, &comment).map_err(|error| match error {
            Error::Status { place, status, message } => Error::Status {
                place,
                status,
                message: format!("{message}. All files are in {url}/discussions/{number}: merge it there, or close it and run this again"),
            },
            other => other,
        })?;
        let mut attempts = Attempts::default();
        loop {
            let commit = client.commit(repo, MAIN)?;
            let tree = client.tree(repo, &commit)?;
            match self.wanted.iter().find(|wanted| tree.find(&wanted.path) != Some(wanted)) {
                None => return Ok(Published { commit, url, pull_request: Some(number) }),
                Some(missing) => {
                    let problem = format!("main does not have {} as it was uploaded", missing.path);
                    client.wait(&mut attempts, &url, Failed::new(problem))?;
                }
            }
        }
    }

    /// Uploads what is not there in one commit. Files of more than `inline` bytes must go through Xet.
    fn put_files(&mut self, files: Vec<Local>, inline: u64, message: &str) -> Result<bool> {
        let mut missing = Vec::new();
        for file in &files {
            if self.client.is_cancelled() {
                return Err(Error::Interrupted);
            }
            file.check(&self.repo)?;
            if !self.has(file)? {
                if file.bytes > inline {
                    self.check_transfer(file)?;
                }
                missing.push((file.name.clone(), file.path.clone()));
            }
        }
        if !missing.is_empty() {
            let is_missing = |file: &&Local| missing.iter().any(|(name, _)| *name == file.name);
            let bytes = files.iter().filter(is_missing).map(|file| file.bytes).sum();
            let what = if let [(name, _)] = &missing[..] {
                name.clone()
            } else {
                format!("{} files", missing.len())
            };
            self.progress.begin(&what, bytes, 0);
            let result = self.commit(&files, &missing, message);
            self.progress.end();
            result?;
        }
        // What is uploaded now may be replaced by a later file of the same name.
        self.wanted.retain(|wanted| !files.iter().any(|file| file.name == wanted.path));
        self.wanted.extend(files.iter().filter_map(|file| self.tree.find(&file.name)).cloned());
        Ok(!missing.is_empty())
    }

    /// Makes a commit, with as many attempts as it takes, until the Hub lists all files as they are.
    fn commit(&mut self, files: &[Local], missing: &[(String, PathBuf)], message: &str) -> Result<()> {
        let url = self.client.url(&format!("/{}", self.repo));
        let mut attempts = Attempts::default();
        let mut is_made = false;
        loop {
            let failed = if is_made { None } else { self.commit_once(missing, message)? };
            is_made |= failed.is_none();
            // A commit whose answer was lost is one all the same.
            self.look()?;
            let problem = match self.lacking(files)? {
                Some(name) => format!("the Hub does not list {name} as it was uploaded"),
                None if self.pull_request.is_some() => return Ok(()),
                None => "the Hub does not list the pull request that it opened".to_owned(),
            };
            self.client.wait(&mut attempts, &url, failed.unwrap_or_else(|| Failed::new(problem)))?;
        }
    }

    /// The first file that is not there as it is here.
    fn lacking<'f>(&self, files: &'f [Local]) -> Result<Option<&'f str>> {
        for file in files {
            if !self.has(file)? {
                return Ok(Some(&file.name));
            }
        }
        Ok(None)
    }

    /// One attempt; what stopped it, if it may go well another time.
    fn commit_once(&mut self, files: &[(String, PathBuf)], message: &str) -> Result<Option<Failed>> {
        let title: String = self.wish.title.chars().take(MOST_TITLE).collect();
        let title = format!("{title} {}", self.mark());
        let description = format!("Recipe {}, by halfbyte {}", self.wish.job, env!("CARGO_PKG_VERSION"));
        let commit = Commit {
            files,
            // Of the first commit, this is the pull request's title.
            message: if self.pull_request.is_some() { message } else { &title },
            description: &description,
            branch: self.pull_request.map(branch),
        };
        match self.uploads.commit(&commit, &self.progress) {
            Ok(info) => {
                let of_url = |url: &String| url.rsplit('/').next()?.parse().ok();
                let opened = info.pr_num.or_else(|| info.pr_url.as_ref().and_then(of_url));
                self.pull_request = self.pull_request.or(opened);
                Ok(None)
            }
            Err(Trouble::Passing(failed)) => {
                self.progress.note(&format!("{}: {}; trying again", self.repo, failed.problem));
                Ok(Some(failed))
            }
            Err(Trouble::Lasting(error)) => Err(error),
        }
    }

    /// Finds the pull request, if it is not known, and what it has by now.
    fn look(&mut self) -> Result<()> {
        if self.pull_request.is_none() {
            let mark = self.mark();
            let open = self.client.open_pull_requests(&self.repo, &self.me)?;
            self.pull_request = open.iter().find(|pr| pr.title.ends_with(&mark)).map(|pr| pr.num);
        }
        let branch = self.pull_request.map_or_else(|| MAIN.to_owned(), branch);
        self.tree = self.client.tree(&self.repo, &branch)?;
        Ok(())
    }

    /// What the pull request's title ends with.
    fn mark(&self) -> String {
        let digits: String = self.wish.job.chars().take(JOB_DIGITS).collect();
        format!("(halfbyte job {digits})")
    }

    fn has(&self, file: &Local) -> Result<bool> {
        match self.tree.find(&file.name) {
            Some(remote) => is_same(&self.client, remote, &file.path, file.bytes, &file.sha256),
            None => Ok(false),
        }
    }

    /// Refuses a file that hf-hub would put into the commit itself, whole and in base64: it does so wherever the Hub does not choose
    /// Xet.
    fn check_transfer(&self, file: &Local) -> Result<()> {
        let chosen = self.client.transfer(&self.repo, file.bytes, &file.sha256)?;
        if chosen.as_deref() == Some(XET) {
            return Ok(());
        }
        let chosen = chosen.unwrap_or_else(|| "basic".to_owned());
        Err(Error::Answer {
            place: self.repo.to_string(),
            problem: format!(
                "the Hub wants {} ({} bytes) to be uploaded by its protocol {chosen:?}, but halfbyte uploads large files through Xet \
                 alone: switch Xet on for the repository or its owner, or upload the folder with git",
                file.name, file.bytes
            ),
        })
    }
}

/// A pull request's branch.
fn branch(number: u64) -> String {
    format!("refs/pr/{number}")
}

/// A file that is to be published.
struct Local {
    name: String,
    path: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Local {
    /// Whether it is what it is said to be, as far as that is to be had without reading it.
    fn check(&self, repo: &RepoId) -> Result<()> {
        if !is_safe(&self.name) {
            let problem = format!("{:?} is no name that a file of a repository may have", self.name);
            return Err(Error::Listing { file: repo.to_string(), problem });
        }
        let bytes = fs::metadata(&self.path).map_err(Error::io(&self.path))?.len();
        if bytes != self.bytes {
            let problem =
                format!("it has {bytes} bytes, not {}: it changed while it was published", self.bytes);
            return Err(Error::Listing { file: self.path.display().to_string(), problem });
        }
        Ok(())
    }
}

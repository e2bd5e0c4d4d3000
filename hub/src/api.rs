//! What a repository holds: its commit and its tree (the Hub's API, `/api/models/{repo}/revision` and `/tree`).

use serde::Deserialize;

use crate::client::{About, Answer, Ask, Client, place};
use crate::error::{Error, Result};
use crate::repo::{RepoId, is_safe};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Pages of a tree's list that are read: a million files.
const MOST_PAGES: usize = 1000;
/// The largest file that is believed in: the Hub takes none of more than 500 GB.
const MOST_BYTES: u64 = 1 << 42;

/// What stays as it is in a path's segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same for whole paths.
const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// A path's segment, such as a revision with slashes in it.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A file of a repository at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What its bytes must hash to.
    pub hash: Hash,
}

/// What the Hub says of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 of the bytes: a file in LFS or Xet.
    Sha256(String),
    /// SHA-1 of `blob`, a blank, the length, a zero byte and the bytes: a file in git.
    GitBlob(String),
}

impl Hash {
    /// The hash in hexadecimal: the file's name in the cache.
    pub fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::GitBlob(hex) => hex,
        }
    }

    /// What it is called.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Hash::Sha256(_) => "SHA-256",
            Hash::GitBlob(_) => "SHA-1 as git counts it",
        }
    }
}

/// A repository at a commit.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The repository.
    pub repo: RepoId,
    /// 40 hexadecimal digits.
    pub commit: String,
    /// Its files, folders within folders too.
    pub files: Vec<RemoteFile>,
}

impl Tree {
    /// The file of that path.
    pub fn find(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Whether a text is a commit's full name.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Client {
    /// The commit that a branch, a tag or the beginning of a commit's name stands for now.
    ///
    /// # Errors
    /// What the Hub says of the repository or the revision; [`Error::Unreachable`].
    pub fn commit(&self, repo: &RepoId, revision: &str) -> Result<String> {
        let url = self.url(&format!("/api/models/{repo}/revision/{}", segment(revision)));
        let about = About { repo, revision: Some(revision), file: None };
        let (info, _): (Info, _) = self.json(&Ask::get(&url), &about)?;
        if !is_commit(&info.sha) {
            let problem = format!("{:?} is no commit", info.sha);
            return Err(Error::Answer { place: url, problem });
        }
        Ok(info.sha.to_ascii_lowercase())
    }

    /// All files at a commit.
    ///
    /// # Errors
    /// What the Hub says of the repository or the commit; [`Error::UnsafeName`]; [`Error::Unreachable`].
    pub fn tree(&self, repo: &RepoId, commit: &str) -> Result<Tree> {
        let mut files = Vec::new();
        let about = About { repo, revision: Some(commit), file: None };
        let mut next = Some(
            self.url(&format!("/api/models/{repo}/tree/{}?recursive=true&expand=false", segment(commit))),
        );
        let mut pages = 0;
        while let Some(url) = next {
            pages += 1;
            if pages > MOST_PAGES {
                let problem = format!("a list of more than {MOST_PAGES} pages");
                return Err(Error::Answer { place: place(&url), problem });
            }
            if self.is_cancelled() {
                return Err(Error::Interrupted);
            }
            let (entries, more): (Vec<Entry>, _) = self.json(&Ask::get(&url), &about)?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                files.push(remote_file(repo, entry)?);
            }
            // A page that leads elsewhere, or to itself, is no next page.
            next = more.filter(|more| *more != url && more.starts_with(&self.url("/")));
        }
        Ok(Tree { repo: repo.clone(), commit: commit.to_owned(), files })
    }

    /// The address of a file at a commit.
    pub(crate) fn resolve(&self, repo: &RepoId, commit: &str, path: &str) -> String {
        self.url(&format!("/{repo}/resolve/{}/{}", segment(commit), utf8_percent_encode(path, PATH)))
    }

    /// Where the bytes of a file are to be had now, once the Hub has said that it is still the same.
    ///
    /// # Errors
    /// [`Error::Changed`]; what the Hub says of the repository or the file; [`Error::Unreachable`].
    pub(crate) fn locate(&self, repo: &RepoId, commit: &str, file: &RemoteFile) -> Result<String> {
        let url = self.resolve(repo, commit, &file.path);
        let ask = Ask { method: ureq::http::Method::HEAD, stay: true, ..Ask::get(&url) };
        let about = About { repo, revision: Some(commit), file: Some(&file.path) };
        let answer = self.ok(self.ask(&ask)?, &about)?;
        let changed = |before: String, now: String| Error::Changed {
            repo: repo.to_string(),
            file: file.path.clone(),
            before,
            now,
        };
        if let Some(now) = etag(&answer).filter(|now| *now != file.hash.hex()) {
            return Err(changed(format!("the hash {}", file.hash.hex()), format!("the hash {now}")));
        }
        if let Some(now) = answer.number("x-linked-size").filter(|now| *now != file.bytes) {
            return Err(changed(format!("{} bytes", file.bytes), format!("{now} bytes")));
        }
        // A redirect that `ask` did not follow leads to where the bytes are.
        let redirect = matches!(answer.status, 301..=399).then(|| answer.header("location")).flatten();
        Ok(redirect.map_or(answer.url.clone(), str::to_owned))
    }
}

/// The hash that an answer states of a file: of its bytes if they lie in LFS, else git's.
fn etag(answer: &Answer) -> Option<String> {
    let tag = answer.header("x-linked-etag").or_else(|| answer.header("etag"))?;
    let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    let is_hash = matches!(tag.len(), 40 | 64) && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then_some(tag)
}

fn remote_file(repo: &RepoId, entry: Entry) -> Result<RemoteFile> {
    if !is_safe(&entry.path) {
        return Err(Error::UnsafeName { repo: repo.to_string(), name: entry.path });
    }
    let (bytes, hash) = match entry.lfs {
        Some(lfs) => (lfs.size, Hash::Sha256(lfs.oid.trim_start_matches("sha256:").to_ascii_lowercase())),
        None => (entry.size, Hash::GitBlob(entry.oid.to_ascii_lowercase())),
    };
    if bytes > MOST_BYTES {
        let place = format!("{repo}, {}", entry.path);
        return Err(Error::Answer { place, problem: format!("a file of {bytes} bytes") });
    }
    let digits = if matches!(hash, Hash::Sha256(_)) { 64 } else { 40 };
    if hash.hex().len() != digits || !hash.hex().bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let place = format!("{repo}, {}", entry.path);
        return Err(Error::Answer { place, problem: format!("{:?} is no hash", hash.hex()) });
    }
    Ok(RemoteFile { path: entry.path, bytes, hash })
}

//! Repositories: branches that point at commits, commits that have trees, pull requests.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::content::{Content, Memory, OnDisk, hex};

/// Says whether a file of this path and length is kept as a large file.
pub type LfsRule = Arc<dyn Fn(&str, u64) -> bool + Send + Sync>;

/// A repository to be put into the mock.
#[derive(Clone)]
pub struct RepoSpec {
    pub(crate) id: String,
    pub(crate) private: bool,
    pub(crate) gated: bool,
    pub(crate) lfs: LfsRule,
    pub(crate) files: BTreeMap<String, Arc<dyn Content>>,
}

impl RepoSpec {
    /// A public repository without files.
    pub fn new(id: &str) -> RepoSpec {
        RepoSpec {
            id: id.to_owned(),
            private: false,
            gated: false,
            lfs: Arc::new(is_large),
            files: BTreeMap::new(),
        }
    }

    /// The same under another name.
    pub fn named(mut self, id: &str) -> RepoSpec {
        self.id = id.to_owned();
        self
    }

    /// Only for tokens that may access it.
    pub fn private(mut self) -> RepoSpec {
        self.private = true;
        self
    }

    /// To be seen by everybody, but its files only for tokens that may access it.
    pub fn gated(mut self) -> RepoSpec {
        self.gated = true;
        self
    }

    /// Which files are large ones, in the place of the usual rule.
    pub fn lfs(mut self, rule: impl Fn(&str, u64) -> bool + Send + Sync + 'static) -> RepoSpec {
        self.lfs = Arc::new(rule);
        self
    }

    /// A file of these bytes. Any name will do, hostile ones too: `../../evil`, `/etc/evil`, `.git/config`.
    pub fn file(self, path: &str, bytes: impl Into<Vec<u8>>) -> RepoSpec {
        self.content(path, Arc::new(Memory::new(bytes)))
    }

    /// A file of this content.
    pub fn content(mut self, path: &str, content: Arc<dyn Content>) -> RepoSpec {
        self.files.insert(path.to_owned(), content);
        self
    }

    /// All files of a folder and the folders in it.
    ///
    /// # Errors
    /// If something in it can't be read.
    pub fn folder(mut self, folder: &Path) -> io::Result<RepoSpec> {
        let mut open = vec![(folder.to_owned(), String::new())];
        while let Some((folder, prefix)) = open.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    open.push((entry.path(), format!("{path}/")));
                } else {
                    self.files.insert(path, Arc::new(OnDisk::open(&entry.path())?));
                }
            }
        }
        Ok(self)
    }
}

/// The usual rule: weights by their names, and whatever is longer than 1 MiB.
pub(crate) fn is_large(path: &str, len: u64) -> bool {
    let weights = [".safetensors", ".gguf", ".bin", ".model"].iter().any(|end| path.ends_with(end));
    (weights && len >= 10) || len > 1 << 20
}

/// A file in a tree.
pub(crate) struct Entry {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) lfs: bool,
    xet_hash: OnceLock<String>,
    oid: OnceLock<String>,
}

impl Entry {
    pub(crate) fn new(content: Arc<dyn Content>, lfs: bool) -> Entry {
        Entry { content, lfs, xet_hash: OnceLock::new(), oid: OnceLock::new() }
    }

    pub(crate) fn with_xet_hash(self, hash: String) -> Entry {
        let _ = self.xet_hash.set(hash);
        self
    }

    /// Git's name of the blob: for large files of their pointer.
    pub(crate) fn oid(&self) -> String {
        let oid = || {
            let pointer = self.pointer();
            let mut hasher = Sha1::new();
            let len = if self.lfs { pointer.len() as u64 } else { self.content.len() };
            hasher.update(format!("blob {len}\0"));
            if self.lfs {
                hasher.update(pointer);
            } else {
                let mut bytes = vec![0; len as usize];
                self.content.read_at(0, &mut bytes).expect("a file of the mock can be read");
                hasher.update(bytes);
            }
            hex(&hasher.finalize())
        };
        self.oid.get_or_init(oid).clone()
    }

    /// What git has in the place of a large file.
    pub(crate) fn pointer(&self) -> String {
        if !self.lfs {
            return String::new();
        }
        let (sha256, len) = (self.content.sha256(), self.content.len());
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len}\n")
    }

    /// The hash Xet has for it: the true one for uploads, something of its shape for other large files.
    pub(crate) fn xet_hash(&self) -> String {
        self.xet_hash.get_or_init(|| hex(&Sha256::digest(format!("xet {}", self.content.identity())))).clone()
    }
}

pub(crate) type Tree = BTreeMap<String, Arc<Entry>>;

/// A commit.
#[derive(Clone)]
pub(crate) struct Commit {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) title: String,
    pub(crate) message: String,
    pub(crate) tree: Arc<Tree>,
}

/// A pull request.
#[derive(Clone)]
pub(crate) struct Discussion {
    pub(crate) num: u64,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) author: String,
    pub(crate) status: &'static str,
    /// What `main` was when it was opened.
    pub(crate) base: String,
}

/// A repository.
pub(crate) struct Repo {
    pub(crate) id: String,
    pub(crate) private: bool,
    pub(crate) gated: bool,
    pub(crate) lfs: LfsRule,
    pub(crate) branches: BTreeMap<String, String>,
    pub(crate) commits: HashMap<String, Commit>,
    pub(crate) discussions: Vec<Discussion>,
}

impl Repo {
    pub(crate) fn new(spec: RepoSpec) -> Repo {
        let mut repo = Repo {
            id: spec.id,
            private: spec.private,
            gated: spec.gated,
            lfs: spec.lfs,
            branches: BTreeMap::new(),
            commits: HashMap::new(),
            discussions: Vec::new(),
        };
        let rule = &repo.lfs;
        let tree = spec
            .files
            .into_iter()
            .map(|(path, content)| {
                let lfs = rule(&path, content.len());
                (path, Arc::new(Entry::new(content, lfs)))
            })
            .collect();
        repo.commit("main", "initial commit", "", tree);
        repo
    }

    /// A new head of a branch, which may be a new one. Its id.
    pub(crate) fn commit(&mut self, branch: &str, title: &str, message: &str, tree: Tree) -> String {
        let parent = self.branches.get(branch).cloned();
        let mut hasher = Sha1::new();
        hasher.update(format!("commit {} {}\n", self.id, parent.as_deref().unwrap_or("none")));
        for (path, entry) in &tree {
            hasher.update(format!("{path}\0{} {}\n", entry.lfs, entry.content.identity()));
        }
        let id = hex(&hasher.finalize());
        let (title, message) = (title.to_owned(), message.to_owned());
        let commit = Commit { id: id.clone(), parent, title, message, tree: Arc::new(tree) };
        self.commits.insert(id.clone(), commit);
        self.branches.insert(branch.to_owned(), id.clone());
        id
    }

    /// The commit a revision names: a branch, `refs/heads/…`, `refs/pr/N`, or a commit's id.
    pub(crate) fn revision(&self, revision: &str) -> Option<&Commit> {
        let branch = revision.strip_prefix("refs/heads/").unwrap_or(revision);
        let id = self.branches.get(branch).map_or(revision, String::as_str);
        self.commits.get(id)
    }

    /// The head of `main`.
    pub(crate) fn main(&self) -> &Commit {
        self.revision("main").expect("every repository has a main branch")
    }

    /// A new commit on `main` that has other bytes in one file.
    pub(crate) fn replace(&mut self, path: &str, content: Arc<dyn Content>) -> String {
        let mut tree = (*self.main().tree).clone();
        let lfs = (self.lfs)(path, content.len());
        tree.insert(path.to_owned(), Arc::new(Entry::new(content, lfs)));
        self.commit("main", &format!("Update {path}"), "", tree)
    }

    /// A branch's commits, the newest first.
    pub(crate) fn history(&self, revision: &str) -> Vec<&Commit> {
        let mut found: Vec<&Commit> = Vec::new();
        let mut next = self.revision(revision);
        while let Some(commit) = next {
            found.push(commit);
            next = commit.parent.as_ref().and_then(|parent| self.commits.get(parent));
        }
        found
    }

    /// Opens a pull request from a commit: its number.
    pub(crate) fn open(&mut self, base: &str, title: &str, description: &str, author: &str) -> u64 {
        let num = self.discussions.len() as u64 + 1;
        self.branches.insert(pr_branch(num), base.to_owned());
        self.discussions.push(Discussion {
            num,
            title: title.to_owned(),
            description: description.to_owned(),
            author: author.to_owned(),
            status: "open",
            base: base.to_owned(),
        });
        num
    }

    /// Merges a pull request into `main`.
    ///
    /// # Errors
    /// With the paths that were changed on both sides.
    pub(crate) fn merge(&mut self, num: u64, message: &str) -> Result<String, Vec<String>> {
        let Some(discussion) = self.discussions.iter().find(|discussion| discussion.num == num).cloned()
        else {
            return Err(Vec::new());
        };
        let base = self.commits[&discussion.base].tree.clone();
        let Some(head) = self.revision(&pr_branch(num)).cloned() else { return Err(Vec::new()) };
        let main = self.main().clone();
        let merged = if main.id == discussion.base {
            self.branches.insert("main".to_owned(), head.id.clone());
            head.id
        } else {
            let ours = changes(&base, &main.tree);
            let theirs = changes(&base, &head.tree);
            let both: Vec<String> =
                theirs.keys().filter(|path| ours.contains_key(*path)).map(|path| (*path).clone()).collect();
            if !both.is_empty() {
                return Err(both);
            }
            let mut tree = (*main.tree).clone();
            for (path, entry) in theirs {
                match entry {
                    Some(entry) => tree.insert(path.clone(), entry.clone()),
                    None => tree.remove(path),
                };
            }
            self.commit("main", &format!("{} (#{num})", discussion.title), message, tree)
        };
        if let Some(discussion) = self.discussions.iter_mut().find(|discussion| discussion.num == num) {
            discussion.status = "merged";
        }
        Ok(merged)
    }
}

/// What differs between two trees: the new entry, or none if it is gone.
fn changes<'a>(old: &'a Tree, new: &'a Tree) -> BTreeMap<&'a String, Option<&'a Arc<Entry>>> {
    let same = |one: &Entry, other: &Entry| one.content.identity() == other.content.identity();
    let changed = new
        .iter()
        .filter(|(path, entry)| !old.get(*path).is_some_and(|was| same(was, entry)))
        .map(|(path, entry)| (path, Some(entry)));
    let gone = old.keys().filter(|path| !new.contains_key(*path)).map(|path| (path, None));
    changed.chain(gone).collect()
}

/// The branch of a pull request.
pub(crate) fn pr_branch(num: u64) -> String {
    format!("refs/pr/{num}")
}

//! The files of a repository that a model needs, at one commit: which they are, and how they come into the cache.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use formats::checkpoint::SIDE_FILES;
use formats::safetensors::{INDEX_NAME, shards_of};
use formats::source::{Origin, Source};

use crate::api::{Hash, RemoteFile, Tree};
use crate::cache::Cache;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repo::{Named, RepoId};
use crate::transfer::{self, Transfer, Unbounded};

/// What else of a repository is fetched, where it is there: who may do what with it, and what it was made of.
const OTHER: [&str; 11] = [
    "config.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "halfbyte.json",
    "halfbyte.json.minisig",
    "recipe.toml",
    "SHA256SUMS",
    "verification.json",
    "verification.txt",
    "report.html",
];

/// The largest small file that is fetched without being asked for.
const MOST_SMALL: u64 = 1 << 30;

/// Files that are fetched at the same time.
const AT_ONCE: usize = 2;

/// A repository at a commit, as far as a model needs it.
#[derive(Debug)]
pub struct Snapshot {
    /// The repository.
    pub repo: RepoId,
    /// The commit.
    pub commit: String,
    /// Configuration, tokenizer, card, index.
    pub small: Vec<RemoteFile>,
    /// The files with weights.
    pub weights: Vec<RemoteFile>,
    /// What names the model within the repository: nothing for all of it, a folder, or a GGUF file.
    pub model: String,
    pub(crate) cache: Cache,
}

impl Snapshot {
    /// Finds out what a repository holds now, and fetches the small files. The commit stays what it is, whatever happens on the Hub.
    ///
    /// # Errors
    /// [`Error::NoModel`] if it holds no model that can be read, or several; [`Error::Offline`]; what the Hub says.
    pub fn find(client: &Client, named: &Named, progress: &dyn Progress) -> Result<Snapshot> {
        let cache = Cache::of(&client.settings().cache, &named.repo);
        if client.settings().offline {
            return Snapshot::cached(client, named, cache);
        }
        let commit = client.commit(&named.repo, named.revision())?;
        let tree = client.tree(&named.repo, &commit)?;
        cache.make()?;
        let mut snapshot = Snapshot {
            repo: named.repo.clone(),
            commit,
            small: Vec::new(),
            weights: Vec::new(),
            model: named.file.clone().unwrap_or_default(),
            cache,
        };
        snapshot.choose(client, &tree, progress)?;
        snapshot.fetch(client, &snapshot.small, progress)?;
        // Only now: whoever trusts the reference finds what it needs.
        snapshot.cache.set_commit(named.revision(), &snapshot.commit)?;
        Ok(snapshot)
    }

    /// What is in the cache, without a look at the network.
    fn cached(client: &Client, named: &Named, cache: Cache) -> Result<Snapshot> {
        let offline = || Error::Offline { what: named.to_string(), cache: client.settings().cache.clone() };
        let commit = cache.commit(named.revision()).ok_or_else(offline)?;
        let folder = cache.snapshot(&commit);
        let mut files = Vec::new();
        list(&folder, "", &mut files)?;
        if files.is_empty() {
            return Err(offline());
        }
        let model = named.file.clone().unwrap_or_default();
        let mut snapshot = Snapshot {
            repo: named.repo.clone(),
            commit,
            small: Vec::new(),
            weights: Vec::new(),
            model,
            cache,
        };
        let tree = Tree { repo: named.repo.clone(), commit: snapshot.commit.clone(), files };
        let index = snapshot.index(&tree).map(|index| snapshot.folder().join(&index.path));
        // What the cache lacks, the repository may have.
        let has_weights =
            |file: &RemoteFile| [".safetensors", ".gguf"].iter().any(|end| file.path.ends_with(end));
        snapshot.pick(&tree, index.as_deref()).map_err(|error| match error {
            Error::NoFile { .. } => offline(),
            Error::NoModel { .. } if !tree.files.iter().any(has_weights) => offline(),
            other => other,
        })?;
        Ok(snapshot)
    }

    /// The folder that the snapshot's files have their names in.
    pub fn folder(&self) -> PathBuf {
        self.cache.snapshot(&self.commit)
    }

    /// Where the model is, once it is fetched: a folder or a GGUF file.
    pub fn path(&self) -> PathBuf {
        if self.model.is_empty() { self.folder() } else { self.folder().join(&self.model) }
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        Origin { repo: self.repo.to_string(), commit: self.commit.clone() }
    }

    /// Bytes of the files with weights that are still to be fetched.
    pub fn missing(&self) -> u64 {
        let left = |file: &RemoteFile| file.bytes - transfer::there(&self.cache.blob(&file.hash), file.bytes);
        self.away(&self.weights).into_iter().map(left).sum()
    }

    /// Those of some files that are not in the cache, of files with the same bytes one.
    fn away<'f>(&self, files: &'f [RemoteFile]) -> Vec<&'f RemoteFile> {
        let mut seen = HashSet::new();
        let away = files.iter().filter(|file| !self.cache.blob(&file.hash).exists());
        away.filter(|file| seen.insert(file.hash.hex().to_owned())).collect()
    }

    /// Fetches all files with weights into the cache, and gives the model on this disk.
    ///
    /// # Errors
    /// What [`Transfer::run`] says; [`Error::Busy`] if another process fetches the same.
    pub fn fetched(&self, client: &Client, progress: &dyn Progress) -> Result<Source> {
        self.fetch(client, &self.weights, progress)?;
        Ok(Source::from(self.path()).of(self.origin()))
    }

    /// Chooses the files, for which the index of the shards is read.
    fn choose(&mut self, client: &Client, tree: &Tree, progress: &dyn Progress) -> Result<()> {
        let index = match self.index(tree) {
            Some(index) => {
                let index = index.clone();
                self.fetch(client, std::slice::from_ref(&index), progress)?;
                Some(self.folder().join(&index.path))
            }
            None => None,
        };
        self.pick(tree, index.as_deref())
    }

    /// The index of the shards, if the model has one.
    fn index<'t>(&self, tree: &'t Tree) -> Option<&'t RemoteFile> {
        tree.find(&self.within(INDEX_NAME))
    }

    /// A file's path in the repository.
    fn within(&self, name: &str) -> String {
        if self.model.is_empty() { name.to_owned() } else { format!("{}/{name}", self.model) }
    }

    fn pick(&mut self, tree: &Tree, index: Option<&Path>) -> Result<()> {
        let no_model =
            |reason: String| Error::NoModel { repo: format!("{}@{}", tree.repo, tree.commit), reason };
        let missing = |file: String| Error::NoFile { repo: tree.repo.to_string(), file };
        if let Some(file) = tree.find(&self.model) {
            self.weights = splits(tree, file);
        } else {
            let start = self.within("");
            let here: Vec<&RemoteFile> = tree
                .files
                .iter()
                .filter(|file| file.path.strip_prefix(&start).is_some_and(|name| !name.contains('/')))
                .collect();
            if here.is_empty() && !self.model.is_empty() {
                return Err(missing(self.model.clone()));
            }
            let ending =
                |ending: &str| here.iter().filter(|file| file.path.ends_with(ending)).copied().collect();
            let tensors: Vec<&RemoteFile> = ending(".safetensors");
            if let Some(path) = index {
                let names = shards_of(path).map_err(|error| no_model(error.to_string()))?;
                let find = |name: &String| {
                    tree.find(&self.within(name)).cloned().ok_or_else(|| missing(self.within(name)))
                };
                self.weights = names.iter().map(find).collect::<Result<_>>()?;
            } else if let Some(file) = tree.find(&self.within("model.safetensors")) {
                self.weights = vec![file.clone()];
            } else if let [only] = tensors[..] {
                self.weights = vec![only.clone()];
            } else if tensors.is_empty() {
                self.pick_gguf(tree, &start).map_err(no_model)?;
            } else {
                return Err(no_model(format!(
                    "it has {} safetensors files but no {INDEX_NAME} that says which belong together",
                    tensors.len()
                )));
            }
        }
        let folder =
            Path::new(&self.weights[0].path).parent().map_or("", |folder| folder.to_str().unwrap_or(""));
        let names: BTreeSet<String> = SIDE_FILES
            .iter()
            .chain(&OTHER)
            .chain([&INDEX_NAME])
            // What a file in a folder needs may lie beside it or at the top.
            .flat_map(|name| {
                [(*name).to_owned(), Path::new(folder).join(name).to_string_lossy().into_owned()]
            })
            .collect();
        self.small = tree
            .files
            .iter()
            .filter(|file| names.contains(&file.path) && file.bytes <= MOST_SMALL)
            .cloned()
            .collect();
        Ok(())
    }

    /// The only GGUF model below a folder, in a file or in splits; its name becomes the model's.
    fn pick_gguf(&mut self, tree: &Tree, start: &str) -> std::result::Result<(), String> {
        let mut models: BTreeMap<String, &RemoteFile> = BTreeMap::new();
        let gguf = |file: &&RemoteFile| file.path.starts_with(start) && file.path.ends_with(".gguf");
        for file in tree.files.iter().filter(gguf) {
            let name = split_of(&file.path).map_or(file.path.as_str(), |(stem, _, _)| stem);
            models.entry(name.to_owned()).or_insert(file);
        }
        let names: Vec<&str> = models.values().map(|file| file.path.as_str()).collect();
        match names[..] {
            [_] => {}
            [] => {
                let shown: Vec<&str> = tree.files.iter().take(8).map(|file| file.path.as_str()).collect();
                return Err(format!("it has neither safetensors nor GGUF files, but {}", shown.join(", ")));
            }
            _ => {
                return Err(format!(
                    "it has {} GGUF models: name one, such as hf:{}/{}. There are {}",
                    names.len(),
                    tree.repo,
                    names[0],
                    names.join(", ")
                ));
            }
        }
        if let Some(file) = models.into_values().next() {
            self.weights = splits(tree, file);
            self.model = self.weights[0].path.clone();
        }
        Ok(())
    }

    /// Fetches files into the cache, unless they are there.
    fn fetch(&self, client: &Client, files: &[RemoteFile], progress: &dyn Progress) -> Result<()> {
        let left = self.away(files);
        if !left.is_empty() {
            let sum = |files: &[&RemoteFile]| files.iter().map(|file| file.bytes).sum::<u64>();
            let there: u64 =
                left.iter().map(|file| transfer::there(&self.cache.blob(&file.hash), file.bytes)).sum();
            progress.begin(&self.repo.to_string(), sum(&left), there);
            let result = self.fetch_all(client, &left, progress);
            progress.end();
            result?;
        }
        for file in files {
            self.cache.link(&self.commit, &file.path, &file.hash)?;
        }
        Ok(())
    }

    /// Fetches some files at a time.
    fn fetch_all(&self, client: &Client, files: &[&RemoteFile], progress: &dyn Progress) -> Result<()> {
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.fetch_one(client, file, progress) {
                    next.store(files.len(), Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    failed.get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(files.len()) {
                scope.spawn(work);
            }
        });
        failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).map_or(Ok(()), Err)
    }

    fn fetch_one(&self, client: &Client, file: &RemoteFile, progress: &dyn Progress) -> Result<()> {
        let blob = self.cache.blob(&file.hash);
        let _lock = self.cache.lock(&file.hash)?;
        if blob.exists() {
            return Ok(());
        }
        let (repo, commit) = (&self.repo, self.commit.as_str());
        Transfer { client, repo, commit, file, path: &blob, room: &Unbounded, progress }.run()
    }
}

/// The files of a split GGUF of which `file` is one; else that file alone.
fn splits(tree: &Tree, file: &RemoteFile) -> Vec<RemoteFile> {
    let Some((stem, _, count)) = split_of(&file.path) else { return vec![file.clone()] };
    let is_part = |other: &&RemoteFile| {
        split_of(&other.path).is_some_and(|(other, _, others)| (other, others) == (stem, count))
    };
    let mut parts: Vec<RemoteFile> = tree.files.iter().filter(is_part).cloned().collect();
    parts.sort_by(|a, b| a.path.cmp(&b.path));
    parts
}

/// Stem, number and count of `stem-00001-of-00003.gguf`.
fn split_of(path: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |text: &str| (text.len() == 5).then(|| text.parse().ok())?;
    Some((stem, five(number)?, five(count)?))
}

/// The files of a snapshot's folder, as far as they are whole. Their hashes are their blobs' names.
fn list(folder: &Path, start: &str, files: &mut Vec<RemoteFile>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = format!("{start}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            list(&path, &format!("{name}/"), files)?;
        } else if let Ok(blob) = path.canonicalize() {
            let bytes = blob.metadata().map_err(Error::io(&path))?.len();
            let hash = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let hash = if hash.len() == 64 { Hash::Sha256(hash) } else { Hash::GitBlob(hash) };
            files.push(RemoteFile { path: name, bytes, hash });
        }
    }
    Ok(())
}

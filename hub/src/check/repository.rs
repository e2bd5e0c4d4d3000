//! A repository: a Hub's list of files has the SHA-256 of every large one (an LFS object's name is its hash), so that only small
//! files are fetched.

use std::io::Read;

use super::{Report, is_beside};
use crate::api::{Hash, RemoteFile, Tree};
use crate::client::{About, Ask, Attempts, Client, Failed, place};
use crate::digest;
use crate::error::{Error, Result};
use crate::manifest;
use crate::progress::Progress;
use crate::repo::{Named, RepoId};
use crate::sign::{self, Key};
use crate::sums;
use crate::transfer::Hasher;

/// The largest file that is fetched, because the list does not have its SHA-256. The Hub keeps no larger ones outside of LFS.
const MOST_FETCHED: u64 = 64 << 20;

/// Checks a repository at a revision against its own lists.
///
/// # Errors
/// [`Error::Usage`] if a file of it is named or the network may not be used; what the Hub says. What does not hold is in the report.
pub fn repository(
    client: &Client,
    named: &Named,
    key: Option<&Key>,
    progress: &dyn Progress,
) -> Result<Report> {
    let repo = &named.repo;
    if let Some(file) = &named.file {
        return Err(Error::Usage(format!("{repo}/{file}: a repository is checked as a whole, name {repo}")));
    }
    if client.settings().offline {
        return Err(Error::Usage(format!("HF_HUB_OFFLINE is set: {repo} can't be asked for its files")));
    }
    let commit = client.commit(repo, named.revision())?;
    let tree = client.tree(repo, &commit)?;
    let mut report = Report::new(repo.to_string(), Some(commit));
    let mut small = |name: &str, most: u64| -> Result<Option<Vec<u8>>> {
        let Some(file) = tree.find(name) else { return Ok(None) };
        if file.bytes > most {
            report.problem(name, format!("it has {} bytes, more than {most}", file.bytes));
            return Ok(None);
        }
        client.small_file(&tree, file).map(Some)
    };
    let manifest = small(manifest::NAME, manifest::MOST_BYTES)?;
    let sums = small(sums::NAME, sums::MOST_BYTES)?;
    let signature = small(sign::NAME, sign::MOST_BYTES)?;
    let files = report.lists(manifest.as_deref(), sums.as_deref());
    report.signed(manifest.as_deref(), signature.as_deref(), key);
    report.measured();

    progress.begin(&repo.to_string(), files.iter().map(|file| file.bytes).sum(), 0);
    let result = files.iter().try_for_each(|file| {
        progress.advance(file.bytes);
        compare(&mut report, client, &tree, file)
    });
    progress.end();
    result?;
    let names = tree.files.iter().map(|file| file.path.clone());
    let unlisted = names.filter(|name| !is_beside(name) && !files.iter().any(|file| file.name == *name));
    report.unlisted(unlisted.collect());
    Ok(report)
}

/// Compares a listed file with what the Hub has.
fn compare(report: &mut Report, client: &Client, tree: &Tree, file: &manifest::File) -> Result<()> {
    let Some(remote) = tree.find(&file.name) else {
        report.problem(&file.name, "it is missing");
        return Ok(());
    };
    report.files += 1;
    if remote.bytes != file.bytes {
        report.problem(&file.name, format!("it has {} bytes, not {}", remote.bytes, file.bytes));
        return Ok(());
    }
    let found = match &remote.hash {
        Hash::Sha256(hash) => hash.clone(),
        Hash::GitBlob(_) if remote.bytes > MOST_FETCHED => {
            report.problem(
                &file.name,
                format!(
                    "the Hub does not state the SHA-256 of its {} bytes: fetch and check it",
                    remote.bytes
                ),
            );
            return Ok(());
        }
        Hash::GitBlob(_) => digest::of_bytes(&client.small_file(tree, remote)?),
    };
    if found == file.sha256 {
        report.bytes += file.bytes;
    } else {
        report.problem(&file.name, format!("its SHA-256 is {found}, not {}", file.sha256));
    }
    Ok(())
}

impl Client {
    /// A small file of a repository, held in memory and checked against the hash that the tree states.
    ///
    /// # Errors
    /// What the Hub says; [`Error::Unreachable`] if other bytes came every time.
    pub(crate) fn small_file(&self, tree: &Tree, file: &RemoteFile) -> Result<Vec<u8>> {
        let Tree { repo, commit, .. } = tree;
        let url = self.resolve(repo, commit, &file.path);
        let mut attempts = Attempts::default();
        loop {
            match self.small_attempt(repo, commit, file, &url)? {
                Ok(bytes) => return Ok(bytes),
                Err(failed) => self.wait(&mut attempts, &place(&url), failed)?,
            }
        }
    }

    fn small_attempt(
        &self,
        repo: &RepoId,
        commit: &str,
        file: &RemoteFile,
        url: &str,
    ) -> Result<std::result::Result<Vec<u8>, Failed>> {
        let about = About { repo, revision: Some(commit), file: Some(&file.path) };
        let answer = match self.attempt(&Ask::get(url)) {
            Ok(answer) => self.ok(answer, &about)?,
            Err(failed) => return Ok(Err(failed)),
        };
        let mut bytes = Vec::new();
        let mut body = answer.body.into_with_config().reader().take(file.bytes + 1);
        if let Err(error) = body.read_to_end(&mut bytes) {
            return Ok(Err(Failed::new(error.to_string())));
        }
        let mut hasher = Hasher::new(&file.hash, bytes.len() as u64);
        hasher.update(&bytes);
        let found = hasher.finish();
        if bytes.len() as u64 != file.bytes || found != file.hash.hex() {
            let states = format!("{} bytes with the hash {}", file.bytes, file.hash.hex());
            return Ok(Err(Failed::new(format!(
                "{} bytes with the hash {found} came, the Hub states {states}",
                bytes.len()
            ))));
        }
        Ok(Ok(bytes))
    }
}

//! Whether what a published model says of itself holds: its lists agree, every file is there and has the stated hash, and the
//! signature is of the wanted key. [`folder`](folder()) reads a folder's bytes, [`repository`](repository()) a Hub's lists.

mod folder;
mod repository;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest;
use crate::manifest::{self, Manifest};
use crate::sign::{self, Key};
use crate::sums::{self, Sums};

pub use folder::folder;
pub use repository::repository;

/// What is not listed is named, but not more of it than this.
const MOST_NAMED: usize = 20;

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// The folder or the repository.
    pub place: String,
    /// The repository's commit.
    pub commit: Option<String>,
    /// What the model says of itself, if it can be read.
    pub manifest: Option<Manifest>,
    /// How many files were compared with their hash.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What does not hold.
    pub problems: Vec<Problem>,
    /// What the reader should know beside that.
    pub warnings: Vec<String>,
    /// Who signed it.
    pub signature: Signed,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file that it is about.
    pub file: String,
    /// The tensor in it, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What it is.
    pub problem: String,
}

/// What is known of the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Signed {
    /// There is none.
    No,
    /// There is one, but nobody said whose it has to be.
    Unchecked {
        /// The number of the key that it says it was made with.
        key: String,
    },
    /// It holds.
    Holds {
        /// The key's number.
        key: String,
        /// What else was signed.
        comment: String,
    },
    /// It does not hold: a problem says why.
    Fails,
}

impl Report {
    fn new(place: String, commit: Option<String>) -> Report {
        Report {
            place,
            commit,
            manifest: None,
            files: 0,
            bytes: 0,
            problems: Vec::new(),
            warnings: Vec::new(),
            signature: Signed::No,
        }
    }

    /// Whether all holds.
    pub fn holds(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, file: &str, problem: impl Into<String>) {
        self.problems.push(Problem { file: file.to_owned(), tensor: None, problem: problem.into() });
    }

    /// What all lists say of the files together, apart from `halfbyte.json` and `SHA256SUMS`, which are compared here.
    fn lists(&mut self, manifest: Option<&[u8]>, sums: Option<&[u8]>) -> Vec<manifest::File> {
        let of = self.place.clone();
        let place = |name: &str| format!("{of}/{name}");
        let missing = "is missing: this is no folder or repository that halfbyte published";
        let parsed = manifest.map(|text| Manifest::parse(&place(manifest::NAME), text));
        let listed = sums.map(|text| Sums::parse(&place(sums::NAME), text));
        let sums = match listed {
            Some(Ok(sums)) => sums.0,
            Some(Err(error)) => {
                self.problem(sums::NAME, said(error, &place(sums::NAME)));
                BTreeMap::new()
            }
            None => {
                self.problem(sums::NAME, missing);
                BTreeMap::new()
            }
        };
        match parsed {
            Some(Ok(manifest)) => self.manifest = Some(manifest),
            Some(Err(error)) => self.problem(manifest::NAME, said(error, &place(manifest::NAME))),
            None => self.problem(manifest::NAME, missing),
        }
        if let (Some(text), Some(stated)) = (manifest, sums.get(manifest::NAME)) {
            let found = digest::of_bytes(text);
            if found != *stated {
                let problem = format!("its SHA-256 is {found}, {} states {stated}", sums::NAME);
                self.problem(manifest::NAME, problem);
            }
        }
        self.agree(&sums)
    }

    /// Compares the two lists.
    fn agree(&mut self, sums: &BTreeMap<String, String>) -> Vec<manifest::File> {
        let Some(manifest) = &self.manifest else { return Vec::new() };
        let (files, recipe) = (manifest.files.clone(), manifest.recipe.clone());
        if !sums.is_empty() {
            for file in &files {
                match sums.get(&file.name) {
                    Some(hash) if *hash == file.sha256 => {}
                    Some(hash) => {
                        let problem = format!(
                            "{} states the SHA-256 {}, {} states {hash}",
                            manifest::NAME,
                            file.sha256,
                            sums::NAME
                        );
                        self.problem(&file.name, problem);
                    }
                    None => self
                        .problem(&file.name, format!("{} lists it, {} does not", manifest::NAME, sums::NAME)),
                }
            }
            if !sums.contains_key(manifest::NAME) {
                self.problem(manifest::NAME, format!("{} does not list it", sums::NAME));
            }
            for name in sums.keys().filter(|name| *name != manifest::NAME) {
                if !files.iter().any(|file| file.name == *name) {
                    self.problem(name, format!("{} lists it, {} does not", sums::NAME, manifest::NAME));
                }
            }
        }
        match files.iter().find(|file| file.name == recipe.file) {
            Some(file) if file.sha256 == recipe.sha256 => {}
            Some(file) => {
                let problem = format!(
                    "{} names the recipe {}, but lists its file with the SHA-256 {}",
                    manifest::NAME,
                    recipe.sha256,
                    file.sha256
                );
                self.problem(&recipe.file, problem);
            }
            None => {
                let problem = format!("it is the recipe, but {} does not list it", manifest::NAME);
                self.problem(&recipe.file, problem);
            }
        }
        files
    }

    /// Looks at the signature.
    fn signed(&mut self, manifest: Option<&[u8]>, signature: Option<&[u8]>, key: Option<&Key>) {
        let text = signature.map(|text| std::str::from_utf8(text).map_err(|_| "it is no text".to_owned()));
        let found = match (text, key) {
            (None, None) => return,
            (None, Some(key)) => Err(format!("is missing: nothing is signed by the key {}", key.id())),
            (Some(text), None) => text.and_then(sign::signer).map(|key| Signed::Unchecked { key }),
            (Some(text), Some(key)) => text.and_then(|text| {
                let message = manifest.ok_or_else(|| format!("{} is missing", manifest::NAME))?;
                let comment = key.verify(message, text)?;
                Ok(Signed::Holds { key: key.id().to_owned(), comment })
            }),
        };
        self.signature = found.unwrap_or_else(|problem| {
            self.problem(sign::NAME, problem);
            Signed::Fails
        });
    }

    /// Says what is there that nothing lists.
    fn unlisted(&mut self, mut names: Vec<String>) {
        names.sort();
        let more = names.len().saturating_sub(MOST_NAMED);
        let line = |name: &String| format!("{name} is there, but nothing lists it: it was not checked");
        self.warnings.extend(names.iter().take(MOST_NAMED).map(line));
        if more > 0 {
            self.warnings.push(format!("{more} more files are there that nothing lists"));
        }
    }

    /// Says if what was measured was something else.
    fn measured(&mut self) {
        let problem = self.manifest.as_ref().filter(|m| m.verification.is_some()).map(Manifest::verified);
        if let Some(Err(problem)) = problem {
            self.warnings.push(format!("the figures do not count: {problem}"));
        }
    }
}

/// An error's text without the place, which a problem names itself.
fn said(error: crate::Error, place: &str) -> String {
    let text = error.to_string();
    text.strip_prefix(place).and_then(|text| text.strip_prefix(": ")).unwrap_or(&text).to_owned()
}

/// Whether nobody expects a file of that name to be listed: what git, the Hub and its tools add, and the lists themselves.
fn is_beside(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    first.starts_with(".git") || first == ".cache" || [manifest::NAME, sums::NAME, sign::NAME].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    fn report(manifest: &Manifest, sums: impl Fn(&mut BTreeMap<String, String>)) -> Report {
        let text = serde_json::to_vec(manifest).expect("text");
        let mut listed: BTreeMap<_, _> =
            manifest.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
        listed.insert(manifest::NAME.into(), digest::of_bytes(&text));
        sums(&mut listed);
        let mut report = Report::new("p".into(), None);
        report.lists(Some(&text), Some(Sums(listed).to_text().as_bytes()));
        report
    }

    fn only_problem(report: &Report) -> String {
        let [Problem { file, problem, .. }] = &report.problems[..] else { panic!("{:?}", report.problems) };
        format!("{file}: {problem}")
    }

    #[test]
    fn the_lists_have_to_agree() {
        let zeros = || "0".repeat(64);
        let good = manifest();
        assert!(report(&good, |_| {}).holds());
        for (change, said) in [
            (
                &(|sums: &mut BTreeMap<_, _>| drop(sums.remove("m.gguf"))) as &dyn Fn(&mut _),
                "m.gguf: halfbyte.json lists it",
            ),
            (
                &|sums: &mut BTreeMap<_, _>| drop(sums.insert("more".into(), zeros())),
                "more: SHA256SUMS lists it",
            ),
            (
                &|sums: &mut BTreeMap<_, _>| drop(sums.insert("m.gguf".into(), zeros())),
                "m.gguf: halfbyte.json states the SHA-256 333",
            ),
            (
                &|sums: &mut BTreeMap<_, _>| drop(sums.remove(manifest::NAME)),
                "halfbyte.json: SHA256SUMS does not list it",
            ),
            (
                &|sums: &mut BTreeMap<_, _>| drop(sums.insert(manifest::NAME.into(), zeros())),
                "halfbyte.json: its SHA-256 is",
            ),
        ] {
            let found = only_problem(&report(&good, change));
            assert!(found.starts_with(said), "{found}, not {said}");
        }
        let mut wrong = manifest();
        wrong.recipe.sha256 = zeros();
        assert!(
            only_problem(&report(&wrong, |_| {}))
                .starts_with("recipe.toml: halfbyte.json names the recipe 000")
        );
        wrong = manifest();
        wrong.recipe.file = "other.toml".into();
        assert!(only_problem(&report(&wrong, |_| {})).starts_with("other.toml: it is the recipe"));
    }

    #[test]
    fn hostile_lists_are_problems_that_name_the_file_once() {
        let mut report = Report::new("p".into(), None);
        let text = serde_json::to_string(&manifest()).expect("text").replace("m.gguf", "../m.gguf");
        let sums = format!("{}  ../../x\n", "0".repeat(64));
        assert!(report.lists(Some(text.as_bytes()), Some(sums.as_bytes())).is_empty());
        let problems: Vec<String> =
            report.problems.iter().map(|p| format!("{}: {}", p.file, p.problem)).collect();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("SHA256SUMS: line 1 names \"../../x\""), "{problems:?}");
        assert!(problems[1].starts_with("halfbyte.json: it names \"../m.gguf\""), "{problems:?}");
        let mut nothing = Report::new("p".into(), None);
        nothing.lists(None, None);
        assert_eq!(nothing.problems.len(), 2);
    }
}

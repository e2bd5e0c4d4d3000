//! How repositories, revisions and files are named: `owner/name`, `owner/name@revision`, `owner/name/file.gguf`, with or without `hf:`
//! before it.

use std::fmt;
use std::path::{Component, Path};

use crate::error::{Error, Result};

/// A model repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoId {
    /// The user or organization.
    pub owner: String,
    /// The repository's own name.
    pub name: String,
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

impl RepoId {
    /// `owner/name`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not that.
    pub fn parse(text: &str) -> Result<RepoId> {
        let wrong = || Error::Usage(format!("{text} is no repository: OWNER/NAME is wanted"));
        let (owner, name) = text.split_once('/').ok_or_else(wrong)?;
        if !is_name(owner) || !is_name(name) {
            return Err(wrong());
        }
        Ok(RepoId { owner: owner.to_owned(), name: name.to_owned() })
    }
}

/// By the Hub's rules: letters, digits, `-`, `_`, `.`, at most 96, not `..` or `--` within, `-` and `.` at neither end.
fn is_name(text: &str) -> bool {
    let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| "-.".contains(c);
    (1..=96).contains(&text.len())
        && text.chars().all(sign)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("..")
        && !text.contains("--")
}

/// A repository, at a revision, and perhaps one of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The repository.
    pub repo: RepoId,
    /// Branch, tag or commit; the main branch if none is named.
    pub revision: Option<String>,
    /// The file or the folder in it that is meant, of several.
    pub file: Option<String>,
}

/// Before a repository's name, so that it is not taken for a path.
pub const PREFIX: &str = "hf:";

impl Named {
    /// `[hf:]owner/name[/file][@revision]`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not that.
    pub fn parse(text: &str) -> Result<Named> {
        let bare = text.strip_prefix(PREFIX).unwrap_or(text);
        let (path, revision) = match bare.split_once('@') {
            Some((path, revision)) if !revision.is_empty() => (path, Some(revision.to_owned())),
            Some(_) => return Err(Error::Usage(format!("{text}: there is no revision behind the @"))),
            None => (bare, None),
        };
        let mut parts = path.splitn(3, '/');
        let repo = match (parts.next(), parts.next()) {
            (Some(owner), Some(name)) => RepoId::parse(&format!("{owner}/{name}"))?,
            _ => RepoId::parse(path)?,
        };
        let file =
            parts.next().map(|file| file.trim_end_matches('/').to_owned()).filter(|file| !file.is_empty());
        Ok(Named { repo, revision, file })
    }

    /// The same of what a user named as a model, where it can be a repository: it says so by `hf:`, or has the form of one and is
    /// nothing on this disk.
    ///
    /// # Errors
    /// [`Error::Usage`] if it says so but is none.
    pub fn of_source(named: &Path) -> Result<Option<Named>> {
        let Some(text) = named.to_str() else { return Ok(None) };
        if text.starts_with(PREFIX) {
            return Named::parse(text).map(Some);
        }
        Ok(if named.exists() { None } else { Named::parse(text).ok() })
    }

    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repo.fmt(f)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// Whether a file of that name stays in the folder that it is put in, on every system, and is none of git's.
pub fn is_safe(name: &str) -> bool {
    let plain = |part: Component<'_>| match part {
        Component::Normal(part) => part.to_str().is_some_and(|part| {
            // Windows drops dots and blanks at the end of names.
            !part.eq_ignore_ascii_case(".git") && !part.ends_with(['.', ' ']) && !part.contains([':', '\\'])
        }),
        _ => false,
    };
    !name.is_empty()
        && name.len() <= 1024
        && !name.contains("//")
        && !name.ends_with('/')
        && !name.chars().any(char::is_control)
        && Path::new(name).components().all(plain)
        // `components` passes over a single dot.
        && !name.split('/').any(|part| part == ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let named = Named::parse("hf:deepseek-ai/DeepSeek-R1@56d4cbb").expect("named");
        assert_eq!(named.repo.to_string(), "deepseek-ai/DeepSeek-R1");
        assert_eq!((named.revision(), &named.file), ("56d4cbb", &None));
        let named = Named::parse("a/b/Q4/m.gguf@refs/pr/3").expect("named");
        assert_eq!((named.revision(), named.file.as_deref()), ("refs/pr/3", Some("Q4/m.gguf")));
        assert_eq!(named.to_string(), "a/b/Q4/m.gguf@refs/pr/3");
        assert_eq!(Named::parse("a/b").expect("named").revision(), "main");
        for wrong in ["a", "a/", "/b", "a/b@", "a/..", "./model", "../a", "a b/c", "a/-b", "hf:", "a/b--c"] {
            assert!(Named::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_on_the_disk_is_no_repository() {
        assert_eq!(Named::of_source(Path::new("src/lib.rs")).expect("a path"), None);
        assert_eq!(Named::of_source(Path::new("./no/model")).expect("a path"), None);
        assert!(Named::of_source(Path::new("hf:src/lib.rs")).expect("said so").is_some());
        assert!(Named::of_source(Path::new("hf:model")).is_err());
    }

    #[test]
    fn hostile_names_are_not_safe() {
        for name in ["model.safetensors", "a/b/c.json", "..a", "a..b/c"] {
            assert!(is_safe(name), "{name}");
        }
        for name in [
            "",
            "/etc/x",
            "../x",
            "a/../x",
            "a/./x",
            "./x",
            "a//b",
            "a/",
            ".git/config",
            "a/.GIT/x",
            "a\0b",
            "a\nb",
            "a\\..\\b",
            "c:x",
            "a./x",
            "a ",
            "..",
        ] {
            assert!(!is_safe(name), "{name:?}");
        }
    }
}

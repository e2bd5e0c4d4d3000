//! `SHA256SUMS`: the hashes of a folder's files, as GNU's `sha256sum` writes and checks them.

use std::collections::BTreeMap;

use crate::digest::is_sha256;
use crate::error::{Error, Result};
use crate::repo::is_safe;

/// The file's name.
pub const NAME: &str = "SHA256SUMS";
/// The longest one that is read.
pub const MOST_BYTES: u64 = 16 << 20;

/// Names and hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(pub BTreeMap<String, String>);

impl Sums {
    /// Reads a text that anybody may have written. `place` is for messages.
    ///
    /// # Errors
    /// [`Error::Listing`] with the first line that is none of `sha256sum`'s, or whose file would lie outside of the folder.
    pub fn parse(place: &str, text: &[u8]) -> Result<Sums> {
        let wrong = |problem: String| Error::Listing { file: place.to_owned(), problem };
        let text = std::str::from_utf8(text).map_err(|_| wrong("it is no text in UTF-8".into()))?;
        let mut sums = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let number = number + 1;
            let parts = line.split_once(' ').and_then(|(hash, name)| {
                // A blank for text, a star for binary: the same where this runs.
                Some((hash, name.strip_prefix(' ').or_else(|| name.strip_prefix('*'))?))
            });
            let Some((hash, name)) = parts.filter(|(hash, _)| is_sha256(hash)) else {
                return Err(wrong(format!(
                    "line {number} is no SHA-256, two blanks and a name, as sha256sum writes them"
                )));
            };
            if !is_safe(name) {
                return Err(wrong(format!(
                    "line {number} names {name:?}, which could lie outside of the folder: it is not looked at"
                )));
            }
            if sums.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong(format!("line {number} names {name} for the second time")));
            }
        }
        Ok(Sums(sums))
    }

    /// The text, in the order of names.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_they_are_written() {
        let (a, b) = ("a".repeat(64), "0".repeat(64));
        let text = format!("{a}  README.md\n{b}  sub/model 1.gguf\n");
        let sums = Sums::parse("s", text.as_bytes()).expect("sums");
        assert_eq!(sums.to_text(), text);
        assert_eq!(Sums::parse("s", format!("{a} *README.md").as_bytes()).expect("binary").0.len(), 1);
    }

    #[test]
    fn hostile_lines_are_refused() {
        let hash = "a".repeat(64);
        for (line, said) in [
            (format!("{hash}  ../../etc/passwd"), "outside of the folder"),
            (format!("{hash}  /etc/passwd"), "outside of the folder"),
            (format!("{hash}  .git/config"), "outside of the folder"),
            (format!("{hash} a"), "sha256sum"),
            (format!("{hash}"), "sha256sum"),
            (format!("{}  a", "A".repeat(64)), "sha256sum"),
            (format!("\\{hash}  a\\nb"), "sha256sum"),
            (format!("{hash}  a\n{hash}  a"), "line 2 names a for the second time"),
        ] {
            let error = Sums::parse("s/SHA256SUMS", line.as_bytes()).expect_err(&line).to_string();
            assert!(error.contains(said) && error.starts_with("s/SHA256SUMS: "), "{line}: {error}");
        }
        assert!(Sums::parse("s", b"\xff\xfe").is_err());
    }
}

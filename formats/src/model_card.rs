//! `README.md` of a checkpoint: the few facts that go into a converted file.

use std::path::Path;

use crate::error::{Error, Result};

/// The front matter's scalars and lists at the outermost level. Nested YAML is skipped: nothing needed lies there.
#[derive(Debug, Default)]
pub struct ModelCard {
    entries: Vec<(String, Vec<String>)>,
    heading: Option<String>,
}

impl ModelCard {
    /// Reads the card of a checkpoint's folder; an empty one if there is none.
    ///
    /// # Errors
    /// If the file is there but can't be read.
    pub fn read(folder: &Path) -> Result<ModelCard> {
        let path = folder.join("README.md");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(ModelCard::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ModelCard::default()),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    fn parse(text: &str) -> ModelCard {
        let mut card = ModelCard::default();
        let mut lines = text.lines().peekable();
        if lines.peek().is_some_and(|line| line.trim_end() == "---") {
            lines.next();
            for line in lines.by_ref().take_while(|line| line.trim_end() != "---") {
                card.front_matter(line);
            }
        }
        let heading = lines.find_map(|line| line.strip_prefix("# ")).map(str::trim);
        card.heading = heading.filter(|text| (1..=64).contains(&text.len())).map(str::to_owned);
        card
    }

    fn front_matter(&mut self, line: &str) {
        let trimmed = line.trim();
        if let Some(item) = trimmed.strip_prefix("- ") {
            // A nested list would be indented below a nested key, which has no entry of its own.
            if let Some((_, values)) = self.entries.last_mut() {
                values.push(unquoted(item));
            }
        } else if !line.starts_with([' ', '\t', '#'])
            && let Some((key, value)) = trimmed.split_once(':')
        {
            let value = value.trim();
            let list = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let values = match list {
                Some(list) => list
                    .split(',')
                    .map(|item| unquoted(item.trim()))
                    .filter(|item| !item.is_empty())
                    .collect(),
                None if value.is_empty() => Vec::new(),
                None => vec![unquoted(value)],
            };
            self.entries.push((key.trim().to_owned(), values));
        }
    }

    /// The values of a key: one of a scalar, all of a list.
    pub fn list(&self, key: &str) -> &[String] {
        self.entries.iter().find(|(k, _)| k == key).map_or(&[], |(_, values)| values)
    }

    /// The value of a key that isn't a list.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.list(key) {
            [text] => Some(text),
            _ => None,
        }
    }

    /// The text's title.
    pub fn heading(&self) -> Option<&str> {
        self.heading.as_deref()
    }
}

fn unquoted(text: &str) -> String {
    let inner = |quote| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('\'')).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_scalars_lists_and_the_heading() {
        let card = ModelCard::parse(
            "---\nlicense: mit\n# a comment: here\nbase_model:\n- org/One\n- \"org/Two\"\ntags: [a, 'b']\n\
             model-index:\n  - name: nested\n    value: 3\nempty:\n---\n\n# Some-Model\n# Another\n",
        );
        assert_eq!(card.text("license"), Some("mit"));
        assert_eq!(card.list("base_model"), ["org/One", "org/Two"]);
        assert_eq!(card.list("tags"), ["a", "b"]);
        assert_eq!((card.text("empty"), card.text("value"), card.text("base_model")), (None, None, None));
        assert_eq!(card.heading(), Some("Some-Model"));
    }

    #[test]
    fn does_without_front_matter() {
        let card = ModelCard::parse("text\n# Title\nlicense: mit\n");
        assert_eq!((card.heading(), card.text("license")), (Some("Title"), None));
        assert_eq!(ModelCard::parse("---\nlicense: mit").text("license"), Some("mit"));
        assert!(ModelCard::parse("").heading().is_none());
    }
}

//! The journal of an unfinished output: a line of JSON for each tensor whose bytes are on the disk, for each segment of one that
//! has several, and for each file that was taken away. A killed run resumes from it.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    outlet::Shipped,
};

/// The first line: which job this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// SHA-256 of the recipe.
    pub recipe: String,
    /// The source's files as they were when the job began.
    pub source: Vec<SourceStamp>,
}

/// How a changed source file is noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStamp {
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last modification, nanoseconds since 1970; 0 where the hash is known.
    pub modified: i128,
    /// SHA-256 of its bytes, where it is known without reading them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A tensor that is written and synced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The output tensor.
    pub tensor: String,
    /// Each plane's place and hash.
    pub planes: Vec<Plane>,
    /// Sum of squared differences between the source's weights and the written ones.
    pub squared_error: f64,
    /// Sum of the source's squared weights.
    pub energy: f64,
    /// Weights that were NaN or infinite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nonfinite: u64,
}

/// A segment that is written and synced, of a tensor that has several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its position within the tensor.
    pub segment: usize,
    /// Its first weight within the tensor.
    pub first_weight: u64,
    /// Number of weights.
    pub weights: u64,
    /// The tensor, and of the segment alone what an entry says of a whole tensor.
    #[serde(flatten)]
    pub entry: Entry,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Where a plane lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plane {
    /// The output file.
    pub file: String,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// SHA-256 of the bytes.
    pub sha256: String,
}

/// A line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    Job(Head),
    Part(PartEntry),
    Done(Entry),
    /// The file was taken away: it need not be on the disk any more.
    Shipped(Shipped),
    /// All tensors are on the disk, or were taken away: what is left is to put the files in place.
    Whole,
}

/// What an earlier run left.
#[derive(Debug, Default, PartialEq)]
pub struct Past {
    /// The job's identity; `None` for a new journal.
    pub head: Option<Head>,
    /// Tensors that are done.
    pub entries: Vec<Entry>,
    /// Segments that are done.
    pub parts: Vec<PartEntry>,
    /// Files that were taken away.
    pub shipped: Vec<Shipped>,
    /// Whether all bytes are written and only moving the files remains.
    pub whole: bool,
}

/// An open journal, locked against other processes.
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or creates the journal and reads what an earlier run left. A last line cut short by a crash is dropped.
    ///
    /// # Errors
    /// If another process holds it, if a whole line is no entry, or if the file can't be read or written.
    pub fn open(path: &Path) -> Result<(Journal, Past)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(Error::Io { path: path.to_owned(), source }),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io(path))?;
        let whole_lines = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole_lines as u64).map_err(Error::io(path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;

        let mut past = Past::default();
        for (number, line) in text[..whole_lines].split(|&b| b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let line = serde_json::from_slice(line).map_err(|error| Error::Journal {
                path: path.to_owned(),
                line: number + 1,
                detail: error.to_string(),
                partial: path.parent().unwrap_or(path).to_owned(),
            })?;
            match line {
                Line::Job(head) => past.head = Some(head),
                Line::Part(part) => past.parts.push(part),
                Line::Done(entry) => past.entries.push(entry),
                Line::Shipped(file) => past.shipped.push(file),
                Line::Whole => past.whole = true,
            }
        }
        Ok((Journal { file, path: path.to_owned() }, past))
    }

    /// Writes the first line.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub fn begin(&mut self, head: &Head) -> Result<()> {
        self.append(&[Line::Job(head.clone())])
    }

    /// Notes tensors whose bytes are synced.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub fn done(&mut self, entries: &[Entry]) -> Result<()> {
        let lines: Vec<Line> = entries.iter().cloned().map(Line::Done).collect();
        self.append(&lines)
    }

    /// Notes that every byte of the output is synced.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub fn whole(&mut self) -> Result<()> {
        self.append(&[Line::Whole])
    }

    /// Adds lines, and waits until they are on the disk.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub(crate) fn append(&mut self, lines: &[Line]) -> Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)
                .map_err(|error| Error::Io { path: self.path.clone(), source: error.into() })?;
            text.push(b'\n');
        }
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tensor: &str) -> Entry {
        Entry {
            tensor: tensor.into(),
            planes: vec![Plane { file: "a.gguf".into(), offset: 64, len: 18, sha256: "00".into() }],
            squared_error: 0.5,
            energy: 2.0,
            nonfinite: 0,
        }
    }

    fn head() -> Head {
        Head {
            recipe: "abc".into(),
            source: vec![SourceStamp {
                name: "m".into(),
                bytes: 1,
                modified: 1_700_000_000_123_456_789,
                sha256: None,
            }],
        }
    }

    #[test]
    fn what_was_noted_is_read_back() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal");
        let (mut journal, past) = Journal::open(&path).expect("new");
        assert_eq!(past, Past::default());
        journal.begin(&head()).expect("begin");
        journal.done(&[entry("a"), entry("b")]).expect("done");
        drop(journal);
        let (mut journal, past) = Journal::open(&path).expect("again");
        let due = Past { head: Some(head()), entries: vec![entry("a"), entry("b")], ..Past::default() };
        assert_eq!(past, due);
        let shipped = Shipped { name: "a.gguf".into(), bytes: 82, sha256: "11".into() };
        // A sum that a parser which takes shortcuts would read as its neighbour.
        let part = Entry { energy: 5.497_558_138_88e11 / 3.0, squared_error: 0.1 + 0.2, ..entry("c") };
        let part = PartEntry { segment: 1, first_weight: 32, weights: 32, entry: part };
        let lines = [Line::Part(part.clone()), Line::Shipped(shipped.clone())];
        journal.append(&lines).expect("more");
        journal.whole().expect("whole");
        drop(journal);
        let past = Journal::open(&path).expect("whole").1;
        assert_eq!((past.parts, past.shipped, past.whole), (vec![part], vec![shipped], true));
    }

    #[test]
    fn a_journal_of_an_older_version_is_read() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal");
        let lines = [
            r#"{"job":{"recipe":"abc","source":[{"name":"m","bytes":1,"modified":1700000000123456789}]}}"#,
            r#"{"done":{"tensor":"a","planes":[{"file":"a.gguf","offset":64,"len":18,"sha256":"00"}],"squared_error":0.5,"energy":2.0}}"#,
        ];
        std::fs::write(&path, lines.map(|line| format!("{line}\n")).concat()).expect("journal");
        let past = Journal::open(&path).expect("older").1;
        assert_eq!(past, Past { head: Some(head()), entries: vec![entry("a")], ..Past::default() });
    }

    #[test]
    fn a_line_cut_short_is_dropped_and_a_broken_one_is_an_error() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).expect("new");
        journal.begin(&head()).expect("begin");
        journal.done(&[entry("a")]).expect("done");
        drop(journal);
        let text = std::fs::read(&path).expect("text");
        std::fs::write(&path, &text[..text.len() - 5]).expect("cut");
        let (mut journal, past) = Journal::open(&path).expect("cut short");
        assert_eq!(past.entries, vec![]);
        journal.done(&[entry("b")]).expect("append after the cut");
        drop(journal);
        assert_eq!(Journal::open(&path).expect("again").1.entries, vec![entry("b")]);
        std::fs::write(&path, "{}\n").expect("broken");
        assert!(matches!(Journal::open(&path), Err(Error::Journal { line: 1, .. })));
    }

    #[test]
    fn two_processes_can_not_write_one_output() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("journal");
        let _held = Journal::open(&path).expect("first");
        assert!(matches!(Journal::open(&path), Err(Error::Busy { .. })));
    }
}

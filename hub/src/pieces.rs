//! Which pieces of an unfinished file are there, kept beside it so that a killed or rebooted machine goes on where it was.
//!
//! The file is a line of JSON, then a byte for each piece. A piece that was handed to the system counts after a kill; after a reboot or
//! a crash of the machine only those count that had been synced to the disk.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;

const ABSENT: u8 = b'-';
const WRITTEN: u8 = b'w';
const SYNCED: u8 = b's';

/// The first line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    bytes: u64,
    piece: u64,
    boot: String,
}

/// The pieces of one file.
#[derive(Debug)]
pub struct Pieces {
    bytes: u64,
    file: File,
    /// Where the marks begin in it.
    start: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    marks: Vec<u8>,
    /// Pieces before this one are there or are being fetched.
    claimed: usize,
    /// No more will come.
    over: bool,
}

impl Pieces {
    /// Opens the marks at `path` for a file of `bytes`, or begins anew if they are another file's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, bytes: u64) -> Result<Pieces> {
        Pieces::open_at(path, bytes, &boot())
    }

    fn open_at(path: &Path, bytes: u64, boot: &str) -> Result<Pieces> {
        let io = Error::io(path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(&io)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(&io)?;
        let marks = marks_in(&text, bytes, boot);
        let head = Head { bytes, piece: PIECE, boot: boot.to_owned() };
        let mut text = serde_json::to_vec(&head).map_err(|error| io(error.into()))?;
        text.push(b'\n');
        let start = text.len() as u64;
        text.extend(&marks);
        file.set_len(0).and_then(|()| file.write_all_at(&text, 0)).map_err(&io)?;
        let state = State { marks, claimed: 0, over: false };
        Ok(Pieces { bytes, file, start, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Bytes that the marks at `path` say are there of a file of `bytes`: it is only looked at.
    pub fn noted(path: &Path, bytes: u64) -> u64 {
        fs::read(path).map_or(0, |text| bytes_of(&marks_in(&text, bytes, &boot()), bytes))
    }

    /// Bytes that are there.
    pub fn there(&self) -> u64 {
        bytes_of(&self.lock().marks, self.bytes)
    }

    /// Claims the next missing pieces that follow each other, up to `most`.
    pub fn claim(&self, most: usize) -> Option<Range<usize>> {
        let mut state = self.lock();
        let missing = |mark: &u8| *mark == ABSENT;
        let first = state.claimed + state.marks[state.claimed..].iter().position(missing)?;
        let run = state.marks[first..].iter().take(most).take_while(|mark| missing(mark)).count();
        state.claimed = first + run;
        Some(first..first + run)
    }

    /// The bytes of some pieces.
    pub fn range(&self, pieces: &Range<usize>) -> Range<u64> {
        pieces.start as u64 * PIECE..(pieces.end as u64 * PIECE).min(self.bytes)
    }

    /// Notes that a piece was written.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn written(&self, index: usize) -> std::io::Result<()> {
        let mut state = self.lock();
        self.file.write_all_at(&[WRITTEN], self.start + index as u64)?;
        state.marks[index] = WRITTEN;
        self.changed.notify_all();
        Ok(())
    }

    /// Syncs `data`, then notes that what was written before is on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self, data: &File) -> std::io::Result<()> {
        let before = self.lock().marks.clone();
        data.sync_data()?;
        let mut state = self.lock();
        for (mark, _) in state.marks.iter_mut().zip(&before).filter(|(_, before)| **before == WRITTEN) {
            *mark = SYNCED;
        }
        self.file.write_all_at(&state.marks, self.start)
    }

    /// Waits until a piece is there; false if it will not come.
    pub fn wait(&self, index: usize) -> bool {
        let mut state = self.lock();
        while state.marks[index] == ABSENT && !state.over {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.marks[index] != ABSENT
    }

    /// Says that no more pieces will come.
    pub fn close(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// How many there are in all.
    pub fn count(&self) -> usize {
        self.lock().marks.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Bytes of the pieces that are there, of a file of `bytes`.
fn bytes_of(marks: &[u8], bytes: u64) -> u64 {
    let len = |index: usize| PIECE.min(bytes - index as u64 * PIECE);
    let there = |(index, mark): (usize, &u8)| if *mark == ABSENT { 0 } else { len(index) };
    marks.iter().enumerate().map(there).sum()
}

/// The marks in a file's text that count now.
fn marks_in(text: &[u8], bytes: u64, boot: &str) -> Vec<u8> {
    let count = bytes.div_ceil(PIECE) as usize;
    let mut marks = vec![ABSENT; count];
    if let Some(line) = text.iter().position(|&byte| byte == b'\n')
        && let Ok(head) = serde_json::from_slice::<Head>(&text[..line])
        && (head.bytes, head.piece, text.len() - line - 1) == (bytes, PIECE, count)
    {
        let counts = |mark: u8| mark == SYNCED || (mark == WRITTEN && head.boot == boot);
        for (mark, &earlier) in marks.iter_mut().zip(&text[line + 1..]) {
            *mark = if counts(earlier) { earlier } else { ABSENT };
        }
    }
    marks
}

/// A name for the time since the system started, or one that never comes again.
fn boot() -> String {
    session().unwrap_or_else(|| format!("process {}", std::process::id()))
}

#[cfg(not(target_os = "macos"))]
fn session() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(target_os = "macos")]
fn session() -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", "kern.bootsessionuuid"]).output().ok()?;
    let id = String::from_utf8(output.stdout).ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 3 * PIECE + 5;

    #[test]
    fn what_was_written_counts_after_a_kill_and_what_was_synced_after_a_reboot() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pieces");
        let data = File::create(dir.path().join("data")).expect("data");
        let pieces = Pieces::open_at(&path, BYTES, "a").expect("new");
        assert_eq!((pieces.count(), pieces.there()), (4, 0));
        assert_eq!(pieces.claim(2), Some(0..2));
        pieces.written(0).expect("written");
        pieces.sync(&data).expect("synced");
        pieces.written(3).expect("written");
        assert_eq!(pieces.there(), PIECE + 5);
        drop(pieces);
        let killed = Pieces::open_at(&path, BYTES, "a").expect("again");
        assert_eq!(killed.there(), PIECE + 5);
        assert_eq!((killed.claim(9), killed.claim(9)), (Some(1..3), None));
        assert_eq!(Pieces::noted(&dir.path().join("none"), BYTES), 0);
        drop(killed);
        assert_eq!(Pieces::open_at(&path, BYTES, "b").expect("rebooted").there(), PIECE);
        assert_eq!(Pieces::open_at(&path, BYTES + 1, "b").expect("another file").there(), 0);
    }

    #[test]
    fn a_damaged_file_counts_for_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("pieces");
        for text in ["", "{}", "{}\nwwww", "{\"bytes\":786437,\"piece\":262144,\"boot\":\"a\"}\nwww"] {
            fs::write(&path, text).expect("text");
            assert_eq!(Pieces::open_at(&path, BYTES, "a").expect("opened").there(), 0, "{text}");
        }
    }
}

//! The headers of files that are not here: read by range, and kept until the file comes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Remote, Scratch};
use crate::client::{About, Ask, Attempts, Failed, place};
use crate::error::{Error, Result};
use crate::transfer;

/// Of a file, so many bytes are fetched at first for its header.
const HEAD: u64 = 96 << 10;
/// Of a longer header, so many more at a time.
const MORE_HEAD: u64 = 1 << 20;
/// Headers that are fetched at the same time.
const HEADS_AT_ONCE: usize = 8;

impl Scratch {
    /// Fetches the beginning of every file.
    pub(super) fn heads(&self) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(remote) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.whole(remote).is_some() {
                    continue;
                }
                let mut head = remote.head.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                self.extend_head(remote, &mut head, HEAD.min(remote.file.bytes))?;
                // A safetensors file says how long its header is.
                if remote.file.path.ends_with(".safetensors")
                    && let Some(len) = head.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
                    && len <= formats::safetensors::MAX_HEADER
                {
                    self.extend_head(remote, &mut head, (8 + len).min(remote.file.bytes))?;
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..HEADS_AT_ONCE.min(self.files.len())).map(|_| scope.spawn(work)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// A file that is here.
    fn whole(&self, remote: &Remote) -> Option<Arc<File>> {
        let index = self.by_path.get(&remote.path)?;
        self.lock().here.get(index).map(|here| Arc::clone(&here.file))
    }

    /// Fetches the first `len` bytes of a file, as far as they are not there.
    fn extend_head(&self, remote: &Remote, head: &mut Vec<u8>, len: u64) -> Result<()> {
        let have = head.len() as u64;
        if len <= have {
            return Ok(());
        }
        if let Some(blob) = &remote.cached {
            let mut more = vec![0; (len - have) as usize];
            let file = File::open(blob).map_err(Error::io(blob))?;
            FileExt::read_exact_at(&file, &mut more, have).map_err(Error::io(blob))?;
            head.extend(more);
            return Ok(());
        }
        let url = self.client.resolve(&self.repo, &self.commit, &remote.file.path);
        let about = About { repo: &self.repo, revision: Some(&self.commit), file: Some(&remote.file.path) };
        let range = have..len;
        let mut attempts = Attempts::default();
        loop {
            match self.range(&url, &range, remote.file.bytes, &about)? {
                Ok(bytes) => {
                    self.progress.advance(bytes.len() as u64);
                    head.extend(bytes);
                    return Ok(());
                }
                Err(failed) => self.client.wait(&mut attempts, &place(&url), failed)?,
            }
        }
    }

    /// A small range of a file, or why it did not come.
    fn range(
        &self,
        url: &str,
        range: &Range<u64>,
        bytes: u64,
        about: &About<'_>,
    ) -> Result<std::result::Result<Vec<u8>, Failed>> {
        let ask = Ask { range: Some((range.start, range.end - 1)), ..Ask::get(url) };
        let answer = match self.client.attempt(&ask) {
            Ok(answer) => answer,
            Err(failed) => return Ok(Err(failed)),
        };
        if answer.status >= 400 && answer.url.starts_with(&self.client.url("/")) {
            return self.client.ok(answer, about).map(|_| Ok(Vec::new()));
        }
        if let Err(problem) = transfer::check(&answer, range, bytes) {
            return Ok(Err(Failed::new(problem)));
        }
        let mut found = vec![0; (range.end - range.start) as usize];
        let mut body = answer.body;
        Ok(match io::Read::read_exact(&mut body.as_reader(), &mut found) {
            Ok(()) => Ok(found),
            Err(error) => Err(Failed::new(error.to_string())),
        })
    }

    pub(super) fn read_head(&self, index: usize, buffer: &mut [u8], offset: u64) -> Result<()> {
        let remote = &self.files[index];
        // What is here is checked, and no header needs be asked for.
        if let Some(file) = self.whole(remote) {
            return file.read_exact_at(buffer, offset).map_err(Error::io(&remote.path));
        }
        let mut head = remote.head.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let end = offset + buffer.len() as u64;
        if end > head.len() as u64 {
            let len = end.next_multiple_of(MORE_HEAD).min(remote.file.bytes).max(end);
            self.extend_head(remote, &mut head, len)?;
        }
        buffer.copy_from_slice(&head[offset as usize..end as usize]);
        Ok(())
    }
}

//! What an earlier run left: whether it is this job's, and what of it is good.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
    time::UNIX_EPOCH,
};

use formats::{TensorSource, layout::Placement, tensor::SourceFile};

use crate::{
    encode::Stats,
    error::{Error, Result},
    job::Job,
    journal::{Entry, Journal, PartEntry, Past, Plane, SourceStamp},
    keep::{plane_hashes, sum},
    progress::{Amount, Phase, Progress},
    segment::segments,
    store::Store,
    work::{Kept, files_of},
    write::entry,
};

/// The recipe's name in the `partial` folder.
pub(crate) const RECIPE: &str = "recipe.toml";

/// Size of each source file, and its hash, if that is known, or its time.
pub(crate) fn stamps(source: &dyn TensorSource) -> Result<Vec<SourceStamp>> {
    source.files().iter().map(stamp).collect()
}

fn stamp(file: &SourceFile) -> Result<SourceStamp> {
    let path = &file.path;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if file.sha256.is_some() {
        return Ok(SourceStamp { name, bytes: file.len, modified: 0, sha256: file.sha256.clone() });
    }
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    let modified = metadata.modified().map_err(Error::io(path))?;
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
    Ok(SourceStamp { name, bytes: metadata.len(), modified, sha256: None })
}

/// Refuses to go on with another job's output, from a changed source, or with files that were to stay or to go and now are not.
pub(crate) fn agree(
    job: &Job,
    past: &Past,
    stamps: &[SourceStamp],
    has_outlet: bool,
    partial: &Path,
) -> Result<()> {
    let Some(head) = &past.head else { return Ok(()) };
    let other = |difference| Err(Error::OtherJob { path: partial.to_owned(), difference });
    if head.recipe != job.recipe.hash() {
        let theirs = fs::read_to_string(partial.join(RECIPE)).unwrap_or_default();
        return other(job.recipe.difference(&theirs));
    }
    for (file, (now, then)) in job.source.files().iter().zip(stamps.iter().zip(&head.source)) {
        if now != then {
            return Err(Error::SourceChanged {
                path: file.path.clone(),
                difference: difference(now, then),
                partial: partial.to_owned(),
            });
        }
    }
    match (past.shipped.is_empty(), has_outlet) {
        (false, false) => other("its finished files were taken away while it was written".into()),
        (true, true) if past.whole => other("it is written, and its files stay on this disk".into()),
        _ => Ok(()),
    }
}

fn difference(now: &SourceStamp, then: &SourceStamp) -> String {
    match (&now.sha256, &then.sha256) {
        _ if now.bytes != then.bytes => format!("it had {} bytes and has {}", then.bytes, now.bytes),
        (Some(now), Some(then)) if now != then => format!("its SHA-256 was {then} and is {now}"),
        (now, then) if now.is_some() != then.is_some() => "it was read from another place".to_owned(),
        _ => "its time of modification is another".to_owned(),
    }
}

/// Bytes of a tensor, or of a segment of it.
pub(crate) fn bytes_of(entry: &Entry) -> u64 {
    entry.planes.iter().map(|plane| plane.len).sum()
}

/// Keeps what is on the disk as the journal says, or was taken away; the rest is done again. A tensor whose segments are all there
/// is noted, if the earlier run did not come to that, and files with nothing worth keeping are removed if they were made one by one.
///
/// # Errors
/// If the system refuses.
pub(crate) fn check(
    job: &Job,
    store: &Store<'_>,
    journal: &mut Journal,
    past: Past,
    progress: &dyn Progress,
) -> Result<Kept> {
    let Past { entries, parts, shipped, .. } = past;
    let mut kept = Kept { shipped, ..Kept::default() };
    kept.shipped.sort_by(|a, b| a.name.cmp(&b.name));
    kept.shipped.dedup_by(|a, b| a.name == b.name);
    let tensors: HashMap<&str, usize> =
        job.outputs.iter().enumerate().map(|(index, output)| (output.name.as_str(), index)).collect();
    // What was done again has several lines: the last counts.
    let named = |entry: &Entry| tensors.get(entry.tensor.as_str()).copied();
    let whole: BTreeMap<usize, Entry> =
        entries.into_iter().filter_map(|entry| Some((named(&entry)?, entry))).collect();
    let mut cut: BTreeMap<usize, BTreeMap<usize, PartEntry>> = BTreeMap::new();
    for part in parts {
        if let Some(tensor) = named(&part.entry) {
            cut.entry(tensor).or_default().insert(part.segment, part);
        }
    }
    if whole.is_empty() && cut.is_empty() {
        discard_worthless(job, store, &kept)?;
        return Ok(kept);
    }
    let unfinished = cut.iter().filter(|(tensor, _)| !whole.contains_key(tensor));
    let segments = unfinished.flat_map(|(_, parts)| parts.values().map(|part| &part.entry));
    let written = whole.values().chain(segments).map(bytes_of).sum();
    progress.begin(Phase::Checking, Amount { written, ..Amount::default() }, Amount::default());
    let checking = Checking { job, store };
    let result = checking.all(whole, cut, &mut kept, journal, progress);
    progress.end();
    result?;
    discard_worthless(job, store, &kept)?;
    Ok(kept)
}

/// Makes room where files are made one by one.
fn discard_worthless(job: &Job, store: &Store<'_>, kept: &Kept) -> Result<()> {
    if !store.is_sparse() {
        return Ok(());
    }
    let entries = kept.entries.iter().chain(kept.parts.iter().map(|part| &part.entry));
    let worth: HashSet<&str> =
        entries.flat_map(|entry| entry.planes.iter().map(|plane| plane.file.as_str())).collect();
    let worthless = |file: &usize| !worth.contains(job.layout.files[*file].name.as_str());
    store.open_files().into_iter().filter(worthless).try_for_each(|file| store.discard(file))
}

struct Checking<'a> {
    job: &'a Job,
    store: &'a Store<'a>,
}

impl Checking<'_> {
    fn all(
        &self,
        mut whole: BTreeMap<usize, Entry>,
        mut cut: BTreeMap<usize, BTreeMap<usize, PartEntry>>,
        kept: &mut Kept,
        journal: &mut Journal,
        progress: &dyn Progress,
    ) -> Result<()> {
        let advance =
            |entry: &Entry| progress.advance(Amount { written: bytes_of(entry), ..Amount::default() });
        for tensor in 0..self.job.outputs.len() {
            let planes = &self.job.layout.planes[tensor];
            let done = whole.remove(&tensor);
            let parts = cut.remove(&tensor).unwrap_or_default();
            if let Some(entry) = done {
                let same = self.is_same(planes, &entry.planes)?;
                advance(&entry);
                for (plane, _) in planes.iter().enumerate().filter(|(_, at)| self.store.is_gone(at.file)) {
                    let hash = entry.planes.get(plane).map(|plane| plane.sha256.clone());
                    hash.into_iter().for_each(|hash| _ = kept.gone.insert((tensor, plane), hash));
                }
                if same {
                    kept.entries.push(entry);
                    continue;
                }
            } else {
                parts.values().for_each(|part| advance(&part.entry));
            }
            if !parts.is_empty() {
                self.parts(tensor, parts, kept, journal)?;
            }
        }
        Ok(())
    }

    /// Keeps the segments of a tensor that are good, or notes the tensor if that are all.
    fn parts(
        &self,
        tensor: usize,
        mut parts: BTreeMap<usize, PartEntry>,
        kept: &mut Kept,
        journal: &mut Journal,
    ) -> Result<()> {
        let job = self.job;
        let (output, planes) = (&job.outputs[tensor], &job.layout.planes[tensor]);
        let segments = segments(&*job.source, output, tensor)?;
        let mut found = vec![None; segments.len()];
        let mut good = Vec::new();
        for segment in &segments {
            let Some(part) = parts.remove(&segment.index) else { continue };
            let at = segment.placements(job.formats[tensor], planes);
            if (part.first_weight, part.weights) == (segment.first_weight, segment.weights)
                && self.is_same(&at, &part.entry.planes)?
            {
                found[segment.index] = Some(Stats::noted(&part.entry));
                good.push(part);
            }
        }
        let Some(stats) = sum(&found) else {
            kept.parts.extend(good);
            return Ok(());
        };
        let hashes = plane_hashes(&job.layout, self.store, kept, tensor)?;
        let entry = entry(output, &job.layout, planes, hashes, &stats);
        journal.done(std::slice::from_ref(&entry))?;
        kept.entries.push(entry);
        Ok(())
    }

    /// Whether planes are where they are due, and hold what was noted. What was taken away did when it was.
    fn is_same(&self, due: &[Placement], noted: &[Plane]) -> Result<bool> {
        if due.len() != noted.len() {
            return Ok(false);
        }
        // A file that is not there takes all of the tensor with it, so that is asked first.
        let is_there = |file| self.store.is_open(file) || self.store.is_gone(file);
        if !files_of(due).all(is_there) {
            return Ok(false);
        }
        for (at, plane) in due.iter().zip(noted) {
            let place = (&self.job.layout.files[at.file].name, at.offset, at.len);
            if place != (&plane.file, plane.offset, plane.len) {
                return Ok(false);
            }
            if !self.store.is_gone(at.file) && self.store.hash(*at)? != plane.sha256 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

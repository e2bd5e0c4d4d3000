//! The output's files on the disk. They are made in `<output>.partial/` beside their final place, allocated in full before
//! the first of their weights is written, and moved when whole and synced: no final name ever holds a partial file. Those that an
//! outlet takes never have a final name here.

mod files;
mod room;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use formats::{Layout, layout::OutputFile};

pub use files::Store;

use crate::error::{Error, Result};

/// Where an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Files (one, or the shards of one) in the folder `dir`; the output is spoken of as `path`.
    Files {
        /// What the user named.
        path: PathBuf,
        /// Where the files go.
        dir: PathBuf,
    },
    /// A folder that holds the files.
    Folder(PathBuf),
}

impl Destination {
    /// What the user named.
    pub fn path(&self) -> &Path {
        match self {
            Destination::Files { path, .. } | Destination::Folder(path) => path,
        }
    }

    /// The folder in which the files lie in the end.
    pub fn dir(&self) -> &Path {
        match self {
            Destination::Files { dir, .. } => dir,
            Destination::Folder(path) => path,
        }
    }

    /// The folder in which the output is made.
    pub fn partial(&self) -> PathBuf {
        let mut name = self.path().file_name().map_or_else(|| OsString::from("out"), OsString::from);
        name.push(".partial");
        self.path().with_file_name(name)
    }
}

/// What lies at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// Nothing.
    Nothing,
    /// All files of this very layout: same sizes, same headers (which hold the recipe's hash).
    Same,
    /// Something else, or only some of the files.
    Other,
}

/// Compares what lies at the destination with what this job writes.
///
/// # Errors
/// If a file is there but can't be read.
pub fn present(destination: &Destination, layout: &Layout) -> Result<Present> {
    let (mut found, mut same) = (0, 0);
    for file in &layout.files {
        let there = lies(destination, file)?;
        found += usize::from(there.is_some());
        same += usize::from(there == Some(true));
    }
    Ok(match found {
        _ if found == layout.files.len() && same == found => Present::Same,
        0 if is_empty_or_missing(destination.path()) && !destination.path().is_file() => Present::Nothing,
        _ => Present::Other,
    })
}

/// Compares what lies at the destination with what this job writes there if an outlet takes the files that hold tensors: side
/// files, if any. [`Present::Nothing`] also if they are there already: they do not tell whether the others were taken.
///
/// # Errors
/// If a file is there but can't be read.
pub fn present_beside(destination: &Destination, layout: &Layout) -> Result<Present> {
    if matches!(destination, Destination::Folder(path) if path.is_file()) {
        return Ok(Present::Other);
    }
    for (file, _) in layout.files.iter().zip(holds_tensors(layout)).filter(|(_, tensors)| !tensors) {
        if lies(destination, file)? == Some(false) {
            return Ok(Present::Other);
        }
    }
    Ok(Present::Nothing)
}

/// Whether a file that lies at the destination is this one, as far as its size and its header tell; `None` if there is none.
fn lies(destination: &Destination, file: &OutputFile) -> Result<Option<bool>> {
    let path = destination.dir().join(&file.name);
    let Ok(metadata) = fs::metadata(&path) else { return Ok(None) };
    if metadata.len() != file.len {
        return Ok(Some(false));
    }
    let mut header = vec![0; file.header.len()];
    File::open(&path).and_then(|mut f| f.read_exact(&mut header)).map_err(Error::io(&path))?;
    Ok(Some(header == file.header))
}

/// For each file of a layout, whether it holds tensors: the others are side files.
pub(crate) fn holds_tensors(layout: &Layout) -> Vec<bool> {
    let mut holds = vec![false; layout.files.len()];
    layout.planes.iter().flatten().for_each(|plane| holds[plane.file] = true);
    holds
}

/// Moves the whole files to their final names and removes `partial`. Files that an interrupted call has moved already are
/// passed over.
///
/// # Errors
/// If the system refuses.
pub fn finish(destination: &Destination, layout: &Layout, private: &[&str]) -> Result<()> {
    let (partial, parent) = (destination.partial(), parent(destination));
    match destination {
        Destination::Files { dir, .. } => {
            move_files(&partial, dir, layout)?;
            sync_dir(if dir.as_os_str().is_empty() { &parent } else { dir })?;
        }
        Destination::Folder(path) if is_empty_or_missing(path) => {
            // One atomic rename; the journal goes along.
            fs::rename(&partial, path).map_err(Error::io(&partial))?;
            sync_dir(&parent)?;
        }
        Destination::Folder(path) => {
            remove_stale_shards(path, layout)?;
            move_files(&partial, path, layout)?;
            sync_dir(path)?;
        }
    }
    tidy(destination, private)?;
    sync_dir(&parent)
}

/// Moves what no outlet took, the side files, to their final names. `partial` stays, with the journal. May be called again.
///
/// # Errors
/// If the system refuses.
pub(crate) fn finish_beside(destination: &Destination, layout: &Layout) -> Result<()> {
    if holds_tensors(layout).into_iter().all(|tensors| tensors) {
        return Ok(());
    }
    let parent = parent(destination);
    let dir = if destination.dir().as_os_str().is_empty() { &parent } else { destination.dir() };
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    move_files(&destination.partial(), dir, layout)?;
    sync_dir(dir)?;
    sync_dir(&parent)
}

/// Removes the `partial` folder and all that is in it, if there is one.
///
/// # Errors
/// If the system refuses.
pub(crate) fn remove_partial(destination: &Destination) -> Result<()> {
    let partial = destination.partial();
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&partial)(error)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io(path))
}

/// The folder in which the output lies, be it a file or a folder.
fn parent(destination: &Destination) -> PathBuf {
    match destination.path().parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Removes what a job keeps for itself once its output is in place: the `private` files, and the emptied `partial` folder. A run
/// that was killed just then leaves some of it.
///
/// # Errors
/// If the system refuses.
pub fn tidy(destination: &Destination, private: &[&str]) -> Result<()> {
    let partial = destination.partial();
    let unless_gone = |path: &Path, result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    };
    let folder = match destination {
        Destination::Folder(path) => Some(path.as_path()),
        Destination::Files { .. } => None,
    };
    for dir in folder.into_iter().chain([partial.as_path()]) {
        for name in private {
            let path = dir.join(name);
            unless_gone(&path, fs::remove_file(&path))?;
        }
    }
    unless_gone(&partial, fs::remove_dir(&partial))
}

fn is_empty_or_missing(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

fn move_files(from: &Path, to: &Path, layout: &Layout) -> Result<()> {
    for file in &layout.files {
        let path = from.join(&file.name);
        if path.exists() {
            fs::rename(&path, to.join(&file.name)).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// Loaders take every `model*.safetensors` of a folder: those of an output that is being replaced must go.
fn remove_stale_shards(folder: &Path, layout: &Layout) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let shard = name.starts_with("model") && name.ends_with(".safetensors");
        if shard && layout.files.iter().all(|file| file.name != name) {
            fs::remove_file(entry.path()).map_err(Error::io(&entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::layout::Placement;
    use sha2::{Digest, Sha256};

    use crate::recipe::hex;

    fn layout() -> Layout {
        Layout {
            files: vec![
                OutputFile { name: "a".into(), header: b"head".to_vec(), len: 10 },
                OutputFile { name: "b".into(), header: b"side".to_vec(), len: 4 },
            ],
            ..Layout::default()
        }
    }

    #[test]
    fn files_are_moved_only_when_finished_and_recognised_after() {
        let dir = tempfile::tempdir().expect("dir");
        for destination in [
            Destination::Files { path: dir.path().join("a"), dir: dir.path().to_owned() },
            Destination::Folder(dir.path().join("folder")),
        ] {
            let partial = destination.partial();
            let layout = layout();
            assert_eq!(present(&destination, &layout).expect("present"), Present::Nothing);
            fs::create_dir(&partial).expect("partial");
            fs::write(partial.join("journal"), "").expect("journal");
            let store = Store::open(&partial, &layout).expect("store");
            store.write(0, 4, b"abcdef").expect("write");
            store.sync(0).expect("sync");
            let all = Placement { file: 0, offset: 4, len: 6 };
            assert_eq!(store.hash(all).expect("hash"), hex(&Sha256::digest(b"abcdef")));
            assert_eq!(present(&destination, &layout).expect("present"), Present::Nothing);
            finish(&destination, &layout, &["journal"]).expect("finish");
            assert_eq!(present(&destination, &layout).expect("present"), Present::Same);
            assert_eq!(fs::read(destination.dir().join("a")).expect("a"), b"headabcdef");
            assert!(!partial.exists() && !destination.dir().join("journal").exists());
            let mut other = layout;
            other.files[0].header = b"HEAD".to_vec();
            assert_eq!(present(&destination, &other).expect("present"), Present::Other);
        }
    }

    #[test]
    fn what_a_killed_run_left_of_a_finished_output_goes() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = Destination::Folder(dir.path().join("folder"));
        fs::create_dir(folder.path()).expect("folder");
        fs::write(folder.path().join("journal"), "").expect("journal");
        let files = Destination::Files { path: dir.path().join("a"), dir: dir.path().to_owned() };
        fs::create_dir(files.partial()).expect("partial");
        fs::write(files.partial().join("recipe"), "").expect("recipe");
        for destination in [&folder, &files] {
            tidy(destination, &["journal", "recipe"]).expect("tidy");
            tidy(destination, &["journal", "recipe"]).expect("nothing left to do");
        }
        assert!(is_empty_or_missing(folder.path()) && !files.partial().exists());
    }

    #[test]
    fn an_interrupted_move_goes_on() {
        let dir = tempfile::tempdir().expect("dir");
        let destination = Destination::Files { path: dir.path().join("a"), dir: dir.path().to_owned() };
        fs::create_dir(destination.partial()).expect("partial");
        drop(Store::open(&destination.partial(), &layout()).expect("store"));
        fs::rename(destination.partial().join("a"), dir.path().join("a")).expect("first move");
        finish(&destination, &layout(), &["journal"]).expect("finish");
        assert_eq!(present(&destination, &layout()).expect("present"), Present::Same);
    }
}

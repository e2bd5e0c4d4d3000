//! A folder on this disk: every byte of it is read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::{MOST_NAMED, Problem, Report, is_beside};
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::manifest::{self, Manifest};
use crate::progress::{Progress, Silent};
use crate::sign::{self, Key};
use crate::sums;

/// How deep files are looked for that nothing lists.
const MOST_DEPTH: usize = 8;

/// Checks a folder against its own lists.
///
/// # Errors
/// [`Error::Usage`] if it is no folder; [`Error::Interrupted`] once `cancel` is set. What does not hold is in the report.
pub fn folder(
    folder: &Path,
    key: Option<&Key>,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Report> {
    if !folder.is_dir() {
        let problem =
            if folder.exists() { "is no folder: give the one that it lies in" } else { "is not there" };
        return Err(Error::Usage(format!("{} {problem}", folder.display())));
    }
    let mut report = Report::new(folder.display().to_string(), None);
    let manifest = small(&mut report, folder, manifest::NAME, manifest::MOST_BYTES);
    let sums = small(&mut report, folder, sums::NAME, sums::MOST_BYTES);
    let signature = small(&mut report, folder, sign::NAME, sign::MOST_BYTES);
    let files = report.lists(manifest.as_deref(), sums.as_deref());
    report.signed(manifest.as_deref(), signature.as_deref(), key);
    report.measured();

    let whole = lengths(&mut report, folder, &files);
    progress.begin("checking", whole.iter().map(|file| file.bytes).sum(), 0);
    let paths: Vec<PathBuf> = whole.iter().map(|file| folder.join(&file.name)).collect();
    let digests = digest::of_files(&paths, cancel, progress);
    progress.end();
    for ((file, path), digest) in whole.iter().zip(&paths).zip(digests) {
        report.files += 1;
        match digest {
            Ok(Digest { bytes, .. }) if bytes != file.bytes => {
                report.problem(&file.name, format!("it has {bytes} bytes, not {}", file.bytes));
            }
            Ok(Digest { sha256, bytes }) if sha256 == file.sha256 => report.bytes += bytes,
            Ok(Digest { sha256, .. }) => damaged(&mut report, path, file, &sha256, cancel)?,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => report.problem(&file.name, format!("it can't be read: {error}")),
        }
    }

    let mut found = Vec::new();
    walk(folder, "", 0, &mut found)?;
    found.retain(|name| !is_beside(name) && !files.iter().any(|file| file.name == *name));
    report.unlisted(found);
    Ok(report)
}

/// A file that is read whole; none if it is not there.
fn small(report: &mut Report, folder: &Path, name: &str, most: u64) -> Option<Vec<u8>> {
    let path = folder.join(name);
    let mut text = Vec::new();
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        file => file,
    };
    match file.and_then(|file| file.take(most + 1).read_to_end(&mut text)) {
        Ok(n) if n as u64 > most => report.problem(name, format!("it has more than {most} bytes")),
        Ok(_) => return Some(text),
        Err(error) => report.problem(name, format!("it can't be read: {error}")),
    }
    None
}

/// The files that are there in full length, which are worth hashing.
fn lengths(report: &mut Report, folder: &Path, files: &[manifest::File]) -> Vec<manifest::File> {
    let mut whole = Vec::new();
    for file in files {
        match fs::metadata(folder.join(&file.name)) {
            Ok(found) if !found.is_file() => report.problem(&file.name, "it is no file"),
            Ok(found) if found.len() != file.bytes => {
                let problem = format!("it has {} bytes, not {}", found.len(), file.bytes);
                report.problem(&file.name, problem);
            }
            Ok(_) => whole.push(file.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                report.problem(&file.name, "it is missing");
            }
            Err(error) => report.problem(&file.name, format!("it can't be read: {error}")),
        }
    }
    whole
}

/// Says where a file with a wrong hash is wrong: in which tensors, or outside of all.
fn damaged(
    report: &mut Report,
    path: &Path,
    file: &manifest::File,
    found: &str,
    cancel: &AtomicBool,
) -> Result<()> {
    let whole = format!("its SHA-256 is {found}, not {}", file.sha256);
    let Some(manifest) = &report.manifest else { return Ok(()) };
    let mut wrong = Vec::new();
    let is_model =
        manifest.tensors.iter().flat_map(|tensor| &tensor.planes).any(|plane| plane.file == file.name);
    if !is_model {
        report.problem(&file.name, whole);
        return Ok(());
    }
    let open = File::open(path).map_err(Error::io(path))?;
    for (tensor, plane) in planes(manifest, &file.name) {
        let found = digest::of_range(&open, path, plane.range(), cancel, &Silent)?;
        if found != plane.sha256 {
            let problem = format!(
                "its {} bytes from byte {} on have the SHA-256 {found}, not {}",
                plane.bytes, plane.offset, plane.sha256
            );
            wrong.push(Problem { file: file.name.clone(), tensor: Some(tensor.to_owned()), problem });
        }
    }
    if wrong.is_empty() {
        report.problem(
            &file.name,
            format!("{whole}: bytes of its header or between tensors are wrong, every tensor is right"),
        );
    }
    let more = wrong.len().saturating_sub(MOST_NAMED);
    report.problems.extend(wrong.into_iter().take(MOST_NAMED));
    if more > 0 {
        report.problem(&file.name, format!("{more} more parts of tensors are wrong"));
    }
    Ok(())
}

/// The parts of tensors that lie in a file, with the tensors' names.
fn planes<'a>(manifest: &'a Manifest, file: &'a str) -> impl Iterator<Item = (&'a str, &'a manifest::Plane)> {
    manifest.tensors.iter().flat_map(move |tensor| {
        let here = tensor.planes.iter().filter(move |plane| plane.file == file);
        here.map(|plane| (tensor.name.as_str(), plane))
    })
}

/// All files of a folder. Links to folders are not followed.
fn walk(folder: &Path, start: &str, depth: usize, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let name = format!("{start}{}", entry.file_name().to_string_lossy());
        let is_folder = entry.file_type().map_err(Error::io(folder))?.is_dir();
        if is_folder && depth < MOST_DEPTH && !is_beside(&name) {
            walk(&entry.path(), &format!("{name}/"), depth + 1, found)?;
        } else {
            found.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Signed;
    use crate::manifest::tests::manifest;
    use crate::sums::Sums;

    /// A folder with a model of one tensor in bytes 64 to 100 of its file.
    fn model(folder: &Path) {
        let mut manifest = manifest();
        let contents: [(&str, Vec<u8>); 2] =
            [("m.gguf", (0..100).collect()), ("recipe.toml", b"a = 1".to_vec())];
        for (file, (name, bytes)) in manifest.files.iter_mut().zip(&contents) {
            fs::write(folder.join(name), bytes).expect("file");
            *file = manifest::File {
                name: (*name).into(),
                bytes: bytes.len() as u64,
                sha256: digest::of_bytes(bytes),
            };
        }
        manifest.tensors[0].planes[0].sha256 = digest::of_bytes(&contents[0].1[64..]);
        manifest.recipe.sha256 = manifest.files[1].sha256.clone();
        if let Some(verification) = &mut manifest.verification {
            verification.files = vec![manifest.files[0].clone()];
        }
        let text = manifest.to_json().expect("text");
        let mut sums: std::collections::BTreeMap<_, _> =
            manifest.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
        sums.insert(manifest::NAME.into(), digest::of_bytes(&text));
        fs::write(folder.join(manifest::NAME), text).expect("file");
        fs::write(folder.join(sums::NAME), Sums(sums).to_text()).expect("file");
    }

    fn checked(path: &Path) -> Report {
        folder(path, None, &AtomicBool::new(false), &Silent).expect("report")
    }

    fn problems(change: impl Fn(&Path)) -> Vec<Problem> {
        let dir = tempfile::tempdir().expect("dir");
        model(dir.path());
        change(dir.path());
        checked(dir.path()).problems
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = fs::read(path).expect("file");
        bytes[at] ^= 1;
        fs::write(path, bytes).expect("file");
    }

    #[test]
    fn what_is_whole_holds() {
        let dir = tempfile::tempdir().expect("dir");
        model(dir.path());
        let report = checked(dir.path());
        assert!(report.holds() && report.warnings.is_empty(), "{report:?}");
        assert_eq!((report.files, report.bytes, &report.signature), (2, 105, &Signed::No));
        fs::create_dir_all(dir.path().join(".git/x")).expect("dir");
        fs::create_dir(dir.path().join("sub")).expect("dir");
        for name in [".git/x/y", ".gitattributes", "sub/extra"] {
            fs::write(dir.path().join(name), "").expect("file");
        }
        let report = checked(dir.path());
        assert!(report.holds());
        assert_eq!(report.warnings, ["sub/extra is there, but nothing lists it: it was not checked"]);
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_tensor_or_in_the_header() {
        let [problem] = &problems(|dir| flip(&dir.join("m.gguf"), 70))[..] else { panic!("one problem") };
        assert_eq!((problem.file.as_str(), problem.tensor.as_deref()), ("m.gguf", Some("a")));
        assert!(problem.problem.starts_with("its 36 bytes from byte 64 on"), "{problem:?}");
        let [problem] = &problems(|dir| flip(&dir.join("m.gguf"), 3))[..] else { panic!("one problem") };
        assert_eq!(problem.tensor, None);
        assert!(problem.problem.contains("header"), "{problem:?}");
        let [problem] = &problems(|dir| flip(&dir.join("recipe.toml"), 0))[..] else { panic!("one problem") };
        assert!(
            problem.file == "recipe.toml" && problem.problem.starts_with("its SHA-256 is"),
            "{problem:?}"
        );
    }

    #[test]
    fn files_of_other_lengths_and_missing_ones_are_named() {
        let longer = |dir: &Path| fs::write(dir.join("m.gguf"), vec![0; 101]).expect("file");
        assert_eq!(problems(longer)[0].problem, "it has 101 bytes, not 100");
        let gone = |dir: &Path| fs::remove_file(dir.join("m.gguf")).expect("file");
        assert_eq!(problems(gone)[0].problem, "it is missing");
        let folder = |dir: &Path| {
            fs::remove_file(dir.join("m.gguf")).expect("file");
            fs::create_dir(dir.join("m.gguf")).expect("dir");
        };
        assert_eq!(problems(folder)[0].problem, "it is no file");
        let lists = |dir: &Path| {
            fs::remove_file(dir.join(manifest::NAME)).expect("file");
            fs::remove_file(dir.join(sums::NAME)).expect("file");
        };
        assert_eq!(problems(lists).len(), 2);
    }

    #[test]
    fn a_missing_signature_is_a_problem_where_one_is_wanted() {
        let dir = tempfile::tempdir().expect("dir");
        model(dir.path());
        let keys = minisign::KeyPair::generate_unencrypted_keypair().expect("keys");
        let key = Key::of(&keys.pk.to_base64()).expect("key");
        let report = folder(dir.path(), Some(&key), &AtomicBool::new(false), &Silent).expect("report");
        assert_eq!((report.problems[0].file.as_str(), &report.signature), (sign::NAME, &Signed::Fails));
        assert!(folder(&dir.path().join("m.gguf"), None, &AtomicBool::new(false), &Silent).is_err());
        assert!(folder(&dir.path().join("no"), None, &AtomicBool::new(false), &Silent).is_err());
        let stopped = folder(dir.path(), None, &AtomicBool::new(true), &Silent);
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
}

//! What is written beside the model when it is finished: its card, the manifest and the checksums. Every file is hashed once.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File as DiskFile},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::{Context, Result, bail};
use formats::Source;
use hub::{
    digest,
    manifest::{
        self, Calibration, Divergence, File, Manifest, Plane, Recipe, SourceFile, Target, Tensor,
        Verification,
    },
    progress::Progress,
    repo::is_safe,
    sign,
    sums::{self, Sums},
};
use quantize::{
    fit::{Fit, Wish},
    job::Job,
    journal::Entry,
    outlet::Shipped,
};
use verify::{Outcome, description::ModelFile};

use super::{
    CARD, RECIPE, REPORT, TEXT_FILE, VERIFICATION,
    card::{Subject, card},
    put,
};
use crate::transfers::Transfers;

/// The longest license or notice that is put beside the model.
const MOST_LICENSE: u64 = 1 << 20;

/// A finished model.
pub struct Made<'a> {
    /// What it was made from.
    pub source: &'a Source,
    /// What was wished.
    pub wish: &'a Wish,
    /// What came of it.
    pub fit: &'a Fit,
    /// What became of each tensor, if that is known: not if the model lay there already.
    pub entries: Option<&'a [Entry]>,
    /// The model's files that have left this disk.
    pub gone: &'a [Shipped],
    /// What was measured.
    pub verification: Option<&'a Outcome>,
}

/// Refuses names that could not be published, before hours of work: of the model, of the source's files, of the text.
///
/// # Errors
/// With the name.
pub fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    match names.into_iter().find(|name| !is_safe(name) || name.contains('/')) {
        Some(name) => bail!("{name:?} is no name that can be published: rename it"),
        None => Ok(()),
    }
}

/// Writes licenses, card, manifest and checksums, in this order. Gives the manifest.
pub fn write(out: &Path, made: &Made<'_>, cancel: &AtomicBool) -> Result<Manifest> {
    licenses(made.source, out)?;
    let mut files = hashes(out, made, cancel)?;
    let job = &made.fit.job;
    let is_model = |file: &&File| job.layout.files.iter().any(|other| other.name == file.name);
    let model: Vec<File> = files.iter().filter(is_model).cloned().collect();
    let tensors = tensors(out, made, &model, cancel)?;
    let beside: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let subject = Subject {
        source: made.source,
        wish: made.wish,
        fit: made.fit,
        verification: made.verification,
        files: &model,
        beside: &beside,
    };
    let card = card(&subject)?;
    put(&out.join(CARD), card.as_bytes())?;
    files.push(file(CARD, card.as_bytes()));
    files.sort_by(|a, b| a.name.cmp(&b.name));

    let manifest = manifest(made, files, tensors);
    let text = manifest.to_json()?;
    let path = out.join(manifest::NAME);
    if fs::read(&path).is_ok_and(|before| before != text) {
        // It would be one of another text.
        let _ = fs::remove_file(out.join(sign::NAME));
    }
    put(&path, &text)?;
    let mut sums: BTreeMap<String, String> =
        manifest.files.iter().map(|file| (file.name.clone(), file.sha256.clone())).collect();
    sums.insert(manifest::NAME.to_owned(), digest::of_bytes(&text));
    put(&out.join(sums::NAME), Sums(sums).to_text().as_bytes())?;
    Ok(manifest)
}

fn file(name: &str, bytes: &[u8]) -> File {
    File { name: name.to_owned(), bytes: bytes.len() as u64, sha256: digest::of_bytes(bytes) }
}

/// Puts the source's licenses and notices beside the model: they go with the weights.
fn licenses(source: &Source, out: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(source.path()) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let from = entry.path();
        if is_license(&name)
            && is_safe(&name)
            && from.metadata().is_ok_and(|m| m.is_file() && m.len() <= MOST_LICENSE)
        {
            let text = fs::read(&from).with_context(|| format!("can't read {}", from.display()))?;
            put(&out.join(name), &text)?;
        }
    }
    Ok(())
}

fn is_license(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "NOTICE"].iter().any(|start| upper.starts_with(start))
}

/// Name, length and hash of every file of the folder that is published, apart from those that are still to be written.
fn hashes(out: &Path, made: &Made<'_>, cancel: &AtomicBool) -> Result<Vec<File>> {
    let measured: HashMap<&str, &ModelFile> = made
        .verification
        .iter()
        .flat_map(|outcome| &outcome.model.files)
        .map(|file| (file.name.as_str(), file))
        .collect();
    let gone = made.gone.iter().map(|Shipped { name, bytes, sha256 }| File {
        name: name.clone(),
        bytes: *bytes,
        sha256: sha256.clone(),
    });
    let (mut files, mut unknown): (Vec<File>, Vec<String>) = (gone.collect(), Vec::new());
    for name in names(out, &made.fit.job)? {
        match measured.get(name.as_str()) {
            Some(ModelFile { bytes, sha256: Some(sha256), .. }) => {
                files.push(File { name, bytes: *bytes, sha256: sha256.clone() });
            }
            _ => unknown.push(name),
        }
    }
    let paths: Vec<PathBuf> = unknown.iter().map(|name| out.join(name)).collect();
    let watch = Transfers::new();
    watch.begin("hashing", paths.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum(), 0);
    let digests = digest::of_files(&paths, cancel, &watch);
    watch.end();
    for (name, digest) in unknown.into_iter().zip(digests) {
        let digest = digest?;
        files.push(File { name, bytes: digest.bytes, sha256: digest.sha256 });
    }
    Ok(files)
}

/// The files that are published: those of the model, and what was made or put beside it. What else lies there is nobody's business.
fn names(out: &Path, job: &Job) -> Result<Vec<String>> {
    let entries = fs::read_dir(out).with_context(|| format!("can't read {}", out.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_unfinished = name.starts_with('.') || name.ends_with(".part");
        let is_later = [CARD, manifest::NAME, sign::NAME, sums::NAME].contains(&name.as_str());
        if !entry.path().is_file() || is_unfinished || is_later {
            continue;
        }
        let is_model = job.layout.files.iter().any(|file| file.name == name);
        let is_beside = [RECIPE, VERIFICATION, REPORT, TEXT_FILE].contains(&name.as_str());
        if is_safe(&name) && (is_model || is_beside || is_license(&name)) {
            names.push(name);
        } else {
            eprintln!(
                "warning: {name:?} in {} is no part of this model: it is not listed, nor published",
                out.display()
            );
        }
    }
    names.sort();
    Ok(names)
}

/// Every tensor with its hashes: those that were noted when it was written, or those of a manifest of the same bytes; else they
/// are made from the file.
fn tensors(out: &Path, made: &Made<'_>, model: &[File], cancel: &AtomicBool) -> Result<Vec<Tensor>> {
    let job = &made.fit.job;
    let tensor = |index: usize, planes: Vec<Plane>| Tensor {
        name: job.outputs[index].name.clone(),
        format: job.formats[index].name.to_owned(),
        shape: job.outputs[index].shape.clone(),
        planes,
    };
    if let Some(entries) = made.entries.filter(|entries| entries.len() == job.outputs.len()) {
        let noted = entries.iter().enumerate().map(|(index, entry)| {
            let planes = entry.planes.iter().map(|plane| Plane {
                file: plane.file.clone(),
                offset: plane.offset,
                bytes: plane.len,
                sha256: plane.sha256.clone(),
            });
            tensor(index, planes.collect())
        });
        return Ok(noted.collect());
    }
    if let Some(tensors) = known(out, job, model) {
        return Ok(tensors);
    }
    let dir = job.destination.dir();
    let watch = Transfers::new();
    watch.begin("hashing tensors", job.tensors_bytes(), 0);
    let hashed = (0..job.outputs.len()).map(|index| {
        let planes = job.layout.planes[index].iter().map(|place| {
            let name = &job.layout.files[place.file].name;
            let path = dir.join(name);
            let open = DiskFile::open(&path).with_context(|| format!("can't read {}", path.display()))?;
            let range = place.offset..place.offset + place.len;
            let sha256 = digest::of_range(&open, &path, range, cancel, &watch)?;
            Ok(Plane { file: name.clone(), offset: place.offset, bytes: place.len, sha256 })
        });
        Ok(tensor(index, planes.collect::<Result<_>>()?))
    });
    let hashed = hashed.collect();
    watch.end();
    hashed
}

/// The tensors of a manifest that an earlier run wrote for the same recipe and the same bytes.
fn known(out: &Path, job: &Job, model: &[File]) -> Option<Vec<Tensor>> {
    let text = fs::read(out.join(manifest::NAME)).ok()?;
    let before = Manifest::parse(manifest::NAME, &text).ok()?;
    let same_files = model.iter().all(|file| before.file(&file.name) == Some(file));
    let same_tensors = before.tensors.len() == job.outputs.len()
        && before.tensors.iter().zip(&job.outputs).all(|(tensor, output)| tensor.name == output.name);
    (before.recipe.sha256 == job.recipe.hash() && same_files && same_tensors).then_some(before.tensors)
}

fn manifest(made: &Made<'_>, files: Vec<File>, tensors: Vec<Tensor>) -> Manifest {
    let job = &made.fit.job;
    let recipe = &job.recipe;
    let mut manifest = Manifest {
        version: manifest::VERSION,
        tool: recipe.tool.clone(),
        source: source(made.source, job),
        recipe: Recipe { file: RECIPE.to_owned(), sha256: recipe.hash() },
        container: recipe.container.name().to_owned(),
        format: recipe.format.clone(),
        bits_per_weight: job.bits_per_weight(),
        weights: job.weights(),
        target: recipe.target.as_ref().map(|target| Target {
            name: target.name.clone(),
            context: target.context,
            parallel: target.parallel,
            kv: target.kv.clone(),
        }),
        calibration: recipe.calibration.as_ref().map(|calibration| Calibration {
            text_sha256: calibration.text.clone(),
            context: calibration.context as u64,
            chunks: calibration.chunks as u64,
            rounding: calibration.rounding.name().to_owned(),
            device: calibration.device.clone(),
        }),
        files,
        tensors,
        verification: None,
    };
    let measured: Vec<File> = manifest.model_files().into_iter().cloned().collect();
    manifest.verification = made.verification.map(|outcome| verification(outcome, measured));
    manifest
}

fn source(source: &Source, job: &Job) -> manifest::Source {
    let known: HashMap<String, &String> = job
        .source
        .files()
        .iter()
        .filter_map(|file| Some((super::file_name(&file.path), file.sha256.as_ref()?)))
        .collect();
    let files = job.recipe.source.iter().map(|file| SourceFile {
        name: file.name.clone(),
        bytes: file.bytes,
        sha256: known.get(&file.name).map(|hash| (*hash).clone()),
        index_sha256: file.index_sha256.clone(),
    });
    manifest::Source {
        name: source.name(),
        repo: source.origin().map(|origin| origin.repo.clone()),
        commit: source.origin().map(|origin| origin.commit.clone()),
        files: files.collect(),
    }
}

fn verification(outcome: &Outcome, files: Vec<File>) -> Verification {
    let metrics = &outcome.metrics;
    Verification {
        protocol: outcome.protocol.clone(),
        input: File {
            name: outcome.input.name.clone(),
            bytes: outcome.input.bytes,
            sha256: outcome.input.sha256.clone().unwrap_or_default(),
        },
        tokens_scored: metrics.tokens_scored,
        perplexity: metrics.perplexity,
        perplexity_error: metrics.perplexity_stderr,
        divergence: metrics.divergence.as_ref().map(|divergence| Divergence {
            reference_perplexity: divergence.reference_perplexity,
            mean_kld: divergence.mean_kld,
            mean_kld_error: divergence.mean_kld_stderr,
            kld_99_9: divergence.kld_percentiles.p999,
            same_top1: divergence.same_top1,
            rms_dp: divergence.rms_dp,
        }),
        files,
    }
}

//! Publishing what was made: behind it, or file by file while the next ones are still being made.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use hub::api::Hash;
use hub::progress::Progress;
use hub::publish::{Published, Publisher};
use hub::{Client, Manifest};
use quantize::{
    Error,
    job::Job,
    outlet::{Outlet, Shipped},
};

use super::file_name;
use crate::{
    args,
    publish_verb::{self, To},
    source,
    transfers::Transfers,
};

/// When a model is published, if at all.
pub enum Publication {
    /// Never.
    No,
    /// When it is whole.
    After(To),
    /// File by file, each of which leaves this disk.
    Meanwhile(Box<Leaving>),
}

/// Where it goes, as the command line says. What can't end well is refused before hours of work.
pub fn to(args: &args::Shrink) -> Result<Option<To>> {
    let Some(repo) = &args.to_hub.publish else { return Ok(None) };
    if is_asked(args) && !args.no_verify {
        bail!(Error::Usage(
            "with --publish and --disk the files leave this disk one by one, and what is gone can't be verified: say --no-verify, and \
             verify the repository afterwards (halfbyte verify hf:OWNER/NAME --against SOURCE --text FILE)"
                .into()
        ));
    }
    source::client()?.can_publish()?;
    let hub = &args.to_hub;
    To::new(repo, hub.private, hub.pr, hub.sign_key.as_deref()).map(Some)
}

impl Publication {
    /// Opens it for a job.
    pub fn open(to: Option<To>, args: &args::Shrink, job: &Job, name: &str) -> Result<Publication> {
        Ok(match (to, args.disk) {
            (None, _) => Publication::No,
            (Some(to), Some(disk)) if is_asked(args) => {
                Publication::Meanwhile(Box::new(Leaving::open(to, job, name, disk)?))
            }
            (Some(to), _) => Publication::After(to),
        })
    }

    /// What takes files away while the next ones are made.
    pub fn outlet(&self) -> Option<&dyn Outlet> {
        match self {
            Publication::Meanwhile(leaving) => Some(&**leaving),
            Publication::No | Publication::After(_) => None,
        }
    }

    /// The commit at which an earlier run's files, which have left this disk, are all there.
    pub fn already(&self, folder: &Path, job: &Job) -> Result<Option<String>> {
        match self {
            Publication::Meanwhile(leaving) => leaving.already(folder, job),
            Publication::No | Publication::After(_) => Ok(None),
        }
    }

    /// Publishes the folder, and all of it at once becomes what the repository shows.
    pub fn finish(
        self,
        folder: &Path,
        job: &Job,
        manifest: &Manifest,
        gone: &[Shipped],
    ) -> Result<Option<Published>> {
        let (to, publisher) = match self {
            Publication::No => return Ok(None),
            Publication::After(to) => {
                let Manifest { source, container, format, bits_per_weight, .. } = manifest;
                let title = publish_verb::title(&source.name, container, format, *bits_per_weight);
                let progress: Arc<dyn Progress> = Arc::new(Transfers::new());
                let publisher = to.open(&source::client()?, &manifest.recipe.sha256, title, &progress)?;
                (to, publisher)
            }
            Publication::Meanwhile(leaving) => {
                let Leaving { to, publisher, .. } = *leaving;
                (to, publisher.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
            }
        };
        to.sign(folder, manifest)?;
        let (published, _) = to.upload(publisher, folder, manifest, gone)?;
        if !gone.is_empty() {
            quantize::run::forget(job)?;
        }
        Ok(Some(published))
    }
}

/// A publication that begins before the model is whole.
pub struct Leaving {
    to: To,
    client: Arc<Client>,
    publisher: Mutex<Publisher>,
    room: u64,
}

/// How the bytes that `--disk` allows are shared: half for the source, half for the output.
pub fn share(disk: u64) -> u64 {
    disk / 2
}

/// The largest file of an output that leaves: two of them, and what they are longer than planned, have room at a time.
pub fn shard_size(disk: u64) -> u64 {
    share(disk) / 5 * 2
}

/// Whether finished files leave: where the disk is bounded and there is somewhere to go. What is calibrated is written all over until
/// the end.
pub fn is_asked(args: &args::Shrink) -> bool {
    args.disk.is_some() && args.to_hub.publish.is_some() && args.calibrate.calibrate.is_none()
}

impl Leaving {
    fn open(to: To, job: &Job, name: &str, disk: u64) -> Result<Leaving> {
        let client = source::client()?;
        let progress: Arc<dyn Progress> = Arc::new(Transfers::quiet());
        let title =
            publish_verb::title(name, job.recipe.container.name(), &job.recipe.format, job.bits_per_weight());
        let publisher = to.open(&client, &job.recipe.hash(), title, &progress)?;
        Ok(Leaving { to, client, publisher: Mutex::new(publisher), room: share(disk) })
    }

    /// The commit at which the main branch has all that a manifest of this very job lists, if it does.
    fn already(&self, folder: &Path, job: &Job) -> Result<Option<String>> {
        let Ok(text) = std::fs::read(folder.join(hub::manifest::NAME)) else { return Ok(None) };
        let Ok(manifest) = Manifest::parse(hub::manifest::NAME, &text) else { return Ok(None) };
        if manifest.recipe.sha256 != job.recipe.hash() {
            return Ok(None);
        }
        let Some(tree) = hub::publish::present(&self.client, &self.to.repo)? else { return Ok(None) };
        // What left this disk, the Hub knows by its SHA-256.
        let is_there = |file: &hub::manifest::File| {
            tree.find(&file.name).is_some_and(|there| {
                there.bytes == file.bytes && there.hash == Hash::Sha256(file.sha256.clone())
            })
        };
        let left = job.layout.planes.iter().flatten().map(|plane| plane.file).collect::<BTreeSet<_>>();
        let mut left = left.into_iter().map(|file| manifest.file(&job.layout.files[file].name));
        Ok(left.all(|file| file.is_some_and(is_there)).then_some(tree.commit))
    }
}

impl Outlet for Leaving {
    fn room(&self) -> u64 {
        self.room
    }

    fn take(&self, path: &Path, file: &Shipped) -> quantize::Result<()> {
        let mut publisher = self.publisher.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match publisher.put(path, &file.name, file.bytes, &file.sha256) {
            Ok(_) => Ok(()),
            Err(error) => {
                let source = std::io::Error::other(error);
                Err(Error::Io { path: file_name(path).into(), source })
            }
        }
    }
}

//! What a user names as a model: a path of this disk, or a repository on a Hub.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use formats::Source;
use hub::{Client, Named, Settings, progress::Progress, scratch, snapshot::Snapshot};

use crate::interrupt::interruptible;
use crate::transfers::Transfers;

/// What of a model's weights is needed here.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// Names, types and shapes: headers are read by range, and no file is fetched.
    Headers,
    /// All of them: fetched into the cache, or, if that is said, passed through so many bytes of the disk.
    Weights {
        /// Ceiling for what of the source lies on this disk at a time.
        disk: Option<u64>,
    },
}

/// The model that a command line names.
pub fn open(named: &Path, need: Need) -> Result<Source> {
    let Some(named) = Named::of_source(named)? else { return Ok(named.into()) };
    let (client, progress) = (client()?, Arc::new(Transfers::new()));
    let snapshot = Snapshot::find(&client, &named, &*progress)?;
    let missing = snapshot.missing();
    let quiet: Arc<dyn Progress> = Arc::new(Transfers::quiet());
    Ok(match need {
        // What is there need not be asked for.
        _ if missing == 0 => snapshot.fetched(&client, &*progress)?,
        Need::Weights { disk: None } => snapshot.fetched(&client, &*progress)?,
        Need::Weights { disk: Some(budget) } => scratch::stream(&client, &snapshot, budget, &quiet)?,
        Need::Headers => scratch::stream(&client, &snapshot, 0, &quiet)?,
    })
}

/// A client for the Hub that the environment names.
pub fn client() -> Result<Arc<Client>> {
    Ok(Arc::new(Client::new(Settings::from_env()?, interruptible()?)))
}

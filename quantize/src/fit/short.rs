//! When nothing fits: by how much, and what would do it.

use crate::{
    budget::{KvType, Run},
    error::Result,
    fit::{Search, Wish},
};

/// By how much a model is too large even in the smallest types.
#[derive(Clone, Debug, PartialEq)]
pub struct Short {
    /// Bytes too many.
    pub missing: u64,
    /// Bytes of the smallest allocation's tensors.
    pub smallest: u64,
    /// Bytes of the cache.
    pub cache: u64,
    /// Bytes of the engine's buffers, at most, on one device.
    pub buffers: u64,
    /// What to change in how it runs, each by itself enough, the mildest first.
    pub changes: Vec<Change>,
}

/// Another way to run it, with which it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The way.
    pub run: Run,
    /// Bytes of its cache.
    pub cache: u64,
}

/// A context below this is of no use.
const LEAST_CONTEXT: u64 = 2048;

/// What to say when a search found nothing.
pub fn too_large(search: &Search<'_>, missing: u64) -> Result<Short> {
    let cache = search.model.cache_bytes();
    let changes = match search.wish.target {
        Some(_) => changes(search.wish.run, |run| with(search, run))?,
        None => Vec::new(),
    };
    let buffers = search.buffers(0)?.iter().map(|buffer| buffer.bytes.high).sum();
    Ok(Short { missing, smallest: search.costs.smallest(), cache, buffers, changes })
}

/// Of the ways to run it that take less, those with which it fits, as `with` tells; of the shorter contexts the longest.
pub fn changes(run: Run, mut with: impl FnMut(Run) -> Result<Option<Change>>) -> Result<Vec<Change>> {
    let kinds = [KvType::Q8_0, KvType::Q4_0].into_iter().filter(|&kv| kv != run.kv);
    let kinds = kinds.map(|kv| Run { kv, ..run });
    let halves = std::iter::successors(Some(run.context / 2), |context| Some(context / 2));
    let halves = halves.take_while(|&context| context >= LEAST_CONTEXT).map(|context| Run { context, ..run });
    let single = (run.parallel > 1).then_some(Run { parallel: 1, ..run });
    let mut changes = Vec::new();
    for other in kinds.chain(single).chain(halves) {
        if let Some(change) = with(other)? {
            changes.push(change);
            if other.context < run.context {
                break;
            }
        }
    }
    Ok(changes)
}

/// Whether the smallest allocation fits if it runs so.
fn with(search: &Search<'_>, run: Run) -> Result<Option<Change>> {
    // Some models can't have a quantized cache.
    let Some(model) = search.model.running(run) else { return Ok(None) };
    let wish = Wish { run, ..search.wish.clone() };
    let fits = Search { wish: &wish, model: &model, ..*search }.run()?.is_ok();
    Ok(fits.then_some(Change { run, cache: model.cache_bytes() }))
}

//! From the last hidden states to the figures. The vocabulary is gone through a stretch at a time, for all tokens at once: the head's
//! weights are decoded once, and logits are never held for more than a stretch.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use kernels::divergence::State;

use crate::error::{Error, Result};
use crate::forward::{Forward, VOCABULARY_TILE};
use crate::metrics::{Comparison, Metrics, measure};
use crate::progress::{Phase, Progress};

/// Tokens that are scored at once.
const TOKENS: usize = 4096;

/// Measures how well the tokens of `targets` (row of the states before it, token) are predicted, and how far from the reference.
///
/// # Errors
/// If weights or states can't be read, or [`measure`] finds figures impossible; [`Error::Interrupted`] once `cancel` is set.
pub fn score(
    model: &Forward<'_>,
    reference: Option<&Forward<'_>>,
    targets: &[(usize, u32)],
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Metrics> {
    let vocabulary = model.vocabulary();
    let stretches: Vec<Range<usize>> = (0..vocabulary)
        .step_by(VOCABULARY_TILE)
        .map(|first| first..vocabulary.min(first + VOCABULARY_TILE))
        .collect();
    let (mut nll, mut comparisons) = (Vec::new(), Vec::new());
    progress.begin(Phase::Scoring, targets.len().div_ceil(TOKENS) * stretches.len());
    let mut steps = 0;
    for targets in targets.chunks(TOKENS) {
        let (rows, tokens): (Vec<usize>, Vec<u32>) = targets.iter().copied().unzip();
        let ours = model.finish(&rows)?;
        let theirs = reference.map(|reference| reference.finish(&rows)).transpose()?;
        let mut states = vec![State::default(); targets.len()];
        for stretch in &stretches {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            model.score(&ours, reference.zip(theirs.as_ref()), stretch.clone(), &tokens, &mut states)?;
            steps += 1;
            progress.done(steps);
        }
        for state in &states {
            let found = state.finish();
            nll.push(found.nll);
            comparisons.extend(found.against.map(|reference| Comparison {
                reference_nll: reference.nll,
                kld: reference.kld,
                same_top: reference.same_top,
            }));
        }
    }
    progress.end();
    measure(&nll, reference.map(|_| &comparisons[..]))
}

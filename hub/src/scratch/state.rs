//! What of a model's files is here, what is on its way, and what is still to be read.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

/// All that changes while files come and go.
#[derive(Default)]
pub(super) struct State {
    /// What is whole.
    pub here: HashMap<usize, Here>,
    /// Bytes of files that are not whole.
    pub partial: HashMap<usize, u64>,
    /// Files that somebody waits for, in the order of their asking.
    pub asked: Vec<usize>,
    pub plan: Option<Plan>,
    /// Counts reads.
    pub clock: u64,
    /// Why no more will come.
    pub failed: Option<String>,
    /// Nobody reads any more.
    pub over: bool,
    /// Whether somebody fetches.
    pub started: bool,
    /// Nothing of it is of use to a later run.
    pub done: bool,
}

impl State {
    /// Bytes of the budget that are taken.
    pub fn taken(&self) -> u64 {
        self.here.values().map(|here| here.bytes).chain(self.partial.values().copied()).sum()
    }
}

/// A whole file.
pub(super) struct Here {
    pub file: Arc<File>,
    pub last_read: u64,
    /// What it takes of the budget.
    pub bytes: u64,
}

/// What will be read.
pub(super) struct Plan {
    /// Files in the order in which they are first read.
    pub order: Vec<usize>,
    /// The last step that reads each.
    pub last: HashMap<usize, usize>,
    /// Steps that are settled.
    pub settled: usize,
}

impl Plan {
    pub fn is_done_with(&self, file: usize) -> bool {
        self.last.get(&file).is_none_or(|&last| last < self.settled)
    }
}

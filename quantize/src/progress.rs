//! How a job tells what it does, without knowing a terminal.

/// A stretch of work with a known amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Hashing what an earlier run wrote. Counted in written bytes.
    Checking,
    /// Running the model over a text, and rounding its weights by it. Counted in weights.
    Calibrating,
    /// Reading, encoding and writing weights.
    Quantizing,
    /// Decoding what was written and its source. Counted in weights.
    Comparing,
    /// Trying tensors in a forward pass, see [`measure`](crate::measure). Counted in layers, as if they were weights.
    Measuring,
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes of the source.
    pub read: u64,
    /// Bytes of the output.
    pub written: u64,
    /// Weights.
    pub weights: u64,
}

/// Somebody who watches.
pub trait Progress: Sync {
    /// A phase begins; `total` is all its work, of which `done` was done by an earlier run.
    fn begin(&self, phase: Phase, total: Amount, done: Amount);
    /// That much more is done.
    fn advance(&self, more: Amount);
    /// The phase is over.
    fn end(&self);
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Phase, _: Amount, _: Amount) {}
    fn advance(&self, _: Amount) {}
    fn end(&self) {}
}

//! How an evaluation tells what it does, without knowing a terminal.

/// A stretch of work with a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Comparing the weights of both models. Steps are tensors.
    Weights,
    /// All tokens through one layer after the other. Steps are layers.
    Layers,
    /// From the last hidden states to the figures. Steps are chunks.
    Scoring,
}

impl Phase {
    /// What is being done, in one word.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Weights => "weights",
            Phase::Layers => "layers",
            Phase::Scoring => "scoring",
        }
    }

    /// What a step is.
    pub fn step(self) -> &'static str {
        match self {
            Phase::Weights => "tensor",
            Phase::Layers => "layer",
            Phase::Scoring => "chunk",
        }
    }
}

/// Somebody who watches.
pub trait Progress: Sync {
    /// A phase begins, of so many steps.
    fn begin(&self, phase: Phase, steps: usize);
    /// So many of its steps are done.
    fn done(&self, steps: usize);
    /// The phase is over.
    fn end(&self);
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: Phase, _: usize) {}
    fn done(&self, _: usize) {}
    fn end(&self) {}
}

//! A job: the checkpoint, what each of its tensors becomes, and where every byte goes. Made from headers alone.

use std::path::PathBuf;

use formats::{Layout, OutputTensor, TensorSource, scales::Scales};
use kernels::Format;

use crate::{
    error::Result,
    mix::{Fallback, ModelFacts},
    pass::Pass,
    recipe::Recipe,
    store::Destination,
    weighted::Weighted,
    work::Kept,
};

/// Everything that decides the output's bytes, and where they go.
pub struct Job {
    /// The checkpoint.
    pub source: Box<dyn TensorSource>,
    /// The block scales of its FP8 weights.
    pub scales: Scales,
    /// The tensors to write, in the order of the file.
    pub outputs: Vec<OutputTensor>,
    /// The format of each.
    pub formats: Vec<&'static Format>,
    /// What their columns weigh; all the same if absent.
    pub weighted: Option<Weighted>,
    /// What the mixes went by.
    pub facts: ModelFacts,
    /// The place of each, and every header.
    pub layout: Layout,
    /// The choices.
    pub recipe: Recipe,
    /// Where the output goes.
    pub destination: Destination,
    /// Tensors whose rows the wanted format can't hold.
    pub fallbacks: Vec<Fallback>,
    /// What the user should know before the job is run.
    pub warnings: Vec<String>,
}

impl Job {
    /// Number of weights in all output tensors.
    pub fn weights(&self) -> u64 {
        self.outputs.iter().map(OutputTensor::elements).sum()
    }

    /// Bytes of an output tensor in the files.
    pub fn tensor_bytes(&self, index: usize) -> u64 {
        self.layout.tensor_bytes(index)
    }

    /// Bytes of all output tensors.
    pub fn tensors_bytes(&self) -> u64 {
        (0..self.outputs.len()).map(|index| self.tensor_bytes(index)).sum()
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.layout.files.iter().map(|file| file.len).sum()
    }

    /// Bits per weight over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        self.tensors_bytes() as f64 * 8.0 / self.weights().max(1) as f64
    }

    /// What a loader is given: the model's first file, or its folder.
    pub fn first_file(&self) -> PathBuf {
        match &self.destination {
            Destination::Folder(path) => path.clone(),
            Destination::Files { dir, .. } => dir.join(&self.layout.files[0].name),
        }
    }

    /// The streaming pass over this job's weights, with buffers of `memory` bytes and `threads` cores.
    pub fn pass(&self, memory: u64, threads: usize) -> Pass<'_> {
        Pass {
            source: &*self.source,
            scales: &self.scales,
            outputs: &self.outputs,
            formats: &self.formats,
            weighted: self.weighted.as_ref(),
            layout: &self.layout,
            allow_nonfinite: self.recipe.allow_nonfinite,
            memory,
            threads,
        }
    }

    /// Bytes of source that the job reads.
    ///
    /// # Errors
    /// If a source tensor can't be read as weights.
    pub fn source_bytes(&self) -> Result<u64> {
        let pass = self.pass(u64::MAX, 1);
        Ok(pass.amount(&pass.work(&Kept::default())?)?.read)
    }
}

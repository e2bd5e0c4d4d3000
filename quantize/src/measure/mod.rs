//! What each type costs each tensor of this very model: measured by a forward pass over a little text, without backpropagation.
//!
//! The cost is a share of the mean KL divergence from the unquantized model, in nats, so that the costs of an allocation add up to
//! its predicted divergence (the linearity of Malinovskii et al., "Pushing the Limits of Large Language Model Quantization via the
//! Linearity Theorem", 2024). It is found with one type, the [`BASE`], and scaled to the others:
//!
//! - of each tensor, the divergence when it alone is quantized: by a copy of the hidden states that begins at its layer and is run
//!   to the end, beside all the others' copies ([`run`]);
//! - where there are too many tensors, of the attention or the MLP of a layer; of each tensor then its share of that, by the
//!   change of the layer's output when it alone is quantized ([`energy`]);
//! - of each type, its error beside the base's, at the tensor's outputs: with what the tensor was multiplied with, of which [`probe`]
//!   took a sample ([`ratio`]).
//!
//! A share by the change of the output is a worse guess: on tiny-llama it is off by a factor of 1.6 (the root mean square of the
//! ratio's logarithm), too much for what writes to the stream, too little for what an activation stands behind.
//!
//! A layer is computed once for each of its tensors, and the weights are never held but for what is in work.

pub mod energy;
pub mod probe;
pub mod ratio;
pub mod run;
pub mod text;

use std::sync::atomic::AtomicBool;

use formats::{Content, OutputTensor, Source, TensorId, output::Class};
use kernels::{Format, q4_0::Q4_0};
use serde::Serialize;
use verify::{Processor, weights::Weights};

use crate::{calibrate::Rounding, error::Result, progress::Progress};

/// The type in which tensors are tried. Its error is large enough to be seen in single precision, and small enough that
/// divergences add up.
pub const BASE: &Format = &Q4_0;

/// What part of the damage of rounding to nearest is left of a product's weights when they are rounded by its inputs. A table that is
/// looked up has no inputs, and all of its damage is left. Found by predictions for rounding to nearest against what files with error
/// feedback measured: 0.23 (SmolLM2, four sizes), 0.38 (tiny-llama), 0.41 (tiny-deepseek); with searched scales by the same ratio of
/// their products' squared errors.
fn left(rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => 1.0,
        Rounding::Search => 0.6,
        Rounding::Feedback => 0.3,
    }
}

/// What is to be measured, and with what.
pub struct Request<'a> {
    /// The text that the model reads.
    pub text: &'a str,
    /// Tokens of a piece of it.
    pub context: usize,
    /// How weights will be rounded.
    pub rounding: Rounding,
    /// The types to choose from.
    pub candidates: &'a [&'static Format],
    /// What computes.
    pub processor: Processor,
    /// Threads that compute; all cores if not given. They do not change the figures.
    pub threads: Option<usize>,
    /// Bytes of hidden states and buffers; what is more goes to the disk.
    pub memory: u64,
}

/// The costs of all tensors that were tried.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Tokens that the model read.
    pub tokens: usize,
    /// Of those, the ones at which divergences were taken.
    pub scored: usize,
    /// The types, in the order of the costs.
    pub formats: Vec<&'static str>,
    /// By GGUF's names and in its conventions, whatever the container is that will be written.
    pub tensors: Vec<TensorCosts>,
}

/// What a tensor costs.
#[derive(Clone, Debug, Serialize)]
pub struct TensorCosts {
    /// GGUF's name of the tensor.
    pub name: String,
    /// Where its weights come from, and how many.
    #[serde(skip)]
    pub sources: Vec<(TensorId, u64)>,
    /// Its cost in [`BASE`], in nats.
    pub base: f64,
    /// Its cost in each type, in nats; none where its rows are no whole blocks.
    pub costs: Vec<Option<f64>>,
}

impl TensorCosts {
    fn new(tensor: &OutputTensor, base: f64, ratios: &[Option<f64>]) -> TensorCosts {
        let sources = match &tensor.content {
            Content::Parts(parts) => parts.iter().map(|part| (part.source, part.weights())).collect(),
            Content::Values(_) => Vec::new(),
        };
        let costs = ratios.iter().map(|ratio| ratio.map(|ratio| base * ratio)).collect();
        TensorCosts { name: tensor.name.clone(), sources, base, costs }
    }

    /// Adds what the same tensor costs in another place.
    fn add(&mut self, other: &TensorCosts) {
        self.base += other.base;
        let both =
            |(cost, other): (&mut Option<f64>, &Option<f64>)| *cost = cost.zip(*other).map(|(a, b)| a + b);
        self.costs.iter_mut().zip(&other.costs).for_each(both);
    }
}

/// Whether a tensor is tried.
fn is_tried(tensor: &OutputTensor) -> bool {
    tensor.quantizable && tensor.class != Class::Router && BASE.holds_row(tensor.columns())
}

/// Measures a model.
///
/// # Errors
/// If the source can't be read or has no graph or tokenizer, the text is too short, or a hidden state is no number;
/// [`verify::Error::Interrupted`] once `cancel` is set.
pub fn measure(
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Measured> {
    let weights = Weights::open(source)?;
    let sequences = text::sequences(&weights.checkpoint, request.text, request.context)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(request.threads.unwrap_or(0))
        .build()
        .map_err(|error| crate::Error::Io { path: "threads".into(), source: std::io::Error::other(error) })?;
    pool.install(|| run::Run { weights: &weights, sequences, request, progress, cancel }.measure())
}

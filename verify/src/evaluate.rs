//! One evaluation, from options to outcome: both models side by side, layer by layer, then their last hidden states against
//! each other.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use formats::Source;
use rayon::ThreadPoolBuilder;

use crate::description::{Model, ModelFile};
use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::outcome::{LayerDamage, Outcome, TensorDamage};
use crate::progress::{Phase, Progress};
use crate::store::Space;
use crate::weights::Weights;
use crate::windows::Windows;
use crate::{damage, logits, score};

/// Evaluates a model, against another if there is one.
///
/// # Errors
/// Whatever [`Error`] says; [`Error::Interrupted`] once `cancel` is set.
pub fn evaluate(options: &Options, progress: &dyn Progress, cancel: &AtomicBool) -> Result<Outcome> {
    let threads = options.threads.unwrap_or(0);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::Io { path: "threads".into(), source: std::io::Error::other(error) })?;
    pool.install(|| Evaluation { options, progress, cancel }.run())
}

/// The model's forward pass, and the reference's.
type Forwards<'m> = (Forward<'m>, Option<Forward<'m>>);

struct Evaluation<'a> {
    options: &'a Options,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

impl Evaluation<'_> {
    fn run(&self) -> Result<Outcome> {
        let start = Instant::now();
        let options = self.options;
        let model = Weights::open(&options.model)?;
        let reference = options.against.as_ref().map(Weights::open).transpose()?;
        let windows = Windows::of(options, &model.checkpoint, reference.as_ref().map(|r| &r.checkpoint))?;

        // Half of the memory for what outlives an operation, the rest for what is in work.
        let space = Space::new(options.memory / 2);
        let (processor, precision) = (&options.processor, options.precision);
        let forward = |weights| {
            let (tokens, memory) = (&windows.sequences, options.memory / 4);
            Forward::new(weights, weights, processor, precision, tokens, &space, memory)
        };
        let forwards: Forwards = (forward(&model)?, reference.as_ref().map(forward).transpose()?);
        if let Some(reference) = &forwards.1 {
            let (model, reference) = (forwards.0.vocabulary(), reference.vocabulary());
            if model != reference {
                return Err(Error::Vocabularies { model, reference });
            }
        }
        // What was evaluated is hashed meanwhile, at the pace of a disk.
        let (computed, described) = thread::scope(|scope| {
            let described = scope.spawn(|| self.describe(&model, reference.as_ref()));
            let computed = self.compute(forwards, &windows);
            (computed.map(|computed| (computed, start.elapsed().as_secs_f64())), described.join())
        });
        let ((layers, metrics), seconds) = computed?;
        let (described, against, input) = described.unwrap_or_else(|panic| resume_unwind(panic))?;

        let tensors = match &reference {
            Some(reference) => self.tensors(&model, reference)?,
            None => Vec::new(),
        };
        Ok(Outcome {
            model: described,
            reference: against,
            input,
            protocol: windows.protocol.clone() + &options.arithmetic(),
            metrics,
            layers,
            tensors,
            tokens_per_second: windows.tokens() as f64 / seconds.max(1e-9),
            seconds,
            peak_rss_bytes: None,
        })
    }

    /// The figures of each layer and of the whole.
    fn compute(&self, mut forwards: Forwards, windows: &Windows) -> Result<(Vec<LayerDamage>, Metrics)> {
        let layers = self.layers(&mut forwards.0, forwards.1.as_mut())?;
        let targets = windows.targets();
        let metrics = score::score(&forwards.0, forwards.1.as_ref(), &targets, self.progress, self.cancel)?;
        if let Some(path) = &self.options.logits {
            logits::write(path, &forwards.0, windows, self.progress, self.cancel)?;
        }
        Ok((layers, metrics))
    }

    /// The model, what it is measured against, and the input, with their hashes.
    fn describe(
        &self,
        model: &Weights,
        reference: Option<&Weights>,
    ) -> Result<(Model, Option<Model>, ModelFile)> {
        let options = self.options;
        let describe =
            |source: &Source, weights: &Weights| Model::describe(source, &weights.checkpoint, self.cancel);
        let against = options.against.as_ref().zip(reference);
        Ok((
            describe(&options.model, model)?,
            against.map(|(source, weights)| describe(source, weights)).transpose()?,
            ModelFile::hashed(options.input.path(), self.cancel)?,
        ))
    }

    fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Runs all layers of both models, and compares their states after each if they have as many.
    fn layers(
        &self,
        model: &mut Forward<'_>,
        mut reference: Option<&mut Forward<'_>>,
    ) -> Result<Vec<LayerDamage>> {
        let theirs = reference.as_ref().map_or(0, |reference| reference.layers());
        let comparable = reference.as_ref().is_some_and(|r| {
            (r.layers(), r.hidden.store.width) == (model.layers(), model.hidden.store.width)
        });
        let count = model.layers().max(theirs);
        let mut damages = Vec::new();
        self.progress.begin(Phase::Layers, count);
        for layer in 0..count {
            self.check()?;
            if layer < model.layers() {
                model.layer(layer)?;
            }
            if let Some(reference) = reference.as_deref_mut().filter(|_| layer < theirs) {
                self.check()?;
                reference.layer(layer)?;
                if comparable {
                    damages.push(damage::of_layer(layer, &model.hidden, &reference.hidden)?);
                }
            }
            self.progress.done(layer + 1);
        }
        self.progress.end();
        Ok(damages)
    }

    /// Compares the weights of both models.
    fn tensors(&self, model: &Weights, reference: &Weights) -> Result<Vec<TensorDamage>> {
        let mut damages = Vec::new();
        self.progress.begin(Phase::Weights, model.tensors.len());
        for index in 0..model.tensors.len() {
            self.check()?;
            damages.extend(damage::of_tensor(index, model, reference)?);
            self.progress.done(index + 1);
        }
        self.progress.end();
        Ok(damages)
    }
}

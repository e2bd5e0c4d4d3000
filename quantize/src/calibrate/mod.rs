//! Calibration: what the weights are multiplied with decides how they are rounded.
//!
//! The core of `verify` runs the model layer by layer over a text; between its graph and the weights stands a [`rounder`], which
//! rounds every weight by the moments ([`moments`]) of its inputs the moment before it is first used, writes it, and lets the
//! product be taken with what was written. So one forward pass does all, every input carries the damage of what came before it,
//! and never more than one linear's moments are held (and those of what a layer's experts share).
//!
//! One pass can feed several outputs: [`places`] finds the same rows in each. The products are taken with what the first of them
//! has.
//!
//! What the graph never multiplies (norms, what a family leaves out, embeddings) is left to the streaming pass, but for a head,
//! whose inputs are the final hidden states.
//!
//! [`imatrix`] has llama.cpp's importance-matrix files, [`text`] the text that calibration takes when the user has none.

mod gather;
pub mod imatrix;
mod moments;
mod places;
pub mod report;
mod round;
mod rounder;
pub mod text;

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use formats::Source;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use verify::forward::Forward;
use verify::options::Precision;
use verify::store::Space;
use verify::weights::Weights;
use verify::windows::Windows;
use verify::{Processor, Tokenizer};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::progress::{Amount, Phase, Progress};
use crate::recipe::hex;
use crate::run::{self, Begun, Outcome, RunOptions, Session};
use imatrix::Importance;
use moments::Moments;
use report::Rounded;
use rounder::{Rounder, lock};

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each to the nearest of the format's numbers, with scales searched for the least plain squared error.
    Nearest,
    /// With scales searched for the least squared error weighted by importance, the mean square of each column's inputs.
    Search,
    /// Column by column, each taking up the error of those before it as far as the inputs go together (GPTQ, Frantar et al.,
    /// <https://arxiv.org/abs/2210.17323>), with scales searched under the same metric.
    Feedback,
}

impl Rounding {
    /// The word for it on the command line and in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Nearest => "nearest",
            Rounding::Search => "search",
            Rounding::Feedback => "feedback",
        }
    }
}

/// What a job is calibrated on, as its recipe says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// SHA-256 of the text.
    pub text: String,
    /// Tokens of a chunk.
    pub context: usize,
    /// Chunks, at even distances through the text.
    pub chunks: usize,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// The graphics processor that the model was run on, if it was one: what it rounds otherwise may round weights otherwise.
    #[serde(default)]
    pub device: Option<String>,
}

impl Calibration {
    /// On a text.
    pub fn new(
        text: &str,
        context: usize,
        chunks: usize,
        rounding: Rounding,
        processor: &Processor,
    ) -> Calibration {
        // Rounding to nearest runs no model.
        let device = processor.gpu_name().filter(|_| rounding != Rounding::Nearest);
        Calibration { text: hex(&Sha256::digest(text)), context, chunks, rounding, device }
    }

    /// What stands in the recipe.
    pub(crate) fn to_toml(&self) -> String {
        let Calibration { text, context, chunks, rounding, device } = self;
        let rounding = rounding.name();
        let device = device.as_ref().map(|name| format!(", device = {}", toml::Value::from(name.as_str())));
        let device = device.unwrap_or_default();
        format!(
            "{{ text = \"{text}\", context = {context}, chunks = {chunks}, rounding = \"{rounding}\"{device} }}"
        )
    }
}

/// What a model is run over, and on what.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// The text.
    pub text: &'a str,
    /// What the linears get is added here, but for a head's inputs, as llama-imatrix does.
    pub seen: Option<&'a Mutex<Importance>>,
    /// What runs it.
    pub processor: &'a Processor,
}

/// Runs jobs that were planned for the same checkpoint at `source` with the same calibration, on `text`: one pass writes them all.
/// Gives for each how it ended, and what was done to each tensor that was calibrated. The model is not evaluated if weights are
/// rounded to nearest or all outputs are there already.
///
/// # Errors
/// As [`run::run`], and whatever keeps the model from being evaluated.
pub fn run(
    source: &Source,
    jobs: &[Job],
    text: Text<'_>,
    options: RunOptions,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Vec<(Outcome, Vec<Rounded>)>> {
    let Some(calibration) = jobs.first().and_then(|job| job.recipe.calibration.as_ref()) else {
        return Err(Error::Usage("the job was planned without a calibration".into()));
    };
    if calibration.text != hex(&Sha256::digest(text.text)) {
        return Err(Error::Usage(format!(
            "the text to calibrate on is another than the recipe's, whose SHA-256 is {}",
            calibration.text
        )));
    }
    let mut over: Vec<Option<Outcome>> = Vec::new();
    let mut sessions = Vec::new();
    for job in jobs {
        match run::begin(job, options.overwrite, None, progress)? {
            Begun::Over(outcome) => over.push(Some(outcome)),
            Begun::Open(session) => {
                over.push(None);
                sessions.push(*session);
            }
        }
    }
    let mut open = if sessions.is_empty() || calibration.rounding == Rounding::Nearest {
        sessions.into_iter().map(|session| (session, Vec::new())).collect()
    } else {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|error| Error::Usage(format!("can't start {} threads: {error}", options.threads)))?;
        let pass = Pass { source, calibration, text, options, progress, cancel };
        pool.install(|| pass.run(sessions)).map_err(unwrapped)?
    }
    .into_iter();
    let mut ended = Vec::new();
    for over in over {
        match over {
            Some(outcome) => ended.push((outcome, Vec::new())),
            None => {
                if let Some((session, report)) = open.next() {
                    ended.push((session.complete(options, progress, cancel)?, report));
                }
            }
        }
    }
    Ok(ended)
}

/// An error of the rounder's, which came back through the core.
fn unwrapped(error: Error) -> Error {
    match error {
        Error::Model(verify::Error::Tap(inner)) => match inner.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => Error::Model(verify::Error::Tap(other)),
        },
        other => other,
    }
}

/// The forward pass that calibrates.
struct Pass<'a> {
    source: &'a Source,
    calibration: &'a Calibration,
    text: Text<'a>,
    options: RunOptions,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

/// Tokens whose final states are taken at once.
const TOKENS: usize = 512;

impl Pass<'_> {
    fn run<'s>(&self, sessions: Vec<Session<'s>>) -> Result<Vec<(Session<'s>, Vec<Rounded>)>> {
        let weights = Weights::open(self.source)?;
        let tokens = self.tokens(&weights)?;
        let sum = |of: fn(&Job) -> u64| sessions.iter().map(|session| of(session.job)).sum();
        let total = Amount { read: 0, written: sum(Job::tensors_bytes), weights: sum(Job::weights) };
        self.progress.begin(Phase::Calibrating, total, Amount::default());
        let result = self.layers(&weights, &tokens, sessions);
        self.progress.end();
        result
    }

    fn layers<'s>(
        &self,
        weights: &Weights,
        tokens: &[Vec<u32>],
        sessions: Vec<Session<'s>>,
    ) -> Result<Vec<(Session<'s>, Vec<Rounded>)>> {
        let rounding = self.calibration.rounding;
        let rounder = Rounder::new(weights, sessions, rounding, self.text.seen, self.progress, self.cancel);
        let space = Space::new(self.options.memory / 2);
        // Every weight meets all tokens at once: the moments of its inputs must be known before it is used.
        let memory = u64::MAX;
        let mut forward =
            Forward::new(weights, &rounder, self.text.processor, Precision::F32, tokens, &space, memory)?;
        for layer in 0..forward.layers() {
            forward.layer(layer)?;
            rounder.settle()?;
        }
        let tied = weights.find("output.weight").is_none();
        let head = weights.index(if tied { "token_embd.weight" } else { "output.weight" });
        if let Some(head) = head {
            let mut moments = final_moments(&forward)?;
            if tied {
                moments.blend(TIED);
            }
            rounder.weigh_by(head, &moments)?;
            rounder.settle()?;
        }
        drop(forward);
        if let Some(seen) = self.text.seen {
            lock(seen).chunks += tokens.len() as u32;
        }
        Ok(rounder.into_sessions())
    }

    /// The chunks of the text, at even distances.
    fn tokens(&self, weights: &Weights) -> Result<Vec<Vec<u32>>> {
        let tokenizer = Tokenizer::of(&weights.checkpoint)?;
        let all = tokenizer.encode(self.text.text)?;
        let mut windows = Windows::chunks(&all, tokenizer.bos(), self.calibration.context, None)?.sequences;
        let (there, wanted) = (windows.len(), self.calibration.chunks.min(windows.len()));
        let kept = (0..wanted).map(|i| std::mem::take(&mut windows[i * there / wanted]));
        Ok(kept.collect())
    }
}

/// How much of the identity, relative to the mean of the diagonal, goes into the moments by which a tied embedding is rounded: it
/// is a head, but its rows are also looked up, and then every column counts the same.
const TIED: f32 = 0.3;

/// The moments of what the head is applied to.
fn final_moments(forward: &Forward<'_>) -> Result<Moments> {
    let rows = forward.hidden.store.rows;
    let mut sum: Option<Moments> = None;
    for first in (0..rows).step_by(TOKENS) {
        let rows: Vec<usize> = (first..rows.min(first + TOKENS)).collect();
        let values = forward.finished(&rows)?;
        let columns = values.len() / rows.len();
        sum.get_or_insert_with(|| Moments::none(columns)).add(&values);
    }
    Ok(sum.unwrap_or_else(|| Moments::none(0)))
}

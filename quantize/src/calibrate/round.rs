//! Rounding of some rows by what they are multiplied with: scales searched by importance, or codes with error feedback, whichever
//! errs less on tokens that neither saw.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use kernels::factor::{self, Factor};
use kernels::{Format, Isa, feedback};
use rayon::prelude::*;

use super::Rounding;
use super::moments::{Inputs, Judge, Moments};
use super::report::Rounded;
use crate::error::{Error, Result};

/// Rows that one core rounds at a time.
const ROWS: usize = feedback::ROWS;

/// Rows, at even distances, by which search and feedback are compared.
const JUDGED: usize = 256;

/// Tokens below which nothing can be said of how columns go together.
const FEW: usize = 32;

/// What is added to the diagonal of the moments, relative to its mean, for each column per token. Found on four linears of
/// SmolLM2, calibrated on 2,048 tokens and judged on as many others.
const DAMPING: f32 = 0.35;
const LEAST_DAMPING: f32 = 0.005;

/// What an error costs.
pub(crate) struct Metric {
    /// Of each column on its own.
    pub importance: Vec<f32>,
    /// How many tokens it is known from.
    tokens: usize,
    /// And of all columns together.
    inputs: Option<Inputs>,
    /// Factors of the moments, by the length of a format's blocks, which decides the order of columns.
    factors: Mutex<HashMap<usize, Arc<Factor>>>,
    /// Judges by the tokens that were held out.
    judge: OnceLock<Judge>,
}

impl Metric {
    /// From a linear's inputs.
    pub fn new(inputs: Inputs, rounding: Rounding) -> Metric {
        let tokens = inputs.fitted.tokens + inputs.held_out.tokens;
        let importance = inputs.fitted.importance();
        let inputs = (rounding == Rounding::Feedback).then_some(inputs);
        Metric { importance, tokens, inputs, factors: Mutex::default(), judge: OnceLock::new() }
    }

    /// Each column on its own.
    pub fn importance(importance: Vec<f32>) -> Metric {
        Metric { importance, tokens: 0, inputs: None, factors: Mutex::default(), judge: OnceLock::new() }
    }

    /// The factor of the moments, damped.
    fn factor(&self, moments: &Moments, format: &Format) -> Result<Arc<Factor>> {
        let mut factors = self.factors.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(factor) = factors.get(&format.block) {
            return Ok(Arc::clone(factor));
        }
        let k = moments.columns;
        let diagonal: Vec<f32> = (0..k).map(|i| moments.values[i * k + i]).collect();
        // The fewer tokens there are for so many columns, the less their moments are worth beyond these tokens.
        let damping = LEAST_DAMPING.max(DAMPING * k as f32 / moments.tokens.max(1) as f32).min(1.0);
        let order = factor::order(&diagonal, format.block);
        let factor = Factor::new(Isa::detect(), moments.values.clone(), order, damping)
            .map_err(|error| Error::Usage(format!("the inputs of a tensor can't be used: {error}")))?;
        let factor = Arc::new(factor);
        factors.insert(format.block, Arc::clone(&factor));
        Ok(factor)
    }
}

/// Rounded rows.
pub(crate) struct Made {
    /// Their bytes in each plane.
    pub planes: Vec<Vec<u8>>,
    /// What they stand for now.
    pub decoded: Vec<f32>,
    pub rounded: Rounded,
}

/// Rounds `rows` [n, columns].
pub(crate) fn round(format: &'static Format, metric: &Metric, rows: &[f32]) -> Result<Made> {
    let mut rounded = Rounded { matrices: 1, fewest_tokens: metric.tokens as u64, ..Rounded::default() };
    let enough = |inputs: &&Inputs| inputs.fitted.tokens >= FEW && format.lattice.is_some();
    let Some(inputs) = metric.inputs.as_ref().filter(enough) else {
        let (planes, decoded) = search(format, metric, rows)?;
        return Ok(Made { planes, decoded, rounded });
    };
    let k = inputs.fitted.columns;
    let (planes, decoded) = feed_back(format, &*metric.factor(&inputs.fitted, format)?, rows);
    let judge = metric.judge.get_or_init(|| {
        Judge::new(if inputs.held_out.tokens >= FEW { &inputs.held_out } else { &inputs.fitted })
    });
    let sampled = sample(rows, k);
    let damage = |decoded: &[f32]| {
        let errors: Vec<f32> = sampled.iter().zip(decoded).map(|(w, d)| w - d).collect();
        judge.energy(&errors)
    };
    rounded.energy = judge.energy(&sampled);
    rounded.searched = damage(&search(format, metric, &sampled)?.1);
    rounded.written = damage(&sample(&decoded, k));
    if rounded.written < rounded.searched {
        rounded.fed_back = 1;
        return Ok(Made { planes, decoded, rounded });
    }
    rounded.written = rounded.searched;
    let (planes, decoded) = search(format, metric, rows)?;
    Ok(Made { planes, decoded, rounded })
}

/// Rows at even distances.
fn sample(rows: &[f32], k: usize) -> Vec<f32> {
    let count = rows.len() / k;
    let taken = count.min(JUDGED);
    (0..taken).flat_map(|i| &rows[i * count / taken * k..][..k]).copied().collect()
}

/// Scales searched by importance.
fn search(format: &'static Format, metric: &Metric, rows: &[f32]) -> Result<(Vec<Vec<u8>>, Vec<f32>)> {
    let encode = format.encode.ok_or(Error::ReadOnly { format: format.name })?;
    let k = metric.importance.len();
    let usable = metric.importance.iter().any(|&value| value > 0.0);
    let importance = usable.then_some(metric.importance.as_slice());
    Ok(in_pieces(format, k, rows, |rows, planes| encode(format, Isa::detect(), rows, importance, planes)))
}

/// Codes with error feedback.
fn feed_back(format: &'static Format, factor: &Factor, rows: &[f32]) -> (Vec<Vec<u8>>, Vec<f32>) {
    in_pieces(format, factor.k(), rows, |rows, planes| {
        feedback::round(Isa::detect(), format, factor, rows, planes);
    })
}

/// Some rows at a time on all cores: their bytes, and what these stand for.
fn in_pieces(
    format: &'static Format,
    k: usize,
    rows: &[f32],
    encode: impl Fn(&[f32], &mut [&mut [u8]]) + Sync,
) -> (Vec<Vec<u8>>, Vec<f32>) {
    let mut decoded = vec![0.0; rows.len()];
    let pieces: Vec<Vec<Vec<u8>>> = rows
        .par_chunks(ROWS * k)
        .zip(decoded.par_chunks_mut(ROWS * k))
        .with_max_len(1)
        .map(|(rows, decoded)| {
            let blocks = rows.len() / format.block;
            let mut planes: Vec<Vec<u8>> =
                format.planes.iter().map(|bytes| vec![0; blocks * bytes]).collect();
            let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
            encode(rows, &mut out);
            let written: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            (format.decode)(format, Isa::detect(), &written, decoded);
            planes
        })
        .collect();
    let mut planes = vec![Vec::new(); format.planes.len()];
    for piece in pieces {
        planes.iter_mut().zip(piece).for_each(|(all, piece)| all.extend(piece));
    }
    (planes, decoded)
}

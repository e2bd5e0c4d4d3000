//! The proof of a lossless conversion: the written files stand for the numbers that the source stands for.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::{Content, OutputTensor, Source, rows::Stored};
use rayon::prelude::*;
use verify::weights::Weights;

use crate::{
    error::{Error, Result},
    progress::{Amount, Phase, Progress},
};

/// Weights that are compared at a time.
const AT_ONCE: usize = 1 << 18;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Proof {
    /// Tensors.
    pub tensors: u64,
    /// Weights in all of them.
    pub weights: u64,
}

/// Compares every weight of `written` and of its `source`: the numbers that codes, scales and offsets stand for. (Consumers that compute
/// in 16 bits round them, each in its own way.)
///
/// # Errors
/// [`Error::Different`] for a row that differs; [`Error::Interrupted`] if `cancel` is set; and whatever
/// reading finds.
pub fn prove(
    source: &Source,
    written: &Source,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Proof> {
    let (theirs, ours) = (Weights::open(source)?, Weights::open(written)?);
    // What is computed has no source.
    let compared = |tensor: &&OutputTensor| matches!(tensor.content, Content::Parts(_));
    let weights = ours.tensors.iter().filter(compared).map(OutputTensor::elements).sum();
    progress.begin(Phase::Comparing, Amount { weights, ..Amount::default() }, Amount::default());
    let all = ours.tensors.iter().enumerate().filter(|(_, tensor)| compared(tensor));
    let outcome = all.clone().try_for_each(|(index, tensor)| {
        let different = |detail: String| Error::Different { tensor: tensor.name.clone(), detail };
        let Some(other) = theirs.index(&tensor.name) else {
            return Err(different("the source has no such tensor".to_owned()));
        };
        let found = &theirs.tensors[other].shape;
        if *found != tensor.shape {
            return Err(different(format!("its shape is {:?}, the source's {found:?}", tensor.shape)));
        }
        let (rows, columns) = (tensor.rows() as usize, tensor.columns() as usize);
        let step = (AT_ONCE / columns.max(1)).max(1);
        (0..rows.div_ceil(step)).into_par_iter().try_for_each(|piece| {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { partial: written.path().to_owned() });
            }
            let range = piece * step..rows.min((piece + 1) * step);
            // Floats hold what a consumer of the source decodes, which may round.
            let is_float = matches!(ours.stored(index), Some(Stored::Block(format)) if format.block == 1);
            let of = if is_float { decoded } else { numbers };
            let (a, b) = (of(&theirs, other, range.clone())?, of(&ours, index, range.clone())?);
            let length = columns.max(1);
            if let Some(row) = range.zip(a.chunks(length).zip(b.chunks(length))).find(|(_, (a, b))| a != b) {
                return Err(different(format!("row {} stands for other numbers", row.0)));
            }
            progress.advance(Amount { weights: a.len() as u64, ..Amount::default() });
            Ok(())
        })
    });
    progress.end();
    outcome?;
    Ok(Proof { tensors: all.count() as u64, weights })
}

/// What rows of a tensor stand for.
fn numbers(model: &Weights, index: usize, rows: Range<usize>) -> Result<Vec<f64>> {
    if let Some(Stored::Block(format)) = model.stored(index) {
        let mut planes = vec![Vec::new(); format.planes.len()];
        let weights = rows.len() * model.tensors[index].columns() as usize;
        model.stored_rows(index, rows, &mut planes)?;
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; weights];
        kernels::moves::numbers(format, &planes, &mut out);
        return Ok(out);
    }
    decoded(model, index, rows)
}

/// The same as consumers decode it.
fn decoded(model: &Weights, index: usize, rows: Range<usize>) -> Result<Vec<f64>> {
    let mut out = vec![0.0; rows.len() * model.tensors[index].columns() as usize];
    model.rows(index, rows, &mut out)?;
    Ok(out.into_iter().map(f64::from).collect())
}

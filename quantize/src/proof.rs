//! The proof of a lossless conversion: the written files stand for the numbers that the source stands for.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::{Source, rows::Stored};
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
    let weights = ours.tensors.iter().map(|tensor| tensor.elements()).sum();
    progress.begin(Phase::Comparing, Amount { weights, ..Amount::default() }, Amount::default());
    let compared = ours.tensors.iter().enumerate().try_for_each(|(index, tensor)| {
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
            let (a, b) = (numbers(&theirs, other, range.clone())?, numbers(&ours, index, range.clone())?);
            if let Some(row) = range.zip(a.chunks(columns).zip(b.chunks(columns))).find(|(_, (a, b))| a != b)
            {
                return Err(different(format!("row {} stands for other numbers", row.0)));
            }
            progress.advance(Amount { weights: a.len() as u64, ..Amount::default() });
            Ok(())
        })
    });
    progress.end();
    compared?;
    Ok(Proof { tensors: ours.tensors.len() as u64, weights })
}

/// What rows of a tensor stand for.
fn numbers(model: &Weights, index: usize, rows: Range<usize>) -> Result<Vec<f64>> {
    let mut out = vec![0.0; rows.len() * model.tensors[index].columns() as usize];
    if let Some(Stored::Block(format)) = model.stored(index) {
        let mut planes = vec![Vec::new(); format.planes.len()];
        model.stored_rows(index, rows, &mut planes)?;
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        kernels::moves::numbers(format, &planes, &mut out);
        return Ok(out);
    }
    let mut decoded = vec![0.0; out.len()];
    model.rows(index, rows, &mut decoded)?;
    out.iter_mut().zip(decoded).for_each(|(out, decoded)| *out = f64::from(decoded));
    Ok(out)
}

//! How far hidden states are from others.

use rayon::prelude::*;
use verify::hidden::Hidden;

use crate::error::Result;

/// Rows that are compared at once.
const ROWS: usize = 256;

/// The mean over all tokens of ‖x − y‖² / ‖y‖², where y is the reference's state of the token. Relative, for the next norm takes a
/// state's length away: some tokens' states are a thousand times as long as others'.
///
/// # Errors
/// If the states can't be read.
pub fn change(states: &Hidden, reference: &Hidden) -> Result<f64> {
    let (rows, width) = (reference.store.rows, reference.store.width);
    let (mut ours, mut theirs, mut sum) = (Vec::new(), Vec::new(), 0.0);
    for first in (0..rows).step_by(ROWS) {
        let part = first..rows.min(first + ROWS);
        ours.resize(part.len() * width, 0.0);
        theirs.resize(part.len() * width, 0.0);
        states.store.read(part.clone(), &mut ours)?;
        reference.store.read(part, &mut theirs)?;
        let tokens = ours.par_chunks(width).zip(theirs.par_chunks(width)).map(|(x, y)| relative(x, y));
        sum += tokens.collect::<Vec<f64>>().iter().sum::<f64>();
    }
    Ok(sum / rows.max(1) as f64)
}

/// ‖x − y‖² / ‖y‖².
fn relative(x: &[f32], y: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&x, &y) in x.iter().zip(y) {
        let (x, y) = (f64::from(x), f64::from(y));
        difference += (x - y) * (x - y);
        norm += y * y;
    }
    if norm > 0.0 { difference / norm } else { 0.0 }
}

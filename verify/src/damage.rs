//! Where a model's damage is: how far its hidden states and its weights are from the reference's.

use std::ops::Range;

use formats::output::Class;
use kernels::Isa;
use kernels::stats;
use rayon::prelude::*;

use crate::error::Result;
use crate::hidden::Hidden;
use crate::outcome::{LayerDamage, TensorDamage};
use crate::weights::Weights;

/// Values that are compared at once.
const CHUNK: usize = 1 << 18;

/// The hidden states after `layer` against the reference's, over all tokens.
///
/// # Errors
/// If the states can't be read.
pub fn of_layer(layer: usize, model: &Hidden, reference: &Hidden) -> Result<LayerDamage> {
    let (rows, width) = (reference.store.rows, reference.store.width);
    let some = (CHUNK / width.max(1)).max(1);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut error, mut energy, mut cosines) = (0.0, 0.0, 0.0);
    for first in (0..rows).step_by(some) {
        let part = first..rows.min(first + some);
        ours.resize(part.len() * width, 0.0);
        theirs.resize(part.len() * width, 0.0);
        model.store.read(part.clone(), &mut ours)?;
        reference.store.read(part, &mut theirs)?;
        let sums: Vec<[f64; 3]> = ours.par_chunks(width).zip(theirs.par_chunks(width)).map(token).collect();
        for [squared, norm, cosine] in sums {
            error += squared;
            energy += norm;
            cosines += cosine;
        }
    }
    let relative_error = (error / energy.max(f64::MIN_POSITIVE)).sqrt();
    Ok(LayerDamage { layer, relative_error, cosine: cosines / rows.max(1) as f64 })
}

/// ‖a − b‖², ‖b‖² and the cosine between both, of a token's states.
fn token((a, b): (&[f32], &[f32])) -> [f64; 3] {
    let (mut difference, mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        difference += (a - b) * (a - b);
        aa += a * a;
        bb += b * b;
        ab += a * b;
    }
    // Two states of zero point the same way.
    let cosine = if aa == 0.0 && bb == 0.0 { 1.0 } else { ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE) };
    [difference, bb, cosine]
}

/// The weights of tensor `index` against those of the reference's tensor of the same name. None if the reference has no such
/// tensor, or one of another shape, or if it is a vector.
///
/// # Errors
/// If the weights can't be read.
pub fn of_tensor(index: usize, model: &Weights, reference: &Weights) -> Result<Option<TensorDamage>> {
    let tensor = &model.tensors[index];
    if matches!(tensor.class, Class::Vector | Class::RouterBias | Class::Decay) {
        return Ok(None);
    }
    let Some(other) = reference.index(&tensor.name) else { return Ok(None) };
    if reference.tensors[other].elements() != tensor.elements()
        || reference.tensors[other].columns() != tensor.columns()
    {
        return Ok(None);
    }
    let (rows, columns) = (tensor.rows() as usize, tensor.columns() as usize);
    let some = (CHUNK / columns.max(1)).max(1);
    let parts: Vec<Range<usize>> =
        (0..rows).step_by(some).map(|first| first..rows.min(first + some)).collect();
    let compare = |(ours, theirs): &mut (Vec<f32>, Vec<f32>), part: Range<usize>| -> Result<_> {
        ours.resize(part.len() * columns, 0.0);
        theirs.resize(part.len() * columns, 0.0);
        model.rows(index, part.clone(), ours)?;
        reference.rows(other, part, theirs)?;
        let damage = stats::damage(Isa::detect(), theirs, ours);
        Ok((damage.squared_error, damage.squared_norm))
    };
    let sums: Vec<(f64, f64)> =
        parts.into_par_iter().map_init(Default::default, compare).collect::<Result<_>>()?;
    let (error, energy) = sums.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    let (snr_db, relative_rmse) = TensorDamage::ratios(error, energy);
    let (format, bits_per_weight) = model.stored_as(index);
    Ok(Some(TensorDamage {
        name: tensor.name.clone(),
        class: tensor.class.name(),
        format,
        bits_per_weight,
        snr_db,
        relative_rmse,
    }))
}

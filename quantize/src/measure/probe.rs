//! [`Probe`]: the weights as they are but for some tensors, which come quantized; and a sample of what weights are multiplied with.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::RwLock,
};

use kernels::{Isa, matrix::Matrix};
use verify::{
    tap::Tap,
    weights::{Linear, Weights},
};

use super::BASE;
use crate::encode::round;

/// Inputs of a product that are kept, and products of the same tensor (its experts, or parts) of which they are.
const INPUTS: usize = 256;
const PRODUCTS: usize = 4;

/// Inputs of rows of a tensor.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The rows that were multiplied with them.
    pub rows: Range<usize>,
    /// Rows of as many values as the tensor has columns, each of length 1: all tokens count alike.
    pub values: Vec<f32>,
}

/// Stands between a graph and the weights.
pub struct Probe<'a> {
    weights: &'a Weights,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    quantized: HashSet<usize>,
    /// By tensor, while they are kept.
    inputs: Option<HashMap<usize, Vec<Inputs>>>,
}

impl<'a> Probe<'a> {
    /// Nothing quantized, nothing kept.
    pub fn new(weights: &'a Weights) -> Probe<'a> {
        Probe { weights, state: RwLock::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// From now on these tensors, and no others, come in [`BASE`].
    pub fn quantize(&self, tensors: &[usize]) {
        self.with(|state| state.quantized = tensors.iter().copied().collect());
    }

    /// From now on inputs are kept.
    pub fn keep(&self) {
        self.with(|state| state.inputs = Some(HashMap::new()));
    }

    /// The inputs that were kept, by tensor; no more are from now on.
    pub fn kept(&self) -> HashMap<usize, Vec<Inputs>> {
        self.with(|state| state.inputs.take()).unwrap_or_default()
    }
}

impl State {
    /// Keeps some rows of `x`, which `w` is multiplied with.
    fn keep(&mut self, x: Matrix<'_>, w: &Linear) {
        let Some(inputs) = &mut self.inputs else { return };
        let products = inputs.entry(w.tensor).or_default();
        let index = match products.iter().position(|product| product.rows == w.rows) {
            Some(index) => index,
            None if products.len() < PRODUCTS => {
                products.push(Inputs { rows: w.rows.clone(), values: Vec::new() });
                products.len() - 1
            }
            None => return,
        };
        let values = &mut products[index].values;
        // Where tokens come in several blocks, the first fill it.
        let left = INPUTS - values.len() / x.columns.max(1);
        for row in (0..x.rows).step_by(x.rows.div_ceil(INPUTS).max(1)).take(left) {
            let row = x.row(row);
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let factor = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            values.extend(row.iter().map(|&x| (f64::from(x) * factor) as f32));
        }
    }
}

impl Tap for Probe<'_> {
    fn product(&self, x: Matrix<'_>, w: &Linear) -> verify::Result<()> {
        self.with(|state| state.keep(x, w));
        Ok(())
    }

    fn rows(&self, tensor: usize, rows: Range<usize>, out: &mut [f32]) -> verify::Result<()> {
        self.weights.rows(tensor, rows, out)?;
        let state = self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.quantized.contains(&tensor) {
            round(Isa::detect(), BASE, out);
        }
        Ok(())
    }
}

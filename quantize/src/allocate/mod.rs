//! Allocation: the format of each tensor, so that all of them fit a number of bytes and the model loses least.
//!
//! The cost of a format for a tensor is [`measured`] on the model, or else the tensor's share of its class's
//! [`sensitivity`](sensitivity::sensitivity()) times the relative squared error that the format makes; the choice among all tensors
//! is a [`knapsack`].

use std::collections::HashMap;

use formats::{OutputTensor, TensorSource, output::Class, scales::Scales};
use kernels::Format;

pub mod errors;
pub mod knapsack;
mod measured;
pub mod rules;
pub mod sensitivity;

use crate::error::Result;
use knapsack::Choice;
use sensitivity::{depth, sensitivity};

/// What is chosen from.
pub struct Question<'a> {
    /// The tensors of the output.
    pub outputs: &'a [OutputTensor],
    /// What those have that are not chosen for.
    pub fixed: &'a [&'static Format],
    /// What the engine runs.
    pub candidates: &'a [&'static Format],
    /// Each plane of a tensor takes a multiple of these bytes.
    pub align: u64,
}

/// The costs of every choice.
pub struct Costs {
    /// For each tensor that is chosen for: its index, and the formats it can have.
    tensors: Vec<(usize, Vec<&'static Format>)>,
    /// What each takes and costs.
    items: Vec<Vec<Choice>>,
    /// Bytes of the other tensors.
    fixed: u64,
}

/// A choice for every tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// In the tensors' order.
    pub formats: Vec<&'static Format>,
    /// Bytes of all tensors, each plane aligned.
    pub bytes: u64,
    /// What it costs: comparable with other allocations of the same model; in nats of mean divergence if costs were measured.
    pub cost: f64,
}

impl Question<'_> {
    /// Whether the format of a tensor is open. A router decides which experts run: it stays as it is.
    pub fn is_open(&self, output: &OutputTensor) -> bool {
        output.quantizable && output.class != Class::Router
    }

    /// The bytes of a tensor in a format, if its rows are whole blocks.
    pub fn bytes(&self, output: &OutputTensor, format: &Format) -> Option<u64> {
        if !format.holds_row(output.columns()) {
            return None;
        }
        (0..format.planes.len()).try_fold(0u64, |sum, plane| {
            let bytes = format.plane_bytes(plane, output.elements())?;
            sum.checked_add(bytes.checked_next_multiple_of(self.align.max(1))?)
        })
    }

    /// Costs from headers alone: every tensor is taken to be normally distributed.
    ///
    /// # Errors
    /// If a candidate can't be written.
    pub fn expected(&self) -> Result<Costs> {
        let (errors, table) = (errors::expected(self.candidates)?, self.table());
        let of = |format: &Format| self.candidates.iter().position(|candidate| *candidate == format);
        self.costs(|index, formats| {
            let share = table(&self.outputs[index]);
            Ok(formats.iter().map(|format| of(format).map_or(0.0, |at| share * errors[at])).collect())
        })
    }

    /// Costs from a few rows of every tensor.
    ///
    /// # Errors
    /// If the source can't be read.
    pub fn sampled(&self, source: &dyn TensorSource, scales: &Scales) -> Result<Costs> {
        let table = self.table();
        self.costs(|index, formats| {
            let output = &self.outputs[index];
            let (share, errors) = (table(output), errors::sampled(source, scales, output, formats)?);
            Ok(errors.into_iter().map(|error| share * error).collect())
        })
    }

    /// What a relative error of 1 in a tensor costs by the table of classes: its share of what that costs in all of its class.
    fn table(&self) -> impl Fn(&OutputTensor) -> f64 + use<> {
        let layers = self.outputs.iter().filter_map(|output| output.layer).max().map_or(0, |last| last + 1);
        let mut of_class: HashMap<Class, f64> = HashMap::new();
        for output in self.outputs.iter().filter(|output| self.is_open(output)) {
            *of_class.entry(output.class).or_default() += depth(output.layer, layers);
        }
        move |output| {
            let all = of_class.get(&output.class).copied().unwrap_or(1.0);
            sensitivity(output.class) * depth(output.layer, layers) / all
        }
    }

    /// The costs that `cost` gives of an output, by its index, in some formats.
    fn costs(&self, cost: impl Fn(usize, &[&'static Format]) -> Result<Vec<f64>>) -> Result<Costs> {
        let mut costs = Costs { tensors: Vec::new(), items: Vec::new(), fixed: 0 };
        for (index, output) in self.outputs.iter().enumerate() {
            let sizes =
                self.candidates.iter().filter_map(|&format| Some((format, self.bytes(output, format)?)));
            let (formats, sizes): (Vec<_>, Vec<_>) = sizes.unzip();
            if !self.is_open(output) || formats.is_empty() {
                costs.fixed += self.bytes(output, self.fixed[index]).unwrap_or(0);
                continue;
            }
            let choices = sizes.into_iter().zip(cost(index, &formats)?);
            costs.items.push(choices.map(|(bytes, cost)| Choice { bytes, cost }).collect());
            costs.tensors.push((index, formats));
        }
        Ok(costs)
    }
}

impl Costs {
    /// Without the formats for which `left_out` holds, where a tensor then has a choice left.
    pub fn without(&self, left_out: impl Fn(&Format) -> bool) -> Costs {
        let all = self.tensors.iter().zip(&self.items);
        let keep = |((index, formats), item): (&(usize, Vec<&'static Format>), &Vec<Choice>)| {
            let kept = formats.iter().zip(item).filter(|(format, _)| !left_out(format));
            let (some, choices): (Vec<_>, Vec<_>) = kept.map(|(&format, &choice)| (format, choice)).unzip();
            if some.is_empty() {
                ((*index, formats.clone()), item.clone())
            } else {
                ((*index, some), choices)
            }
        };
        let (tensors, items) = all.map(keep).unzip();
        Costs { tensors, items, fixed: self.fixed }
    }

    /// The allocation of least cost within `budget` bytes; `None` if even the smallest takes more.
    pub fn allocate(&self, question: &Question<'_>, budget: u64) -> Option<Allocation> {
        let chosen = knapsack::solve(&self.items, budget.checked_sub(self.fixed)?)?;
        let mut formats = question.fixed.to_vec();
        let (mut bytes, mut cost) = (self.fixed, 0.0);
        for (((index, open), item), at) in self.tensors.iter().zip(&self.items).zip(chosen) {
            formats[*index] = open[at];
            bytes += item[at].bytes;
            cost += item[at].cost;
        }
        Some(Allocation { formats, bytes, cost })
    }

    /// Bytes of the smallest allocation.
    pub fn smallest(&self) -> u64 {
        let least = |item: &Vec<Choice>| item.iter().map(|choice| choice.bytes).min().unwrap_or(0);
        self.fixed + self.items.iter().map(least).sum::<u64>()
    }

    /// The cost of formats that were chosen otherwise, if every tensor's is among the candidates.
    pub fn of(&self, formats: &[&'static Format]) -> Option<f64> {
        let all = self.tensors.iter().zip(&self.items);
        let cost = |((index, open), item): (&(usize, Vec<&'static Format>), &Vec<Choice>)| {
            Some(item[open.iter().position(|format| *format == formats[*index])?].cost)
        };
        all.map(cost).sum()
    }
}

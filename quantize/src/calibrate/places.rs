//! Where the weights of the evaluated graph lie in an output: the graph speaks of GGUF's tensors, an MLX folder has others.

use std::collections::HashMap;
use std::ops::Range;

use formats::{Content, OutputTensor, output::Map};
use verify::weights::Weights;

use crate::job::Job;

/// Rows of a tensor of the graph, and the same rows of an output tensor, perhaps in another order. Both have the same columns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// Of the graph's tensor.
    pub rows: Range<u64>,
    /// Index of the output tensor.
    pub output: usize,
    /// The first of its rows.
    pub first: u64,
    /// What turns the output's rows into the graph's: the identity, or a map that takes all rows at once.
    pub map: Map,
}

impl Place {
    /// Only those rows that lie within `rows` of the graph's tensor; all of them where they can't be told apart.
    pub fn within(&self, rows: &Range<u64>) -> Option<Place> {
        let both = self.rows.start.max(rows.start)..self.rows.end.min(rows.end);
        if both.start >= both.end {
            return None;
        }
        if self.map != Map::Identity {
            return Some(self.clone());
        }
        let first = self.first + (both.start - self.rows.start);
        Some(Place { rows: both, first, ..self.clone() })
    }

    /// The rows of the output tensor.
    pub fn output_rows(&self) -> Range<u64> {
        self.first..self.first + (self.rows.end - self.rows.start)
    }
}

/// For each tensor of the graph the places of its rows in a job's outputs.
pub(crate) fn places(weights: &Weights, job: &Job) -> Vec<Vec<Place>> {
    let same = |tensor: &OutputTensor| {
        job.outputs.iter().position(|output| output.name == tensor.name && output.shape == tensor.shape)
    };
    let by_name: Vec<Option<usize>> = weights.tensors.iter().map(same).collect();
    // A GGUF has the graph's own tensors.
    if by_name.iter().all(Option::is_some) {
        let whole = |(tensor, output): (&OutputTensor, &Option<usize>)| {
            let place =
                output.map(|output| Place { rows: 0..tensor.rows(), output, first: 0, map: Map::Identity });
            place.into_iter().collect()
        };
        return weights.tensors.iter().zip(&by_name).map(whole).collect();
    }
    let mut by_source: HashMap<&str, Vec<(usize, u64, &formats::Part)>> = HashMap::new();
    for (index, output) in job.outputs.iter().enumerate() {
        for (first, part) in parts(output) {
            by_source.entry(&job.source.meta(part.source).name).or_default().push((index, first, part));
        }
    }
    let source = weights.checkpoint.source();
    let of = |tensor: &OutputTensor| {
        let mut found = Vec::new();
        for (row, part) in parts(tensor) {
            for (output, first_row, other) in
                by_source.get(source.meta(part.source).name.as_str()).into_iter().flatten()
            {
                if part.columns != other.columns || job.outputs[*output].columns() != tensor.columns() {
                    continue;
                }
                let both = part.rows.start.max(other.rows.start)..part.rows.end.min(other.rows.end);
                if both.start >= both.end {
                    continue;
                }
                let whole = row..row + part.output_shape().0;
                let within = both == part.rows;
                let (rows, first, map) = match (part.map, other.map) {
                    (Map::Identity, Map::Identity) => {
                        let start = row + both.start - part.rows.start;
                        (start..start + (both.end - both.start), both.start - other.rows.start, Map::Identity)
                    }
                    (Map::InterleaveHalves, Map::Identity) if within => {
                        (whole, both.start - other.rows.start, part.map)
                    }
                    (ours, theirs) if ours == theirs && part.rows == other.rows => (whole, 0, Map::Identity),
                    _ => continue,
                };
                found.push(Place { rows, output: *output, first: *first_row + first, map });
            }
        }
        found
    };
    weights.tensors.iter().map(of).collect()
}

/// The parts of a tensor, each with its first row.
fn parts(tensor: &OutputTensor) -> impl Iterator<Item = (u64, &formats::Part)> {
    let parts = match &tensor.content {
        Content::Parts(parts) => parts.as_slice(),
        Content::Values(_) => &[],
    };
    parts.iter().scan(0, |row, part| {
        let first = *row;
        *row += part.output_shape().0;
        Some((first, part))
    })
}

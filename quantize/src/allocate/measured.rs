//! Costs from what was measured on GGUF's tensors for the tensors of any container: both are made of the same source tensors.

use std::collections::HashMap;

use formats::{Content, OutputTensor, TensorId};
use kernels::Format;

use super::{Costs, Question, errors};
use crate::{
    error::Result,
    measure::{BASE, Measured, TensorCosts},
};

/// What measured tensors an output is made of: each with the part of it.
type Shares<'a> = Vec<(&'a TensorCosts, f64)>;

impl Question<'_> {
    /// Costs that were measured, in nats of mean divergence. A tensor that was not (because the forward pass does without it, as
    /// without layers that predict further tokens) costs what [`expected`](Self::expected) says, in measure with all the others.
    ///
    /// # Errors
    /// If a candidate can't be written.
    pub fn measured(&self, measured: &Measured) -> Result<Costs> {
        let expected = errors::expected(self.candidates)?;
        let base = errors::expected(&[BASE])?[0];
        let error = |format: &Format| {
            let at = self.candidates.iter().position(|candidate| *candidate == format);
            at.map_or(0.0, |at| expected[at])
        };
        let shares = self.shares(measured);
        let table = self.table();
        let (mut found, mut guessed) = (0.0, 0.0);
        for (output, shares) in self.outputs.iter().zip(&shares).filter(|(_, shares)| !shares.is_empty()) {
            found += shares.iter().map(|(costs, share)| costs.base * share).sum::<f64>();
            guessed += table(output) * base;
        }
        let scale = if found > 0.0 && guessed > 0.0 { found / guessed } else { 1.0 };
        let cost = |shares: &Shares<'_>, format: &Format| -> f64 {
            let at = measured.formats.iter().position(|name| *name == format.name);
            let one = |&(costs, share): &(&TensorCosts, f64)| {
                let known = at.and_then(|at| costs.costs[at]);
                share * known.unwrap_or(costs.base * error(format) / base)
            };
            shares.iter().map(one).sum()
        };
        self.costs(|index, formats| {
            let (output, shares) = (&self.outputs[index], &shares[index]);
            let one = |format: &&'static Format| match shares.is_empty() {
                true => table(output) * error(format) * scale,
                false => cost(shares, format),
            };
            Ok(formats.iter().map(one).collect())
        })
    }

    /// For every output the measured tensors that are made of the same source tensors. Where several outputs share a source tensor,
    /// each has its part of what that costs.
    fn shares<'m>(&self, measured: &'m Measured) -> Vec<Shares<'m>> {
        let weights = |output: &OutputTensor| -> Vec<(TensorId, u64)> {
            match &output.content {
                Content::Parts(parts) => parts.iter().map(|part| (part.source, part.weights())).collect(),
                Content::Values(_) => Vec::new(),
            }
        };
        let mut of_source: HashMap<TensorId, u64> = HashMap::new();
        for (source, weights) in self.outputs.iter().flat_map(weights) {
            *of_source.entry(source).or_default() += weights;
        }
        let mut tensors: HashMap<TensorId, Vec<(usize, u64)>> = HashMap::new();
        for (index, costs) in measured.tensors.iter().enumerate() {
            for &(source, weights) in &costs.sources {
                tensors.entry(source).or_default().push((index, weights));
            }
        }
        let total =
            |costs: &TensorCosts| costs.sources.iter().map(|(_, weights)| weights).sum::<u64>() as f64;
        let of_output = |output: &OutputTensor| {
            let mut shares: Vec<(usize, f64)> = Vec::new();
            for (source, ours) in weights(output) {
                let here = ours as f64 / of_source[&source] as f64;
                for &(index, theirs) in tensors.get(&source).into_iter().flatten() {
                    let share = here * theirs as f64 / total(&measured.tensors[index]);
                    match shares.iter_mut().find(|(known, _)| *known == index) {
                        Some((_, sum)) => *sum += share,
                        None => shares.push((index, share)),
                    }
                }
            }
            shares.into_iter().map(|(index, share)| (&measured.tensors[index], share)).collect()
        };
        self.outputs.iter().map(of_output).collect()
    }
}

#[cfg(test)]
mod tests {
    use formats::{
        Part,
        output::{Class, Map},
    };
    use kernels::table;

    use super::*;

    fn part(source: usize, rows: u64) -> Part {
        Part { source: TensorId(source), columns: 256, rows: 0..rows, map: Map::Identity }
    }

    fn output(name: &str, parts: Vec<Part>) -> OutputTensor {
        let shape = vec![parts.iter().map(|part| part.rows.end).sum(), 256];
        let (name, content) = (name.to_owned(), Content::Parts(parts));
        OutputTensor { name, shape, class: Class::Other, layer: Some(0), quantizable: true, content }
    }

    fn costs(name: &str, sources: &[(usize, u64)], base: f64) -> TensorCosts {
        let sources = sources.iter().map(|&(source, rows)| (TensorId(source), rows * 256)).collect();
        TensorCosts { name: name.to_owned(), sources, base, costs: vec![Some(base), Some(base / 100.0)] }
    }

    #[test]
    fn what_costs_more_gets_more_bits() {
        let outputs = [output("a", vec![part(0, 64)]), output("b", vec![part(1, 64)])];
        let formats = ["q4_0", "q8_0"].map(|name| table::gguf(name).expect("known"));
        let question =
            Question { outputs: &outputs, fixed: &[formats[1]; 2], candidates: &formats, align: 1 };
        let both = question.bytes(&outputs[0], formats[0]).zip(question.bytes(&outputs[0], formats[1]));
        let (small, large) = both.expect("whole blocks");
        for (a, b, chosen) in [(1e-3, 1e-4, [1, 0]), (1e-4, 1e-3, [0, 1])] {
            let tensors = vec![costs("x", &[(0, 64)], a), costs("y", &[(1, 64)], b)];
            let measured = Measured { tokens: 1, scored: 1, formats: vec!["q4_0", "q8_0"], tensors };
            let allocation = question
                .measured(&measured)
                .expect("can be written")
                .allocate(&question, small + large)
                .expect("there is room");
            assert_eq!(allocation.formats, chosen.map(|at| formats[at]));
            assert!((allocation.cost - (1e-4 + 1e-3 / 100.0)).abs() < 1e-12, "{}", allocation.cost);
        }
    }

    #[test]
    fn tensors_of_another_container_cost_what_their_sources_do() {
        // One output of two measured tensors; two outputs of one, 1 : 3; one of nothing that was measured.
        let outputs = [
            output("joined", vec![part(0, 64), part(1, 64)]),
            output("first", vec![part(2, 32)]),
            output("second", vec![part(2, 96)]),
            output("other", vec![part(3, 64)]),
        ];
        let tensors =
            vec![costs("a", &[(0, 64)], 1.0), costs("b", &[(1, 64)], 2.0), costs("c", &[(2, 128)], 4.0)];
        let measured = Measured { tokens: 1, scored: 1, formats: vec!["q4_0", "q8_0"], tensors };
        let format = table::gguf("q4_0").expect("known");
        let question = Question { outputs: &outputs, fixed: &[format; 4], candidates: &[format], align: 1 };
        let of = |outputs: &[OutputTensor]| {
            let question = Question { outputs, fixed: &[format; 4][..outputs.len()], ..question };
            let costs = question.measured(&measured).expect("can be written");
            costs.of(&vec![format; outputs.len()]).expect("is a candidate")
        };
        assert!((of(&outputs[..1]) - 3.0).abs() < 1e-9);
        assert!((of(&outputs[1..3]) - 4.0).abs() < 1e-9);
        assert!((of(&outputs[..3]) - 7.0).abs() < 1e-9);
        // By the table it is as much as each of the three, whose mean is 7 / 3.
        assert!((of(&outputs) - 7.0 * 4.0 / 3.0).abs() < 1e-9, "{}", of(&outputs));
    }
}

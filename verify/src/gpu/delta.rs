//! Gated delta networks.

use std::sync::Arc;

use kernels::shaders;

use super::commands::Binding;
use super::device::Device;
use super::spans::{LARGEST_GRID, spans};
use super::tensor::{Tensor, row_tiles};
use crate::ops::{DeltaRule, Sequences};

/// Rows before a tile that are bound with it: what a convolution looks back, in whole steps of 64.
const BEFORE: usize = 64;

/// See [`Ops::short_convolution`](crate::ops::Ops::short_convolution).
pub(super) fn short_convolution(
    device: &Arc<Device>,
    x: &Tensor,
    taps: &[f32],
    sequences: &Sequences,
) -> Tensor {
    let (rows, columns) = (x.rows, x.columns);
    let n = taps.len() / columns;
    assert!(n <= BEFORE + 1, "a short convolution");
    let taps = device.constant(bytemuck::cast_slice(taps));
    let positions: Vec<u32> = sequences.rows().flat_map(|rows| 0..rows.len() as u32).collect();
    let positions = device.constant(bytemuck::cast_slice(&positions));
    let out = Tensor::unwritten(device, rows, columns);
    // Tiles half as large leave room for the rows before them.
    let tiles = if x.bytes() <= device.binding {
        std::iter::once(0..rows).collect()
    } else {
        row_tiles(device, rows, 2 * columns)
    };
    for tile in tiles.into_iter().filter(|tile| !tile.is_empty()) {
        let before = BEFORE.min(tile.start);
        let bindings = [
            x.read(&(tile.start - before..tile.end)),
            Binding::read(&taps),
            Binding::read(&positions),
            out.write(&tile),
        ];
        let params = [columns, n, tile.len(), before, tile.start].map(|x| x as u32);
        let groups = [columns.div_ceil(64) as u32, tile.len().min(LARGEST_GRID) as u32, 1];
        device.run(&shaders::convolution(), &bindings, &params, groups);
    }
    out
}

/// See [`Ops::delta_rule`](crate::ops::Ops::delta_rule).
#[expect(clippy::too_many_arguments, reason = "the recurrence has five inputs")]
pub(super) fn delta_rule(
    device: &Arc<Device>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    a: &Tensor,
    b: &Tensor,
    rule: &DeltaRule,
    sequences: &Sequences,
) -> Tensor {
    let &DeltaRule { key_heads, value_heads, key, value, .. } = rule;
    let out = Tensor::unwritten(device, v.rows, v.columns);
    let gates = [&rule.rates[..], &rule.biases].concat();
    let gates = device.constant(bytemuck::cast_slice(&gates));
    let shader = shaders::delta_rule(key, value);
    let blocks = value.div_ceil(shaders::DELTA_COLUMNS);
    for span in spans(device, sequences, &[q, v, a].map(|x| x.columns)) {
        if !span.fits {
            device.fail(format!("can't bind the delta rule's {} tokens at once", span.rows.len()));
            break;
        }
        let mut row = 0;
        let mut list: Vec<[u32; 2]> = Vec::with_capacity(span.lengths.len());
        for &length in &span.lengths {
            list.push([row, length as u32]);
            row += length as u32;
        }
        let list = device.constant(bytemuck::cast_slice(&list));
        let [q, k, v, a, b] = [q, k, v, a, b].map(|x| x.read(&span.rows));
        let out = out.write(&span.rows);
        let bindings = [q, k, v, a, b, Binding::read(&gates), Binding::read(&list), out];
        let groups = [(value_heads * blocks) as u32, span.lengths.len() as u32, 1];
        device.run(&shader, &bindings, &[key_heads as u32, value_heads as u32], groups);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{NoWeights, error, limited, noise, values};
    use crate::ops::Ops;
    use crate::{Precision, cpu::Cpu};

    #[test]
    #[ignore = "needs a graphics processor"]
    fn convolutions_stay_in_their_sequence() {
        let cpu = Cpu::new(&NoWeights, Precision::F32);
        let sequences = Sequences { lengths: vec![1, 2, 150, 0, 3, 64, 61] };
        for (columns, taps) in [(100, 4), (64, 1), (3, 9)] {
            let (x, taps) = (noise(281 * columns, 1), noise(taps * columns, 2));
            let want = cpu.short_convolution(&cpu.upload(x.clone(), columns), &taps, &sequences);
            let want = cpu.download(want).expect("values");
            for binding in [u64::MAX, 4 * 128 * columns as u64] {
                let device = limited(binding);
                let x = Tensor::with(&device, &x, columns);
                let got = values(&short_convolution(&device, &x, &taps, &sequences));
                let error = error(&got, &want);
                assert!(error < 1e-6, "{error}");
            }
        }
    }

    fn check(rule: &DeltaRule, lengths: &[usize], binding: u64, gates: f32) {
        let cpu = Cpu::new(&NoWeights, Precision::F32);
        let device = limited(binding);
        let sequences = Sequences { lengths: lengths.to_vec() };
        let tokens = sequences.tokens();
        let (keys, values_) = (rule.key_heads * rule.key, rule.value_heads * rule.value);
        let columns = [keys, keys, values_, rule.value_heads, rule.value_heads];
        // Queries and keys of length one, as the families normalise them.
        let length = (rule.key as f32).powf(-0.5);
        let factors = [length, length, 1.0, gates, gates];
        let input: Vec<Vec<f32>> = (0..5)
            .map(|i| noise(tokens * columns[i], i as u64).iter().map(|x| x * factors[i]).collect())
            .collect();
        let [q, k, v, a, b] = [0, 1, 2, 3, 4].map(|i| cpu.upload(input[i].clone(), columns[i]));
        let want = cpu.download(cpu.delta_rule(&q, &k, &v, &a, &b, rule, &sequences)).expect("values");
        let [q, k, v, a, b] = [0, 1, 2, 3, 4].map(|i| Tensor::with(&device, &input[i], columns[i]));
        let out = delta_rule(&device, &q, &k, &v, &a, &b, rule, &sequences);
        let error = error(&values(&out), &want);
        assert!(error < 1e-5, "{error} with {rule:?}");
    }

    fn rule(key_heads: usize, value_heads: usize, key: usize, value: usize) -> DeltaRule {
        let rates = noise(value_heads, 7).iter().map(|x| -x.exp() * 0.2).collect();
        DeltaRule { key_heads, value_heads, key, value, rates, biases: noise(value_heads, 8) }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn states_of_any_size() {
        for (key, value) in [(128, 128), (256, 256), (64, 32), (24, 17), (1, 1), (7, 40)] {
            check(&rule(2, 4, key, value), &[200, 1, 33], u64::MAX, 1.0);
        }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn gates_that_are_wide_open_or_shut() {
        check(&rule(2, 2, 32, 32), &[100], u64::MAX, 40.0);
        check(&rule(2, 2, 32, 32), &[100], u64::MAX, 200.0);
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn what_can_not_be_bound_at_once_is_gone_through_in_parts() {
        check(&rule(1, 4, 32, 32), &[64, 64, 64, 20, 5], 4 * 128 * 64, 1.0);
        let device = limited(4 * 128 * 63);
        let [q, v, a] = [16, 128, 4].map(|columns| Tensor::with(&device, &noise(64 * columns, 1), columns));
        let sequences = Sequences { lengths: vec![64] };
        delta_rule(&device, &q, &q, &v, &a, &a, &rule(1, 4, 16, 32), &sequences);
        assert!(device.check().is_err());
    }
}

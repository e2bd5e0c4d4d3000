//! Figures from logits that stay on the device: of every tile of the vocabulary only a few sums come back.

use std::sync::Arc;

use kernels::divergence::{Logits, Reference, State};
use kernels::shaders::{self, DIVERGENCE_WORDS};

use super::commands::Binding;
use super::device::Device;
use super::tensor::{Tensor, groups_of, row_tiles};
use crate::error::Result;

/// Takes into `states` the logits of tokens `first ..` of the vocabulary, a row for each state; `targets` are the tokens that the
/// text has.
///
/// # Errors
/// If the device failed.
pub(super) fn divergence(
    device: &Arc<Device>,
    model: &Tensor,
    reference: Option<&Tensor>,
    first: usize,
    targets: &[u32],
    states: &mut [State],
) -> Result<()> {
    let (rows, width) = (model.rows, model.columns);
    assert_eq!((targets.len(), states.len()), (rows, rows));
    if rows * width == 0 {
        return Ok(());
    }
    let shader = shaders::divergence(reference.is_some());
    let targets = device.constant(bytemuck::cast_slice(targets));
    let out = Tensor::unwritten(device, rows, DIVERGENCE_WORDS);
    for tile in row_tiles(device, rows, width) {
        let params = [width, first, tile.len(), tile.start, 0].map(|x| x as u32);
        let bindings = [
            model.read(&tile),
            reference.unwrap_or(model).read(&tile),
            Binding::read(&targets),
            out.write(&tile),
        ];
        device.run(&shader, &bindings, &params, groups_of(tile.len()));
    }
    let found = device.read(out.buffer(), out.bytes())?;
    for (state, words) in states.iter_mut().zip(found.as_chunks().0) {
        state.merge(&tile_state(words, reference.is_some(), first));
    }
    Ok(())
}

/// What the kernel found in one row.
fn tile_state(words: &[f32; DIVERGENCE_WORDS], reference: bool, first: usize) -> State {
    let pair = |i: usize| f64::from(words[i]) + f64::from(words[i + 1]);
    let logits = |i: usize| Logits {
        max: words[i],
        argmax: first + words[i + 1].to_bits() as usize,
        sum: pair(i + 2),
        target: words[i + 4],
    };
    let model = logits(0);
    let reference = reference.then(|| {
        let logits = logits(5);
        let shift = f64::from(model.max) - f64::from(logits.max);
        let difference = -pair(10) - shift * logits.sum;
        Reference { logits, difference, excess: f64::from(words[12]) }
    });
    State { model, reference }
}

#[cfg(test)]
mod tests {
    use kernels::Isa;
    use kernels::divergence::{Prediction, update};

    use super::*;
    use crate::gpu::testing::{limited, noise};

    /// By the device and by the processor, in tiles of the vocabulary.
    fn predict(
        device: &Arc<Device>,
        reference: Option<&[f32]>,
        model: &[f32],
        [vocabulary, tile]: [usize; 2],
        targets: &[u32],
    ) -> [Vec<Prediction>; 2] {
        let mut states = [vec![State::default(); targets.len()], vec![State::default(); targets.len()]];
        for first in (0..vocabulary).step_by(tile) {
            let width = tile.min(vocabulary - first);
            let part = |all: &[f32]| -> Vec<f32> {
                all.chunks(vocabulary).flat_map(|row| &row[first..first + width]).copied().collect()
            };
            let (model, reference) = (part(model), reference.map(part));
            let on_device = Tensor::with(device, &model, width);
            let reference_on_device =
                reference.as_ref().map(|reference| Tensor::with(device, reference, width));
            divergence(device, &on_device, reference_on_device.as_ref(), first, targets, &mut states[0])
                .expect("figures");
            for (i, state) in states[1].iter_mut().enumerate() {
                let row = i * width..(i + 1) * width;
                let reference = reference.as_ref().map(|reference| &reference[row.clone()]);
                update(Isa::detect(), reference, &model[row], first, targets[i] as usize, state);
            }
        }
        states.map(|states| states.iter().map(State::finish).collect())
    }

    /// In double precision: a token's log-likelihoods and the divergence.
    fn exact(reference: &[f32], model: &[f32], target: usize) -> [f64; 3] {
        let log = |logits: &[f32]| -> Vec<f64> {
            let max = logits.iter().fold(f64::NEG_INFINITY, |max, &l| max.max(f64::from(l)));
            let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
            logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
        };
        let (r, m) = (log(reference), log(model));
        // Σ p (d + exp(-d) - 1), of which no term is negative.
        let terms = r.iter().zip(&m).map(|(r, m)| r.exp() * ((m - r).exp_m1() - (m - r)));
        [-r[target], -m[target], terms.sum()]
    }

    fn check(device: &Arc<Device>, reference: &[f32], model: &[f32], sizes: [usize; 2], relative: f64) {
        let rows = model.len() / sizes[0];
        let targets: Vec<u32> = (0..rows).map(|row| (row * 977 % sizes[0]) as u32).collect();
        let [got, cpu] = predict(device, Some(reference), model, sizes, &targets);
        let [alone, _] = predict(device, None, model, sizes, &targets);
        // Both likelihoods, the divergence, and that relative to itself.
        let mut worst = [0.0f64; 4];
        for (i, (got, cpu)) in got.iter().zip(&cpu).enumerate() {
            let row = i * sizes[0]..(i + 1) * sizes[0];
            let [reference_nll, nll, kld] = exact(&reference[row.clone()], &model[row], targets[i] as usize);
            let (against, cpu) = (got.against.expect("figures"), cpu.against.expect("figures"));
            assert_eq!(against.same_top, cpu.same_top);
            assert_eq!(alone[i], Prediction { against: None, ..*got });
            let errors = [
                (got.nll - nll).abs(),
                (against.nll - reference_nll).abs(),
                (against.kld - kld).abs(),
                (against.kld / kld - 1.0).abs(),
            ];
            for (worst, error) in worst.iter_mut().zip(errors) {
                *worst = if error <= *worst { *worst } else { error };
            }
        }
        assert!(worst[0] < 1e-8 && worst[1] < 1e-8 && worst[2] < 5e-8 && worst[3] < relative, "{worst:?}");
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn figures_are_exact_whether_models_are_near_or_far() {
        let device = limited(u64::MAX);
        for (sizes, rows) in [([5000, 2048], 12), ([5000, 5000], 3), ([300, 100], 7), ([7, 1], 5)] {
            let n = sizes[0] * rows;
            for size in [0.5, 3.0, 8.0] {
                let reference: Vec<f32> = noise(n, 1).iter().map(|x| x * size + 2.0).collect();
                for (step, shift) in [(1e-3, 0.0), (1e-3, -20.0), (0.05, 3.0), (1.0, -13.0), (20.0, 0.0)] {
                    let model = reference.iter().zip(noise(n, 2)).map(|(r, x)| r + step * x + shift);
                    check(&device, &reference, &model.collect::<Vec<f32>>(), sizes, 1e-5);
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn rows_that_can_not_be_bound_at_once_are_gone_through_in_parts() {
        let device = limited(4 * 64 * 100);
        let (reference, model) = (noise(200 * 100, 1), noise(200 * 100, 2));
        check(&device, &reference, &model, [100, 100], 1e-6);
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn equal_models_do_not_diverge_and_of_equal_logits_the_first_is_the_top() {
        let device = limited(u64::MAX);
        let logits: Vec<f32> = noise(3000, 9).iter().map(|x| x * 6.0).collect();
        let [got, _] = predict(&device, Some(&logits), &logits, [3000, 512], &[7]);
        let against = got[0].against.expect("a reference");
        assert_eq!((against.kld, against.same_top), (0.0, true));

        let mut model = vec![0.0; 400];
        (model[140], model[141], model[390]) = (5.0, 5.0, 5.0);
        for (at, same) in [(140, true), (141, false), (390, false), (3, false)] {
            let mut reference = vec![0.0; 400];
            (reference[at], reference[395]) = (6.0, 6.0);
            for tile in [400, 136, 7] {
                let [got, _] = predict(&device, Some(&reference), &model, [400, tile], &[0]);
                assert_eq!(got[0].against.expect("a reference").same_top, same, "{at}");
            }
        }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn extreme_logits_stay_finite_and_what_is_not_finite_shows() {
        let device = limited(u64::MAX);
        let mut logits = vec![-1e30; 400];
        logits[20] = 1e4;
        let [got, _] = predict(&device, Some(&logits), &logits, [400, 160], &[20]);
        assert_eq!((got[0].nll, got[0].probability), (0.0, 1.0));
        assert_eq!(got[0].against.expect("a reference").kld, 0.0);
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [7, 250] {
                let mut model = logits.clone();
                model[at] = broken;
                let [got, _] = predict(&device, Some(&logits), &model, [400, 160], &[20]);
                assert!(!got[0].nll.is_finite() && !got[0].against.expect("a reference").kld.is_finite());
                let [got, _] = predict(&device, Some(&model), &logits, [400, 160], &[20]);
                assert!(got[0].nll.is_finite() && !got[0].against.expect("a reference").kld.is_finite());
            }
        }
    }
}

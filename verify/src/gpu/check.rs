//! Every kernel on a device against the processor, on random input: what a user runs before trusting a device's figures.

use std::ops::Range;
use std::sync::Arc;

use kernels::Isa;
use kernels::divergence::{State, update};
use kernels::matrix::Matrix;
use kernels::rope::Pairs;
use serde::Serialize;

use super::{Device, Gpu};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::{Activation, Attention, DeltaRule, Ops, Rotary, Sequences};
use crate::options::Precision;
use crate::store::Space;
use crate::tap::Tap;
use crate::weights::{Linear, Stack};

/// What a device made of a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// The operation.
    pub operation: String,
    /// The largest difference of a value from the processor's, over the processor's largest value.
    pub error: f64,
    /// What it may be.
    pub allowed: f64,
}

impl Checked {
    /// Whether the device computes what the processor does.
    pub fn holds(&self) -> bool {
        self.error <= self.allowed
    }
}

/// Single precision, in sums of a few hundred products.
const SINGLE: f64 = 5e-6;

/// Products in half precision.
const HALF: f64 = 2e-3;

/// Divergences of some 1e-5 nats, which the processor knows to some 1e-9.
const DIVERGENCE: f64 = 2e-3;

/// Tokens of the two sequences: longer than a tile, and no multiple of one.
const LENGTHS: [usize; 2] = [130, 37];

/// An operation to be tried.
#[derive(Clone, Copy)]
enum Operation {
    Linear { rows: usize },
    PerHead { transposed: bool },
    RmsNorm,
    Rotate(Pairs),
    Attend { width: usize, window: bool },
    ShortConvolution,
    DeltaRule,
    Gated(Activation),
    SoftCap,
    SigmoidGate { wide: bool },
    Scale,
    Heads,
    Experts,
}

/// What devices with cooperative matrices use them for.
const TILES: Operation = Operation::Linear { rows: 192 };

const OPERATIONS: [(&str, Operation); 19] = [
    ("product", Operation::Linear { rows: 200 }),
    ("product of whole tiles", TILES),
    ("product per head", Operation::PerHead { transposed: false }),
    ("product per head, transposed", Operation::PerHead { transposed: true }),
    ("RMS norm", Operation::RmsNorm),
    ("RoPE of halves", Operation::Rotate(Pairs::Halves)),
    ("RoPE of neighbours", Operation::Rotate(Pairs::Neighbours)),
    ("attention", Operation::Attend { width: 48, window: false }),
    ("attention of wide heads", Operation::Attend { width: 160, window: false }),
    ("attention with window, soft cap, sinks", Operation::Attend { width: 48, window: true }),
    ("short convolution", Operation::ShortConvolution),
    ("delta rule", Operation::DeltaRule),
    ("SwiGLU", Operation::Gated(Activation::Silu)),
    ("GeGLU", Operation::Gated(Activation::GeluTanh)),
    ("clamped SwiGLU", Operation::Gated(Activation::Clamped { alpha: 1.702, limit: 7.0 })),
    ("soft cap", Operation::SoftCap),
    ("sigmoid gate", Operation::SigmoidGate { wide: true }),
    ("scales and sums", Operation::Scale),
    ("heads cut and joined", Operation::Heads),
];

/// Tries every operation.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if the device can't go on.
pub fn check(device: &Arc<Device>) -> Result<Vec<Checked>> {
    let gpu = Gpu::new(device, &Noise, Precision::F32, 1 << 30);
    let cpu = Cpu::new(&Noise, Precision::F32);
    let one = |(name, operation): (&'static str, Operation)| -> Result<Checked> {
        // A recurrence of a hundred steps adds up what it rounds.
        let allowed = if matches!(operation, Operation::DeltaRule) { 4.0 * SINGLE } else { SINGLE };
        let (theirs, ours) = (operation.run(&gpu)?, operation.run(&cpu)?);
        Ok(Checked { operation: name.to_owned(), error: difference(&theirs, &ours), allowed })
    };
    let more =
        [("sigmoid gate of rows", Operation::SigmoidGate { wide: false }), ("experts", Operation::Experts)];
    let mut checked: Vec<Checked> = OPERATIONS.into_iter().chain(more).map(one).collect::<Result<_>>()?;
    if device.has_halves() {
        let gpu = Gpu::new(device, &Noise, Precision::Fixed, 1 << 30);
        let (theirs, ours) = (TILES.run(&gpu)?, TILES.run(&cpu)?);
        checked.push(Checked {
            operation: "product in half precision".to_owned(),
            error: difference(&theirs, &ours),
            allowed: HALF,
        });
    }
    checked.push(Checked {
        operation: "KL divergence of near models".to_owned(),
        error: divergence(&gpu)?,
        allowed: DIVERGENCE,
    });
    Ok(checked)
}

/// The largest difference of a divergence, over the largest, of logits that differ by a hundredth.
fn divergence(gpu: &Gpu<'_>) -> Result<f64> {
    let (tokens, width) = (40, 2048);
    let reference: Vec<f32> = noise(1, tokens * width).iter().map(|x| 8.0 * x).collect();
    let near = |(a, b): (&f32, f32)| a + 1e-2 * b;
    let model: Vec<f32> = reference.iter().zip(noise(2, tokens * width)).map(near).collect();
    let targets: Vec<u32> = (0..tokens as u32).collect();
    let [mut theirs, mut ours] = [(); 2].map(|()| vec![State::default(); tokens]);
    let [on_model, on_reference] = [&model, &reference].map(|logits| gpu.upload(logits.clone(), width));
    gpu.divergence(&on_model, Some(&on_reference), 0, &targets, &mut theirs)?;
    for (i, state) in ours.iter_mut().enumerate() {
        let row = i * width..(i + 1) * width;
        update(Isa::detect(), Some(&reference[row.clone()]), &model[row], 0, i, state);
    }
    let [theirs, ours] = [theirs, ours].map(|states| -> Vec<f32> {
        states.iter().map(|state| state.finish().against.map_or(f32::NAN, |found| found.kld as f32)).collect()
    });
    Ok(difference(&theirs, &ours))
}

fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let off = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    f64::from(found.iter().zip(expected).map(off).fold(0.0, f32::max) / largest)
}

/// Values from −1 to 1 that depend on `seed` alone (splitmix64).
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mut z = (seed << 32 | i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(value).collect()
}

/// Weights that are noise.
struct Noise;

impl Tap for Noise {
    fn product(&self, _: Matrix<'_>, _: &Linear) -> Result<()> {
        Ok(())
    }

    fn rows(&self, tensor: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let columns = out.len() / rows.len().max(1);
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.max(1))) {
            out.copy_from_slice(&noise((tensor << 16 | row) as u64, columns));
        }
        Ok(())
    }
}

impl Operation {
    fn run<O: Ops>(self, ops: &O) -> Result<Vec<f32>> {
        let sequences = Sequences { lengths: LENGTHS.to_vec() };
        let tokens = sequences.tokens();
        let x = |seed: u64, columns: usize| ops.upload(noise(seed, tokens * columns), columns);
        let made = match self {
            Operation::Linear { rows } => {
                let bias = Some(noise(7, rows));
                ops.linear(&x(1, 500), &Linear { tensor: 1, rows: 3..3 + rows, columns: 500, bias })?
            }
            Operation::PerHead { transposed } => {
                let k = if transposed { 40 } else { 72 };
                let all = Linear { tensor: 2, rows: 0..3 * 40, columns: 72, bias: None };
                ops.per_head(&x(1, 3 * k), &Stack::new(all, 3), transposed)?
            }
            Operation::RmsNorm => ops.rms_norm(&x(1, 3 * 96), 96, Some(&noise(2, 96)), 1e-6),
            Operation::Rotate(order) => {
                let frequencies = (0..24).map(|i| 10_000f64.powf(-f64::from(i) / 24.0)).collect();
                let rotary = Rotary { frequencies, multiplier: 1.1, order, head: 64, offset: 8 };
                let mut x = x(1, 3 * 64);
                ops.rotate(&mut x, &rotary, &sequences);
                x
            }
            Operation::Attend { width, window } => {
                let (heads, kv_heads, key, value) = (6, 2, width, width - 16);
                let attention = Attention {
                    heads,
                    kv_heads,
                    key,
                    value,
                    scale: 0.7,
                    window: window.then_some(50),
                    soft_cap: window.then_some(3.0),
                    sinks: window.then(|| noise(4, heads)),
                };
                let (q, k, v) = (x(1, heads * key), x(2, kv_heads * key), x(3, kv_heads * value));
                ops.attend(&q, &k, &v, &attention, &sequences)
            }
            Operation::ShortConvolution => ops.short_convolution(&x(1, 70), &noise(2, 4 * 70), &sequences),
            Operation::DeltaRule => {
                let (key_heads, value_heads, key, value) = (2, 4, 32, 48);
                let rates = noise(8, value_heads).iter().map(|x| -x.abs()).collect();
                let rule =
                    DeltaRule { key_heads, value_heads, key, value, rates, biases: noise(9, value_heads) };
                let unit = |seed| ops.rms_norm(&x(seed, key_heads * key), key, None, 1e-6);
                let (mut q, mut k) = (unit(1), unit(2));
                [&mut q, &mut k].into_iter().for_each(|x| ops.scale(x, 1.0 / (key as f32).sqrt()));
                let (v, a, b) = (x(3, value_heads * value), x(4, value_heads), x(5, value_heads));
                ops.delta_rule(&q, &k, &v, &a, &b, &rule, &sequences)
            }
            Operation::Gated(activation) => {
                let (mut gate, mut up) = (x(1, 90), x(2, 90));
                ops.scale(&mut gate, 9.0);
                ops.scale(&mut up, 9.0);
                ops.gated(gate, &up, activation)
            }
            Operation::SoftCap => {
                let mut x = x(1, 90);
                ops.scale(&mut x, 90.0);
                ops.soft_cap(&mut x, 30.0);
                x
            }
            Operation::SigmoidGate { wide } => {
                let mut x = x(1, 90);
                ops.sigmoid_gate(
                    &mut x,
                    &ops.upload(noise(2, tokens * if wide { 90 } else { 1 }), if wide { 90 } else { 1 }),
                );
                x
            }
            Operation::Scale => {
                let mut sum = x(1, 90);
                ops.add(&mut sum, &x(2, 90));
                ops.scale_rows(&mut sum, &noise(3, tokens));
                ops.scale(&mut sum, 3.0);
                sum
            }
            Operation::Heads => {
                let (a, b) = (x(1, 4 * 40), x(2, 24));
                let joined = ops.join_heads(&ops.head_columns(&a, 4, 3..33), &b, 4, true);
                ops.columns(&ops.join_heads(&joined, &a, 4, false), 5..301)
            }
            Operation::Experts => {
                let mut bank = ops.bank(&Space::new(1 << 30), tokens, 48)?;
                ops.put(&mut bank, 0, x(1, 48))?;
                let rows: Vec<usize> = (0..tokens).step_by(3).collect();
                let some = ops.gather(&bank, &rows)?;
                ops.scatter_add(&mut bank, &rows, &noise(2, rows.len()), &some)?;
                ops.take(&bank, 5..tokens)?
            }
        };
        ops.download(made)
    }
}

/// The first operation that a device got wrong, as an error.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) with the figures.
pub fn all_hold(device: &Device, checked: &[Checked]) -> Result<()> {
    match checked.iter().find(|checked| !checked.holds()) {
        None => Ok(()),
        Some(Checked { operation, error, allowed }) => Err(device.error(format!(
            "computes {operation} wrongly: off by {error:.1e}, where {allowed:.0e} is allowed"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::device;
    use super::*;

    #[test]
    #[ignore = "needs a graphics processor"]
    fn the_device_computes_what_the_processor_does() {
        for checked in check(&device()).expect("device") {
            assert!(checked.holds(), "{checked:?}");
            assert!(checked.error.is_finite(), "{checked:?}");
        }
    }
}

//! The recurrence of gated delta networks (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024,
//! <https://arxiv.org/abs/2412.06464>) and the short convolution before it, over one sequence.

use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// What one head reads of a sequence: a row for each token.
#[derive(Clone, Copy)]
pub struct GatedDelta<'a> {
    /// `[tokens][key]`.
    pub q: Matrix<'a>,
    /// `[tokens][key]`.
    pub k: Matrix<'a>,
    /// `[tokens][value]`.
    pub v: Matrix<'a>,
    /// For each token what the state is multiplied by.
    pub decay: &'a [f32],
    /// For each token how much of what is new is written.
    pub rate: &'a [f32],
}

/// From the state S = 0, `[key][value]`, token by token:
///
/// `S ← decay · S`, `S ← S + k ⊗ rate · (v - kᵀS)`, `out = qᵀS`; `out` is `[tokens][value]`.
///
/// Sums over the key take element i to sum `i % 4` and add these in pairs: the same bits on every machine.
pub fn gated_delta(isa: Isa, head: GatedDelta, out: MatrixMut) {
    let GatedDelta { q, k, v, decay, rate } = head;
    assert_eq!((q.rows, q.columns, v.rows), (k.rows, k.columns, k.rows));
    assert_eq!((out.rows, out.columns), (v.rows, v.columns));
    assert_eq!((decay.len(), rate.len()), (v.rows, v.rows));
    isa.run(Delta { head, out });
}

struct Delta<'a> {
    head: GatedDelta<'a>,
    out: MatrixMut<'a>,
}

/// Sums that are added to in turn, so that none waits for itself.
const SUMS: usize = 4;

impl Kernel for Delta<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let GatedDelta { q, k, v, decay, rate } = self.head;
        let mut state = vec![[0.0; LANES]; k.columns];
        // Columns of the state know nothing of each other.
        for first in (0..v.columns).step_by(LANES) {
            let width = LANES.min(v.columns - first);
            state.fill([0.0; LANES]);
            for t in 0..v.rows {
                let mut value = [0.0; LANES];
                value[..width].copy_from_slice(&v.row(t)[first..first + width]);
                let found = recall(s, &mut state, k.row(t), decay[t]);
                let new = s.mul(s.splat(rate[t]), s.sub(s.load(&value), found));
                s.store(write(s, &mut state, k.row(t), new, q.row(t)), &mut value);
                self.out.row(t)[first..first + width].copy_from_slice(&value[..width]);
            }
        }
    }
}

/// S ← decay · S; gives kᵀS.
#[inline(always)]
fn recall<S: Simd>(s: S, state: &mut [[f32; LANES]], k: &[f32], decay: f32) -> S::F32 {
    let decay = s.splat(decay);
    let mut sums = [s.splat(0.0); SUMS];
    let (state, state_rest) = state.as_chunks_mut::<SUMS>();
    let (k, k_rest) = k.as_chunks::<SUMS>();
    for (state, k) in state.iter_mut().zip(k) {
        for ((sum, state), &k) in sums.iter_mut().zip(state).zip(k) {
            recall_one(s, sum, state, k, decay);
        }
    }
    for ((sum, state), &k) in sums.iter_mut().zip(state_rest).zip(k_rest) {
        recall_one(s, sum, state, k, decay);
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

#[inline(always)]
fn recall_one<S: Simd>(s: S, sum: &mut S::F32, state: &mut [f32; LANES], k: f32, decay: S::F32) {
    let decayed = s.mul(decay, s.load(state));
    s.store(decayed, state);
    *sum = s.mul_add(s.splat(k), decayed, *sum);
}

/// S ← S + k ⊗ new; gives qᵀS.
#[inline(always)]
fn write<S: Simd>(s: S, state: &mut [[f32; LANES]], k: &[f32], new: S::F32, q: &[f32]) -> S::F32 {
    let mut sums = [s.splat(0.0); SUMS];
    let (state, state_rest) = state.as_chunks_mut::<SUMS>();
    let ((k, k_rest), (q, q_rest)) = (k.as_chunks::<SUMS>(), q.as_chunks::<SUMS>());
    for (state, (k, q)) in state.iter_mut().zip(k.iter().zip(q)) {
        for ((sum, state), (&k, &q)) in sums.iter_mut().zip(state).zip(k.iter().zip(q)) {
            write_one(s, sum, state, k, new, q);
        }
    }
    for ((sum, state), (&k, &q)) in sums.iter_mut().zip(state_rest).zip(k_rest.iter().zip(q_rest)) {
        write_one(s, sum, state, k, new, q);
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

#[inline(always)]
fn write_one<S: Simd>(s: S, sum: &mut S::F32, state: &mut [f32; LANES], k: f32, new: S::F32, q: f32) {
    let written = s.mul_add(s.splat(k), new, s.load(state));
    s.store(written, state);
    *sum = s.mul_add(s.splat(q), written, *sum);
}

/// A convolution of each column with its own taps, over a sequence from its beginning:
/// `out[t][c] = Σ taps[j][c] · x[t - (n - 1) + j][c]`, where rows before the first are zeros. `taps` is `[n][columns]`.
pub fn causal_convolution(isa: Isa, x: Matrix, taps: Matrix, out: MatrixMut) {
    assert_eq!((x.rows, x.columns, x.columns), (out.rows, out.columns, taps.columns));
    isa.run(Convolution { x, taps, out });
}

struct Convolution<'a> {
    x: Matrix<'a>,
    taps: Matrix<'a>,
    out: MatrixMut<'a>,
}

impl Kernel for Convolution<'_> {
    type Output = ();

    // Plain loops, which the compiler makes vectors of, without fused multiply-adds: all bits agree.
    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        for t in 0..self.x.rows {
            let out = self.out.row(t);
            out.fill(0.0);
            for back in (0..self.taps.rows.min(t + 1)).rev() {
                let taps = self.taps.row(self.taps.rows - 1 - back);
                for (out, (x, tap)) in out.iter_mut().zip(self.x.row(t - back).iter().zip(taps)) {
                    *out += x * tap;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    /// Against the recurrence in double precision, with sizes that are no whole vectors, out of the middle of wider rows.
    #[test]
    fn the_state_forgets_recalls_and_learns() {
        let (tokens, key, value, stride) = (9, 7, 21, 40);
        let all = [0.37, 0.61, 0.83].map(|step| values(tokens * stride, step));
        let (decay, rate): (Vec<f32>, Vec<f32>) =
            (0..tokens).map(|t| (0.9 - t as f32 * 0.05, 0.2 + t as f32 * 0.08)).unzip();
        let part = |i: usize, columns| Matrix { values: &all[i][5..], rows: tokens, columns, stride };
        let (q, k, v) = (part(0, key), part(1, key), part(2, value));

        let mut state = vec![vec![0.0f64; value]; key];
        let mut want = Vec::new();
        for t in 0..tokens {
            let row = |m: Matrix| m.row(t).iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let (q, k, v) = (row(q), row(k), row(v));
            state.iter_mut().flatten().for_each(|s| *s *= f64::from(decay[t]));
            for c in 0..value {
                let found: f64 = (0..key).map(|i| k[i] * state[i][c]).sum();
                (0..key).for_each(|i| state[i][c] += k[i] * f64::from(rate[t]) * (v[c] - found));
                want.push((0..key).map(|i| q[i] * state[i][c]).sum::<f64>());
            }
        }
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let mut got = vec![0.0; tokens * value];
            let head = GatedDelta { q, k, v, decay: &decay, rate: &rate };
            gated_delta(isa, head, MatrixMut::dense(&mut got, tokens, value));
            assert!(got.iter().zip(&want).all(|(&got, want)| (f64::from(got) - want).abs() < 1e-5));
            let bits: Vec<u32> = got.iter().map(|x| x.to_bits()).collect();
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{}", isa.name());
        }
    }

    #[test]
    fn convolution_sees_no_row_that_comes_later() {
        let x = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0];
        let taps = [0.5, 0.0, 2.0, 0.25];
        for isa in Isa::available() {
            let mut out = [9.0; 6];
            let (x, taps) = (Matrix::dense(&x, 3, 2), Matrix::dense(&taps, 2, 2));
            causal_convolution(isa, x, taps, MatrixMut::dense(&mut out, 3, 2));
            assert_eq!(out, [2.0, 2.5, 4.5, 5.0, 7.0, 7.5]);
        }
    }
}

//! Causal attention of one sequence, one key/value head and its group of query heads.
//!
//! Tiles of queries look at the keys up to the last one they may see; their scores stay whole until the softmax is taken.
//! Both products are [`gemm`](crate::gemm)'s, and what is masked adds exact zeros: the bits of an output row depend neither
//! on the tiles nor on the instruction set.

use crate::exponential::{exp, tanh};
use crate::gemm::{PANEL, Panels, multiply, pack};
use crate::matrix::{Matrix, MatrixMut};
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::softmax::{exponentials, largest_lane};

/// Queries of a tile.
const QUERIES: usize = 24;

/// What a family says of its attention.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads that share the key/value head.
    pub heads: usize,
    /// Elements from one query head to the next within a row of queries.
    pub head_stride: usize,
    /// Scores are multiplied by it.
    pub scale: f32,
    /// Keys that a query sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Scaled scores become `cap * tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// One more logit per head in the softmax, to which no value belongs (gpt-oss): `[heads]`.
    pub sinks: Option<&'a [f32]>,
}

/// Query i of every head sees the keys up to i, of its window if there is one.
///
/// `q` is `[tokens][heads at head_stride]`, beginning at the first head of the group, each head as wide as a key; `k` is
/// `[tokens][width]`, `v` `[tokens][value width]`, `out` `[tokens][heads * value width]`. `scratch` is resized to what is
/// needed: keys and values once over, and 24 rows of scores. It may be used again and again.
pub fn attend(
    isa: Isa,
    attention: &Attention,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    out: MatrixMut,
    scratch: &mut Vec<f32>,
) {
    let (tokens, width, value_width) = (k.rows, k.columns, v.columns);
    assert_eq!((q.rows, v.rows, out.rows), (tokens, tokens, tokens));
    assert_eq!(out.columns, attention.heads * value_width);
    assert!(attention.sinks.is_none_or(|sinks| sinks.len() == attention.heads));
    if tokens == 0 || value_width == 0 {
        return;
    }

    let keys = Panels::len(tokens, width);
    let values = Panels::len(value_width, tokens);
    let padded = tokens.next_multiple_of(PANEL);
    // Rows a power of two apart would fall into the same sets of the cache.
    let score_stride = padded + LANES;
    scratch.resize(keys + values + QUERIES * score_stride, 0.0);
    let (keys, rest) = scratch.split_at_mut(keys);
    let (values, scores) = rest.split_at_mut(values);
    pack(isa, k, keys);
    pack_values(v, values);
    // Whole panels: scores of keys that don't exist cost no more, and no query sees them.
    let keys = Panels::new(keys, padded, width);
    let values = Panels::new(values, value_width, tokens);

    for first in (0..tokens).step_by(QUERIES) {
        let rows = (tokens - first).min(QUERIES);
        // The keys that any query of the tile sees, from the beginning of a panel on.
        let low = attention.window.map_or(0, |window| (first + 1).saturating_sub(window)) / PANEL * PANEL;
        let high = first + rows;
        for head in 0..attention.heads {
            let columns = high - low;
            let in_panels = columns.next_multiple_of(PANEL);
            multiply(
                isa,
                Matrix {
                    values: &q.values[first * q.stride + head * attention.head_stride..],
                    rows,
                    columns: width,
                    stride: q.stride,
                },
                keys.rows(low, in_panels),
                MatrixMut { values: scores, rows, columns: in_panels, stride: score_stride },
            );
            let sums = isa.run(Weigh {
                attention,
                sink: attention.sinks.map(|sinks| sinks[head]),
                scores: MatrixMut { values: scores, rows, columns: in_panels, stride: score_stride },
                query: first - low,
            });
            let start = first * out.stride + head * value_width;
            let mut here = MatrixMut {
                values: &mut out.values[start..],
                rows,
                columns: value_width,
                stride: out.stride,
            };
            multiply(
                isa,
                Matrix { values: scores, rows, columns, stride: score_stride },
                values.columns(low, columns),
                MatrixMut { values: here.values, ..here },
            );
            for (r, sum) in sums.into_iter().enumerate().take(rows) {
                let factor = 1.0 / sum;
                here.row(r).iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

/// Values as the panels of a matrix `[value width][tokens]`; they lie in columns already.
fn pack_values(v: Matrix, packed: &mut [f32]) {
    for (index, panel) in packed.chunks_exact_mut(v.rows * PANEL).enumerate() {
        let first = index * PANEL;
        let columns = (v.columns - first).min(PANEL);
        for (t, lanes) in panel.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            lanes[..columns].copy_from_slice(&v.row(t)[first..][..columns]);
            lanes[columns..].fill(0.0);
        }
    }
}

/// Turns scores into `exp(score - max)` of what a query may see, zero elsewhere, and gives the sum of each row.
struct Weigh<'a> {
    attention: &'a Attention<'a>,
    sink: Option<f32>,
    /// Whole vectors.
    scores: MatrixMut<'a>,
    /// The column of the first row's own key.
    query: usize,
}

impl Kernel for Weigh<'_> {
    type Output = [f32; QUERIES];

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> [f32; QUERIES] {
        let mut sums = [1.0; QUERIES];
        for (r, sum) in sums.iter_mut().enumerate().take(self.scores.rows) {
            let end = self.query + r + 1;
            let start = self.attention.window.map_or(0, |window| end.saturating_sub(window));
            let row = self.scores.row(r).as_chunks_mut().0;
            let (before, row) = row.split_at_mut(start / LANES);
            let (row, after) = row.split_at_mut(end.div_ceil(LANES) - before.len());
            before.as_flattened_mut().fill(0.0);
            after.as_flattened_mut().fill(0.0);
            let first = before.len() * LANES;
            let mut max = mask(s, self.attention, start - first, end - first, row);
            if let Some(sink) = self.sink {
                max = max.max(sink);
            }
            *sum = exponentials(s, row, max);
            if let Some(sink) = self.sink {
                let mut lanes = [0.0; LANES];
                s.store(exp(s, s.splat(sink - max)), &mut lanes);
                *sum += lanes[0];
            }
        }
        sums
    }
}

/// Scales and caps the scores of keys `start .. end`, of which the first vector has the first and the last the last; those of all
/// others become minus infinity. Gives the largest.
#[inline(always)]
fn mask<S: Simd>(s: S, attention: &Attention, start: usize, end: usize, row: &mut [[f32; LANES]]) -> f32 {
    let columns = s.load_i(&std::array::from_fn(|lane| lane as i32));
    let mut max = s.splat(f32::NEG_INFINITY);
    let last = row.len() - 1;
    for (i, lanes) in row.iter_mut().enumerate() {
        let mut score = s.mul(s.load(lanes), s.splat(attention.scale));
        if let Some(cap) = attention.soft_cap {
            score = s.mul(s.splat(cap), tanh(s, s.div(score, s.splat(cap))));
        }
        if i == 0 || i == last {
            let column = s.add_i(columns, s.splat_i((i * LANES) as i32));
            let before = s.lt_i(column, s.splat_i(start as i32));
            let seen = s.and(s.lt_i(column, s.splat_i(end as i32)), s.not(before));
            score = s.select(seen, score, s.splat(f32::NEG_INFINITY));
        }
        max = s.max(score, max);
        s.store(score, lanes);
    }
    largest_lane(s, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: f32) -> Vec<f32> {
        (0..n)
            .map(|i| ((i as f32 + seed) * 0.917).sin() + ((i * i % 1009) as f32 * 0.31 + seed).cos())
            .collect()
    }

    struct Case {
        tokens: usize,
        width: usize,
        value_width: usize,
        heads: usize,
        window: Option<usize>,
        soft_cap: Option<f32>,
        sinks: bool,
    }

    const PLAIN: Case = Case {
        tokens: 150,
        width: 64,
        value_width: 64,
        heads: 3,
        window: None,
        soft_cap: None,
        sinks: false,
    };

    impl Case {
        /// Checks every output element against `f64` and the bits of all instruction sets against each other.
        fn check(&self) {
            let Case { tokens, width, value_width, heads, .. } = *self;
            let sinks = [0.3, -1.0, 2.5, 0.0];
            let head_stride = width + 5;
            let (q_stride, k_stride, v_stride) = (heads * head_stride + 2, width + 3, value_width + 7);
            let (q, k, v) =
                (noise(tokens * q_stride, 0.0), noise(tokens * k_stride, 0.5), noise(tokens * v_stride, 0.7));
            let attention = Attention {
                heads,
                head_stride,
                scale: 1.0 / width as f32,
                window: self.window,
                soft_cap: self.soft_cap,
                sinks: self.sinks.then_some(&sinks[..heads]),
            };
            let out_stride = heads * value_width + 4;
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::available() {
                let mut out = vec![7.0; tokens * out_stride];
                // What an earlier call leaves in the scratch must not matter.
                let mut scratch = vec![f32::NAN; 1 << 20];
                attend(
                    isa,
                    &attention,
                    Matrix { values: &q, rows: tokens, columns: q_stride, stride: q_stride },
                    Matrix { values: &k, rows: tokens, columns: width, stride: k_stride },
                    Matrix { values: &v, rows: tokens, columns: value_width, stride: v_stride },
                    MatrixMut {
                        values: &mut out,
                        rows: tokens,
                        columns: heads * value_width,
                        stride: out_stride,
                    },
                    &mut scratch,
                );
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                if let Some(first) = &first {
                    assert_eq!(first, &bits, "{}", isa.name());
                    continue;
                }
                first = Some(bits);
                for i in 0..tokens {
                    for head in 0..heads {
                        let q = &q[i * q_stride + head * head_stride..][..width];
                        let visible = self.window.map_or(0, |window| (i + 1).saturating_sub(window))..i + 1;
                        let weights: Vec<f64> = visible
                            .clone()
                            .map(|j| {
                                let k = &k[j * k_stride..];
                                let dot: f64 =
                                    q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                                let score = dot * f64::from(attention.scale);
                                self.soft_cap
                                    .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                            })
                            .map(f64::exp)
                            .collect();
                        let extra = if self.sinks { f64::from(sinks[head]).exp() } else { 0.0 };
                        let sum = weights.iter().sum::<f64>() + extra;
                        for c in 0..value_width {
                            let want = visible
                                .clone()
                                .zip(&weights)
                                .map(|(j, weight)| weight * f64::from(v[j * v_stride + c]))
                                .sum::<f64>()
                                / sum;
                            let got = f64::from(out[i * out_stride + head * value_width + c]);
                            assert!((got - want).abs() < 1e-6, "query {i} head {head}: {got} for {want}");
                        }
                    }
                    assert_eq!(out[i * out_stride + heads * value_width..][..4], [7.0; 4]);
                }
            }
        }
    }

    #[test]
    fn one_head_for_each_or_for_several() {
        PLAIN.check();
        Case { heads: 1, tokens: 48, ..PLAIN }.check();
        Case { heads: 1, tokens: 1, ..PLAIN }.check();
    }

    #[test]
    fn values_may_have_another_width_and_widths_need_be_no_multiple_of_anything() {
        Case { width: 192, value_width: 128, heads: 1, tokens: 70, ..PLAIN }.check();
        Case { width: 24, value_width: 17, heads: 2, tokens: 97, ..PLAIN }.check();
        Case { width: 3, value_width: 1, heads: 4, tokens: 33, ..PLAIN }.check();
    }

    #[test]
    fn windows_that_begin_anywhere() {
        for window in [1, 2, 31, 48, 64, 149, 150, 1000] {
            Case { window: Some(window), heads: 1, width: 16, value_width: 16, ..PLAIN }.check();
        }
    }

    #[test]
    fn caps_and_sinks() {
        Case { soft_cap: Some(0.8), ..PLAIN }.check();
        Case { sinks: true, window: Some(40), ..PLAIN }.check();
    }
}

//! Attention within each sequence, each group of query heads on a core of its own.

use crate::cpu::Rows;
use crate::ops::{Attention, Sequences};

/// See [`Ops::attend`](crate::ops::Ops::attend).
pub(super) fn attend(q: &Rows, k: &Rows, v: &Rows, a: &Attention, sequences: &Sequences) -> Rows {
    let group = a.heads / a.kv_heads;
    let mut out = Rows::zeros(q.rows(), a.heads * a.value);
    for rows in sequences.rows() {
        for head in 0..a.heads {
            for i in rows.clone() {
                let first = a.window.map_or(rows.start, |w| rows.start.max((i + 1).saturating_sub(w)));
                let query = &q.row(i)[head * a.key..][..a.key];
                let mut scores: Vec<f32> = (first..=i)
                    .map(|j| {
                        let key = &k.row(j)[head / group * a.key..][..a.key];
                        let s = query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * a.scale;
                        a.soft_cap.map_or(s, |cap| cap * (s / cap).tanh())
                    })
                    .collect();
                let sink = a.sinks.as_ref().map(|sinks| sinks[head]);
                let max = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
                scores.iter_mut().for_each(|s| *s = (*s - max).exp());
                let sum = scores.iter().sum::<f32>() + sink.map_or(0.0, |sink| (sink - max).exp());
                let to = &mut out.values[i * a.heads * a.value + head * a.value..][..a.value];
                for (j, p) in (first..=i).zip(scores) {
                    let value = &v.row(j)[head / group * a.value..][..a.value];
                    to.iter_mut().zip(value).for_each(|(to, v)| *to += p / sum * v);
                }
            }
        }
    }
    out
}

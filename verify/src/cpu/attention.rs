//! Attention within each sequence: every key/value head of every sequence is a piece of work of its own.

use std::cell::RefCell;

use kernels::matrix::MatrixMut;
use kernels::{Isa, attention};

use super::Rows;
use crate::ops::{Attention, Sequences};

/// See [`Ops::attend`](crate::ops::Ops::attend).
pub(super) fn attend(q: &Rows, k: &Rows, v: &Rows, a: &Attention, sequences: &Sequences) -> Rows {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = RefCell::default();
    }
    let group = a.heads / a.kv_heads;
    Rows::from_heads(sequences, a.kv_heads, group * a.value, |rows, head| {
        let options = attention::Attention {
            heads: group,
            head_stride: a.key,
            scale: a.scale,
            window: a.window,
            soft_cap: a.soft_cap,
            sinks: a.sinks.as_ref().map(|sinks| &sinks[head * group..(head + 1) * group]),
        };
        let mut out = vec![0.0; rows.len() * group * a.value];
        SCRATCH.with_borrow_mut(|scratch| {
            attention::attend(
                Isa::detect(),
                &options,
                q.part(rows, head * group * a.key, group * a.key),
                k.part(rows, head * a.key, a.key),
                v.part(rows, head * a.value, a.value),
                MatrixMut::dense(&mut out, rows.len(), group * a.value),
                scratch,
            );
        });
        out
    })
}

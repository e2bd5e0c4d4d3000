//! Attention within each sequence.

use std::sync::Arc;

use kernels::shaders;

use super::commands::{Binding, MOST_WORK};
use super::copy::{Place, copy};
use super::device::Device;
use super::spans::{LARGEST_GRID, Span, spans};
use super::tensor::Tensor;
use crate::ops::{Attention, Sequences};

/// See [`Ops::attend`](crate::ops::Ops::attend).
pub(super) fn attend(
    device: &Arc<Device>,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    a: &Attention,
    sequences: &Sequences,
) -> Tensor {
    let out = Tensor::unwritten(device, q.rows, a.heads * a.value);
    let columns = [q.columns, k.columns, v.columns, out.columns];
    for span in spans(device, sequences, &columns) {
        if span.fits {
            run(device, [q, k, v, &out], a, &span);
        } else {
            run_by_heads(device, [q, k, v, &out], a, &span);
        }
    }
    out
}

/// Queries that a workgroup has at a time: more of narrow heads, so that every thread has values to sum up.
fn queries(value: usize) -> usize {
    if value <= 64 { 64 } else { 32 }
}

/// Sequences that can be bound at once.
fn run(device: &Device, [q, k, v, out]: [&Tensor; 4], a: &Attention, span: &Span) {
    let queries = queries(a.value);
    let mut tiles: Vec<[u32; 3]> = Vec::new();
    let mut row = 0;
    for &length in &span.lengths {
        tiles.extend((0..length).step_by(queries).map(|first| [row as u32, length as u32, first as u32]));
        row += length;
    }
    let sinks = device.constant(bytemuck::cast_slice(a.sinks.as_deref().unwrap_or_default()));
    let shader = shaders::attention(a.key, a.value, queries);
    // Sequence after sequence, so that keys and values are still near.
    let mut rest = &mut tiles[..];
    while !rest.is_empty() {
        let (count, work) = piece(rest, a, queries);
        let (tiles, more) = std::mem::take(&mut rest).split_at_mut(count);
        rest = more;
        // Those that see most come first, and none is left to be waited for at the end.
        tiles.sort_by_key(|&[_, _, first]| std::cmp::Reverse(first));
        let list = device.constant(bytemuck::cast_slice(tiles));
        let params = [
            a.heads as u32,
            a.kv_heads as u32,
            a.scale.to_bits(),
            a.window.map_or(u32::MAX, |window| window as u32),
            a.soft_cap.unwrap_or(0.0).to_bits(),
            u32::from(a.sinks.is_some()),
        ];
        let bindings = [
            q.read(&span.rows),
            k.read(&span.rows),
            v.read(&span.rows),
            out.write(&span.rows),
            Binding::read(&list),
            Binding::read(&sinks),
        ];
        device.run(&shader, &bindings, &params, [count as u32, a.heads as u32, 1]);
        device.worked(work);
    }
}

/// How many of the first tiles are done at once, and their operations.
fn piece(tiles: &[[u32; 3]], a: &Attention, queries: usize) -> (usize, f64) {
    let (mut count, mut work) = (0, 0.0);
    for &[_, _, first] in &tiles[..tiles.len().min(LARGEST_GRID)] {
        let seen = (first as usize + queries).min(a.window.unwrap_or(usize::MAX).saturating_add(queries));
        let own = 2.0 * (queries * seen * a.heads) as f64 * (a.key + a.value) as f64;
        if count > 0 && work + own > MOST_WORK {
            break;
        }
        count += 1;
        work += own;
    }
    (count, work)
}

/// A sequence that can't be bound at once: as many heads at a time as can, in matrices of their own.
fn run_by_heads(device: &Arc<Device>, [q, k, v, out]: [&Tensor; 4], a: &Attention, span: &Span) {
    let rows = span.rows.len();
    let group = a.heads / a.kv_heads;
    let most = (device.binding / (4 * rows * a.key.max(a.value)) as u64) as usize;
    if most == 0 {
        device.fail(format!("can't bind a head of {rows} tokens"));
        return;
    }
    // Whole groups, or parts of one.
    let (kv_heads, heads) = if most >= group { (most / group, most / group * group) } else { (1, most) };
    let take = |from: &Tensor, column, width| {
        let part = Tensor::unwritten(device, rows, width);
        copy(
            device,
            Place::single(from, span.rows.start, column),
            Place::single(&part, 0, 0),
            rows,
            1,
            width,
        );
        part
    };
    for first_kv in (0..a.kv_heads).step_by(kv_heads) {
        let kv_heads = kv_heads.min(a.kv_heads - first_kv);
        let k = take(k, first_kv * a.key, kv_heads * a.key);
        let v = take(v, first_kv * a.value, kv_heads * a.value);
        let end = (first_kv + kv_heads) * group;
        for first in (first_kv * group..end).step_by(heads) {
            let heads = heads.min(end - first);
            let sinks = a.sinks.as_ref().map(|sinks| sinks[first..first + heads].to_vec());
            let part = Attention { heads, kv_heads, sinks, ..a.clone() };
            let q = take(q, first * a.key, heads * a.key);
            let made = Tensor::unwritten(device, rows, heads * a.value);
            let whole = Span { rows: 0..rows, ..span.clone() };
            run(device, [&q, &k, &v, &made], &part, &whole);
            let target = Place::single(out, span.rows.start, first * a.value);
            copy(device, Place::single(&made, 0, 0), target, rows, 1, heads * a.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::testing::{NoWeights, error, limited, noise};
    use crate::ops::Ops;
    use crate::{Precision, cpu::Cpu};

    /// Relative to the largest value.
    const TOLERANCE: f32 = 2e-6;

    fn plain() -> Attention {
        Attention {
            heads: 4,
            kv_heads: 4,
            key: 64,
            value: 64,
            scale: 0.125,
            window: None,
            soft_cap: None,
            sinks: None,
        }
    }

    fn check(device: &Arc<Device>, a: &Attention, lengths: &[usize]) {
        let sequences = Sequences { lengths: lengths.to_vec() };
        let tokens = sequences.tokens();
        let columns = [a.heads * a.key, a.kv_heads * a.key, a.kv_heads * a.value];
        let mut seed = 0;
        let inputs = columns.map(|columns| {
            seed += 1;
            noise(tokens * columns, seed)
        });
        let cpu = Cpu::new(&NoWeights, Precision::F32);
        let [q, k, v] = [0, 1, 2].map(|i| cpu.upload(inputs[i].clone(), columns[i]));
        let want = cpu.download(cpu.attend(&q, &k, &v, a, &sequences)).expect("values");
        let [q, k, v] = [0, 1, 2].map(|i| Tensor::with(device, &inputs[i], columns[i]));
        let out = attend(device, &q, &k, &v, a, &sequences);
        let got = device.read(out.buffer(), out.bytes()).expect("values");
        let error = error(&got, &want);
        assert!(error < TOLERANCE, "{error} with {a:?}");
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn heads_of_all_widths() {
        let device = limited(u64::MAX);
        for (key, value) in
            [(64, 64), (128, 128), (192, 128), (256, 256), (576, 512), (80, 96), (6, 9), (1, 1)]
        {
            let a =
                Attention { heads: 2, kv_heads: 1, key, value, scale: (key as f32).powf(-0.5), ..plain() };
            check(&device, &a, &[70, 1, 33]);
        }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn groups_and_sequences_of_any_length() {
        let device = limited(u64::MAX);
        for (heads, kv_heads) in [(3, 3), (6, 2), (8, 1)] {
            let a = Attention { heads, kv_heads, ..plain() };
            check(&device, &a, &[1, 31, 32, 65, 600, 2]);
        }
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn windows_caps_and_sinks() {
        let device = limited(u64::MAX);
        for window in [1, 2, 31, 64, 100, 1000] {
            check(&device, &Attention { window: Some(window), ..plain() }, &[150, 40]);
        }
        check(&device, &Attention { soft_cap: Some(0.8), ..plain() }, &[100, 3]);
        check(&device, &Attention { soft_cap: Some(50.0), scale: 0.5, ..plain() }, &[100, 3]);
        let sinks = Some(vec![0.3, -1.0, 12.5, 0.0]);
        check(&device, &Attention { sinks: sinks.clone(), ..plain() }, &[100, 3]);
        check(&device, &Attention { sinks, window: Some(40), kv_heads: 2, value: 128, ..plain() }, &[100, 3]);
    }

    #[test]
    #[ignore = "needs a graphics processor"]
    fn what_can_not_be_bound_at_once_is_gone_through_in_parts() {
        let sinks = Some(vec![0.3, -1.0, 2.5, 0.0]);
        let a = Attention { sinks, kv_heads: 2, ..plain() };
        // Of the longest, all heads, a group, or a single one; of shorter ones more.
        for heads in [4, 3, 2, 1] {
            check(&limited(4 * 100 * 64 * heads), &a, &[40, 100, 30, 7, 3]);
        }
        // The second begins where no binding may.
        let a = Attention { key: 8, value: 4, ..a };
        check(&limited(4 * 99 * 8 * 4), &a, &[97, 99]);
        let device = limited(4 * 100 * 64 - 1);
        let x = Tensor::with(&device, &noise(100 * 64, 1), 64);
        let a = Attention { heads: 1, kv_heads: 1, ..plain() };
        attend(&device, &x, &x, &x, &a, &Sequences { lengths: vec![100] });
        assert!(device.check().is_err());
    }
}

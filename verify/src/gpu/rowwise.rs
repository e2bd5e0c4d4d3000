//! What is done to rows or single elements.

use std::sync::Arc;

use kernels::rope::Pairs;
use kernels::shaders::{self, Function, Other};

use super::commands::Binding;
use super::device::Device;
use super::tensor::{Tensor, groups_of, row_tiles};
use crate::ops::{Rotary, Sequences};

/// x ← f(x, y), with the numbers that f needs.
pub(super) fn elementwise(x: &Tensor, f: Function, other: Other, y: Option<&Tensor>, numbers: [f32; 2]) {
    let device = &x.device;
    let shader = shaders::elementwise(f, other);
    let none;
    let y = match y {
        Some(y) => y,
        None => {
            none = Tensor::unwritten(device, 1, 1);
            &none
        }
    };
    for rows in row_tiles(device, x.rows, x.columns) {
        let theirs = match other {
            Other::None | Other::Column => 0..y.rows,
            Other::Same | Other::Row => rows.clone(),
        };
        let count = rows.len() * x.columns;
        let params = [count as u32, x.columns as u32, numbers[0].to_bits(), numbers[1].to_bits()];
        device.run(&shader, &[x.write(&rows), y.read(&theirs)], &params, groups_of(count.div_ceil(64)));
    }
}

/// See [`Ops::rms_norm`](crate::ops::Ops::rms_norm).
pub(super) fn rms_norm(x: &Tensor, group: usize, gain: Option<&[f32]>, eps: f64) -> Tensor {
    let device = &x.device;
    let out = Tensor::unwritten(device, x.rows, x.columns);
    let has_gain = gain.is_some();
    let gain = device.constant(bytemuck::cast_slice(gain.unwrap_or(&[])));
    let shader = shaders::rms_norm();
    for rows in row_tiles(device, x.rows, x.columns) {
        let runs = rows.len() * (x.columns / group);
        let params = [runs as u32, group as u32, (eps as f32).to_bits(), u32::from(has_gain)];
        let bindings = [x.read(&rows), Binding::read(&gain), out.write(&rows)];
        device.run(&shader, &bindings, &params, groups_of(runs));
    }
    out
}

/// See [`Ops::rotate`](crate::ops::Ops::rotate).
pub(super) fn rotate(x: &Tensor, rotary: &Rotary, sequences: &Sequences) {
    let pairs = rotary.frequencies.len();
    if pairs == 0 || x.rows == 0 {
        return;
    }
    let device = &x.device;
    let table = table(device, rotary, sequences);
    let positions: Vec<u32> = sequences.lengths.iter().flat_map(|&length| 0..length as u32).collect();
    let heads = x.columns / rotary.head;
    let (step, apart) = match rotary.order {
        Pairs::Halves => (1, pairs),
        Pairs::Neighbours => (2, 1),
    };
    let shader = shaders::rope();
    for rows in row_tiles(device, x.rows, x.columns) {
        let count = rows.len() * heads * pairs;
        let numbers = [count, x.columns, heads, rotary.head, rotary.offset, pairs, step, apart];
        let own = device.constant(bytemuck::cast_slice(&positions[rows.clone()]));
        let bindings = [x.write(&rows), table.read(&(0..table.rows)), Binding::read(&own)];
        device.run(&shader, &bindings, &numbers.map(|n| n as u32), groups_of(count.div_ceil(64)));
    }
}

/// Cosine and sine of each pair at each position, computed in double precision.
fn table(device: &Arc<Device>, rotary: &Rotary, sequences: &Sequences) -> Tensor {
    let longest = sequences.lengths.iter().copied().max().unwrap_or(0);
    let values: Vec<[f32; 2]> = (0..longest).flat_map(|position| rotary.turns(position)).collect();
    Tensor::with(device, values.as_flattened(), 2 * rotary.frequencies.len())
}

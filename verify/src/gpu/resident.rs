//! Weights on the device, as they are stored: read when they are needed or a little before, kept while there is room.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use formats::output::Map;
use formats::rows::{Stored, rearrange};
use kernels::shaders::{self, Decoder};
use rayon::prelude::*;
use wgpu::{Buffer, BufferUsages, Features};

use super::commands::Binding;
use super::device::{Device, lock};
use super::tensor::{Tensor, groups_of};
use crate::error::Result;
use crate::tap::Tap;
use crate::weights::Weights;

/// Bytes that are read by one core at a time.
const PIECE: u64 = 4 << 20;

/// Weights of a buffer, at most: kernels number them in 32 bits.
const MOST_WEIGHTS: u64 = 1 << 31;

/// Rows that follow each other, in one buffer.
pub(super) struct Chunk {
    pub buffer: Buffer,
    /// Which rows of the tensor.
    pub rows: Range<usize>,
    /// Weights of a row in the buffer, a multiple of 8.
    pub stride: usize,
    /// Where the second and the third plane begin, in bytes.
    pub planes: [u32; 2],
}

/// Rows of a tensor.
pub(super) struct Matrix {
    pub decoder: Decoder,
    pub chunks: Vec<Chunk>,
    bytes: u64,
}

/// Bytes of a buffer, unless one step of rows takes more: a device without the processor's memory gets it through a copy as large.
const LARGEST: u64 = 512 << 20;

/// What is to be had: rows of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub tensor: usize,
    pub rows: Range<usize>,
    pub columns: usize,
    /// A buffer holds a multiple of so many rows, or all there are.
    pub grain: usize,
    /// Whether every `grain` rows are a matrix of which the transpose is meant.
    pub transposed: bool,
}

impl Wanted {
    /// Whether rows that were wanted like this hold these.
    fn covers(&self, other: &Wanted) -> bool {
        let whole = Wanted { rows: other.rows.clone(), ..self.clone() };
        whole == *other && self.rows.start <= other.rows.start && other.rows.end <= self.rows.end
    }
}

/// Filled by whoever comes first, while others wait.
type Slot = Arc<Mutex<Option<Arc<Matrix>>>>;

/// What is on the device, least lately used first.
pub(super) struct Resident {
    slots: Mutex<Vec<(Wanted, Slot)>>,
    /// Bytes that may stay.
    room: AtomicU64,
}

impl Resident {
    pub fn new(room: u64) -> Resident {
        Resident { slots: Mutex::default(), room: room.into() }
    }

    /// The rows, from the device or else from the model.
    pub fn get(&self, device: &Arc<Device>, weights: &Weights, wanted: &Wanted) -> Result<Arc<Matrix>> {
        let slot = {
            let mut slots = lock(&self.slots);
            match slots.iter().position(|(there, _)| there.covers(wanted)) {
                Some(i) => {
                    let found = slots.remove(i);
                    slots.push(found);
                }
                None => slots.push((wanted.clone(), Slot::default())),
            }
            let (wanted, slot) = &slots[slots.len() - 1];
            (wanted.clone(), slot.clone())
        };
        let (wanted, slot) = slot;
        let mut held = lock(&slot);
        if let Some(matrix) = &*held {
            return Ok(matrix.clone());
        }
        // Kernels read eight weights at a time.
        let fits = !wanted.transposed && wanted.columns.is_multiple_of(8);
        let stored = weights.stored(wanted.tensor).filter(|_| fits);
        let made = stored.map(|stored| as_stored(device, weights, stored, &wanted)).transpose()?.flatten();
        let made = Arc::new(match made {
            Some(made) => made,
            None => decoded(device, weights, &wanted)?,
        });
        *held = Some(made.clone());
        drop(held);
        self.evict();
        Ok(made)
    }

    /// Drops what was not used for longest until the rest fits.
    fn evict(&self) {
        let mut slots = lock(&self.slots);
        // A slot that is locked is being filled: it is the newest of all.
        let size =
            |slot: &Slot| slot.try_lock().ok().and_then(|held| held.as_ref().map(|matrix| matrix.bytes));
        let mut bytes: u64 = slots.iter().filter_map(|(_, slot)| size(slot)).sum();
        let room = self.room.load(Ordering::Relaxed);
        slots.retain(|(_, slot)| match size(slot).filter(|_| bytes > room) {
            Some(dropped) => {
                bytes -= dropped;
                false
            }
            None => true,
        });
    }

    /// Drops all, and keeps half as much from now on.
    pub fn shrink(&self) {
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| Some(room / 2)).ok();
        lock(&self.slots).clear();
    }
}

/// Rows in the form that they are stored in, unless the device decodes it wrongly.
fn as_stored(
    device: &Arc<Device>,
    weights: &Weights,
    stored: Stored,
    wanted: &Wanted,
) -> Result<Option<Matrix>> {
    let decoder = match stored {
        Stored::Block(format) => Decoder::of(format),
        Stored::Fp8 { block } => Decoder::fp8(block),
    };
    // Held until the verdict is there, so that nobody takes a format for right meanwhile.
    let mut formats = lock(&device.formats);
    let known = formats.get(&decoder.name).copied();
    if known == Some(true) {
        drop(formats);
        return build_stored(device, weights, stored, decoder, wanted).map(Some);
    }
    if known == Some(false) {
        return Ok(None);
    }
    let name = decoder.name.clone();
    let matrix = build_stored(device, weights, stored, decoder, wanted)?;
    let verdict = first_difference(device, weights, &matrix, wanted)?;
    if let Verdict::Unknown = verdict {
        return Ok(Some(matrix));
    }
    let is_right = matches!(verdict, Verdict::Right);
    if let Verdict::Wrong(found, expected) = verdict {
        let (device_name, tensor) = (&device.info.name, &weights.tensors[wanted.tensor].name);
        (device.tell)(&format!(
            "{device_name}: decodes {name} wrongly, {found:e} in the place of {expected:e} in tensor {tensor}; the processor decodes it"
        ));
    }
    formats.insert(name, is_right);
    Ok(is_right.then_some(matrix))
}

fn build_stored(
    device: &Arc<Device>,
    weights: &Weights,
    stored: Stored,
    decoder: Decoder,
    wanted: &Wanted,
) -> Result<Matrix> {
    let planes = stored.planes(wanted.columns as u64);
    build(device, wanted, wanted.columns, decoder, &planes, |rows, out| {
        weights.stored_rows(wanted.tensor, rows, out)
    })
}

/// Rows that are decoded on both sides, the first time that a device meets a format.
const CHECKED: usize = 4;

/// How a device decodes a format.
enum Verdict {
    Right,
    /// What it found, and what it should have.
    Wrong(f32, f32),
    /// The weights are all the same, and say nothing.
    Unknown,
}

/// Whether the device decodes the first rows as the processor does.
fn first_difference(
    device: &Arc<Device>,
    weights: &Weights,
    matrix: &Matrix,
    wanted: &Wanted,
) -> Result<Verdict> {
    let Some(chunk) = matrix.chunks.first() else { return Ok(Verdict::Unknown) };
    let rows = chunk.rows.start..chunk.rows.end.min(chunk.rows.start + CHECKED);
    let mut expected = vec![0.0; rows.len() * wanted.columns];
    weights.rows(wanted.tensor, rows.clone(), &mut expected)?;
    let out = Tensor::unwritten(device, rows.len(), wanted.columns);
    let eights = expected.len() / 8;
    let bindings = [Binding::read(&chunk.buffer), out.write(&(0..rows.len()))];
    let params = [chunk.planes[0], chunk.planes[1], eights as u32, 0];
    device.run(&shaders::decode(&matrix.decoder), &bindings, &params, groups_of(eights.div_ceil(64)));
    let found = device.read(out.buffer(), out.bytes())?;
    let finite = expected.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0f32, |max, x| max.max(x.abs()));
    // But for sums that a device may round once instead of twice, and numbers too small for it, they are the same bits.
    let allowed = 1e-6 * largest + 8.0 * f32::MIN_POSITIVE;
    let is_same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= allowed;
    Ok(match found.iter().zip(&expected).find(|&(&found, &expected)| !is_same(found, expected)) {
        Some((&found, &expected)) => Verdict::Wrong(found, expected),
        None if expected.iter().all(|&x| x == expected[0]) => Verdict::Unknown,
        None => Verdict::Right,
    })
}

/// Rows that have no form of their own, or not always the same values, in `f32`.
pub(super) fn decoded(device: &Arc<Device>, tap: &dyn Tap, wanted: &Wanted) -> Result<Matrix> {
    let (rows, columns) = match wanted.transposed {
        true => (wanted.columns, wanted.grain),
        false => (wanted.grain, wanted.columns),
    };
    let stride = columns.next_multiple_of(8);
    let row = [4 * stride as u64];
    // What a buffer holds are the rows of the matrices after they were transposed.
    let turned = |row: usize| if wanted.transposed { row / wanted.grain * rows } else { row };
    let all = turned(wanted.rows.start)..turned(wanted.rows.end);
    let meant = Wanted { rows: all, grain: rows, ..wanted.clone() };
    build(device, &meant, stride, Decoder::f32(), &row, |made, out| {
        let mut values = vec![0.0; made.len() * columns];
        if wanted.transposed {
            let first = made.start / rows * wanted.grain;
            let mut source = vec![0.0; wanted.grain * wanted.columns];
            for (i, to) in values.chunks_exact_mut(rows * columns).enumerate() {
                let from = first + i * wanted.grain;
                tap.rows(wanted.tensor, from..from + wanted.grain, &mut source)?;
                rearrange(Map::Transpose, &source, wanted.columns, to);
            }
        } else {
            tap.rows(wanted.tensor, made, &mut values)?;
        }
        for row in values.chunks_exact(columns) {
            out[0].extend_from_slice(bytemuck::cast_slice(row));
            out[0].resize(out[0].len() + 4 * (stride - columns), 0);
        }
        Ok(())
    })
}

/// Buffers with the rows that `read` appends to planes of `per_row` bytes a row.
fn build(
    device: &Arc<Device>,
    wanted: &Wanted,
    stride: usize,
    decoder: Decoder,
    per_row: &[u64],
    read: impl Fn(Range<usize>, &mut [Vec<u8>]) -> Result<()> + Sync,
) -> Result<Matrix> {
    let row: u64 = per_row.iter().sum();
    let beside = decoder.codebook.len() as u64 + 64;
    let most = (device.binding.min(LARGEST) - beside) / row.max(1);
    let most = most.min(MOST_WEIGHTS / stride.max(1) as u64) as usize;
    let step = (most / wanted.grain * wanted.grain).max(wanted.grain);
    if step as u64 * row + beside > device.binding {
        let (needed, limit) = (step as u64 * row, device.binding);
        return Err(device
            .error(format!("{step} rows of a weight take {needed} bytes, but it binds {limit} at most")));
    }
    // While these are read, the device works on what was asked of it before.
    device.flush();
    let mut matrix = Matrix { decoder, chunks: Vec::new(), bytes: 0 };
    for first in wanted.rows.clone().step_by(step) {
        let rows = first..wanted.rows.end.min(first + step);
        let mut starts = Vec::with_capacity(per_row.len());
        let mut size = 0;
        for bytes in per_row {
            starts.push(size);
            size = (size + rows.len() as u64 * bytes).next_multiple_of(4);
        }
        let codebook = matrix.decoder.codebook;
        if !codebook.is_empty() {
            starts.push(size);
            size += codebook.len() as u64;
        }
        // Kernels may read a word beyond.
        let size = size.next_multiple_of(4) + 8;
        let layout = Layout { size, starts: &starts, per_row, codebook };
        let buffer = upload(device, &layout, &rows, wanted.grain, &read)?;
        device.uploaded(size);
        matrix.bytes += size;
        let plane = |i: usize| starts.get(i).map_or(0, |&start| start as u32);
        matrix.chunks.push(Chunk { buffer, rows, stride, planes: [plane(1), plane(2)] });
    }
    Ok(matrix)
}

/// Where what lies in a buffer.
struct Layout<'a> {
    size: u64,
    /// The first byte of each plane, and of the codebook if there is one.
    starts: &'a [u64],
    /// Bytes of a row in each plane.
    per_row: &'a [u64],
    codebook: &'a [u8],
}

fn upload(
    device: &Arc<Device>,
    layout: &Layout<'_>,
    rows: &Range<usize>,
    grain: usize,
    read: &(impl Fn(Range<usize>, &mut [Vec<u8>]) -> Result<()> + Sync),
) -> Result<Buffer> {
    let Layout { size, starts, per_row, codebook } = *layout;
    // Where the memory is the processor's, rows are written to where the device reads them.
    let direct = device.is_unified() && device.features.contains(Features::MAPPABLE_PRIMARY_BUFFERS);
    let usage = if direct { BufferUsages::STORAGE | BufferUsages::MAP_WRITE } else { BufferUsages::STORAGE };
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: true };
    let buffer = device.make(|device| device.create_buffer(&descriptor))?;
    let mut view = buffer.get_mapped_range_mut(..).map_err(|error| device.error(error.to_string()))?;
    let row: u64 = per_row.iter().sum();
    let piece = ((PIECE / row.max(1)) as usize / grain * grain).max(grain);
    let pieces: Vec<usize> = rows.clone().step_by(piece).collect();
    for pieces in pieces.chunks(2 * rayon::current_num_threads()) {
        let one = |&first: &usize| {
            let rows = first..rows.end.min(first + piece);
            let mut planes = vec![Vec::new(); per_row.len()];
            read(rows, &mut planes).map(|()| planes)
        };
        let read: Vec<Vec<Vec<u8>>> = pieces.par_iter().map(one).collect::<Result<_>>()?;
        for (first, planes) in pieces.iter().zip(read) {
            for ((plane, start), bytes) in planes.iter().zip(starts).zip(per_row) {
                let at = (start + (first - rows.start) as u64 * bytes) as usize;
                view.slice(at..at + plane.len()).copy_from_slice(plane);
            }
        }
    }
    if !codebook.is_empty() {
        let at = starts[per_row.len()] as usize;
        view.slice(at..at + codebook.len()).copy_from_slice(codebook);
    }
    drop(view);
    buffer.unmap();
    Ok(buffer)
}

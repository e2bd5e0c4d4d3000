//! Every format's decoder gives on the device what it gives on the processor.

use std::sync::Arc;

use kernels::shaders::{Decoder, decode};
use kernels::{Format, Isa, fp8, table};

use super::commands::Binding;
use super::tests::device;
use super::*;

/// Reproducible bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 8) as u8).collect()
    }

    /// About normal.
    fn weight(&mut self) -> f32 {
        (0..4).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).sum::<f32>() * 0.02
    }
}

/// Planes in one buffer as [`Decoder`] says, and where the second and the third begin.
fn together<'a>(planes: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, [u32; 2]) {
    let (mut all, mut starts) = (Vec::new(), [0; 3]);
    for (plane, start) in planes.zip(&mut starts) {
        *start = all.len() as u32;
        all.extend(plane);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all.extend([0xff; 4]);
    (all, [starts[1], starts[2]])
}

fn on_device(device: &Arc<Device>, decoder: &Decoder, planes: &[Vec<u8>], len: usize) -> Vec<f32> {
    let codebook = Some(decoder.codebook).filter(|bytes| !bytes.is_empty());
    let (bytes, [plane1, plane2]) = together(planes.iter().map(Vec::as_slice).chain(codebook));
    let weights = device.constant(&bytes);
    let out = Tensor::unwritten(device, len / 8, 8);
    let bindings = [Binding::read(&weights), out.write(&(0..len / 8))];
    let count = len as u32 / 8;
    device.run(&decode(decoder), &bindings, &[plane1, plane2, count, 0], [count.div_ceil(64), 1, 1]);
    device.read(out.buffer(), out.bytes()).expect("values")
}

/// Compares what is finite, block by block: sums may be fused with products before them, subnormal numbers be zero.
fn same(name: &str, block: usize, got: &[f32], want: &[f32]) {
    for (i, (got, want)) in got.chunks(block).zip(want.chunks(block)).enumerate() {
        let largest = want.iter().filter(|x| x.is_finite()).fold(0.0f32, |most, x| most.max(x.abs()));
        // A float is a block, and nothing is computed.
        let tolerance = if block == 1 { 0.0 } else { largest * 1e-6 + 8.0 * f32::MIN_POSITIVE };
        for (j, (got, want)) in got.iter().zip(want).enumerate() {
            let near = !want.is_finite() || got == want || (got - want).abs() <= tolerance;
            assert!(near, "{name}: weight {j} of block {i} is {got:e}, not {want:e} (largest {largest:e})");
        }
    }
}

fn on_processor(format: &Format, planes: &[Vec<u8>], len: usize) -> Vec<f32> {
    let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let mut out = vec![f32::NAN; len];
    (format.decode)(format, Isa::detect(), &slices, &mut out);
    out
}

fn check(device: &Arc<Device>, format: &Format) {
    let decoder = Decoder::of(format);
    let mut random = Random(0x5eed);
    // Odd numbers of blocks, so that planes end anywhere.
    let (rows, columns) = (3, format.block.next_multiple_of(8) * 7);
    let len = rows * columns;
    let blocks = len / format.block;
    let mut planes: Vec<Vec<u8>> = format.planes.iter().map(|bytes| random.bytes(blocks * bytes)).collect();
    let compare = |planes: &[Vec<u8>]| {
        let got = on_device(device, &decoder, planes, len);
        same(&decoder.name, format.block, &got, &on_processor(format, planes, len));
    };
    compare(&planes);
    if let Some(encode) = format.encode {
        let weights: Vec<f32> = (0..len).map(|_| random.weight()).collect();
        let mut slices: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        encode(format, Isa::detect(), &weights, None, &mut slices);
        compare(&planes);
    }
}

#[test]
#[ignore = "needs a graphics processor"]
fn gguf_types_decode_as_on_the_processor() {
    let device = device();
    table::GGUF.iter().for_each(|format| check(&device, format));
}

#[test]
#[ignore = "needs a graphics processor"]
fn mlx_modes_decode_as_on_the_processor() {
    let device = device();
    table::MLX.iter().for_each(|format| check(&device, format));
}

#[test]
#[ignore = "needs a graphics processor"]
fn schemes_of_compressed_tensors_decode_as_on_the_processor() {
    let device = device();
    table::COMPRESSED_TENSORS.iter().for_each(|format| check(&device, format));
}

#[test]
#[ignore = "needs a graphics processor"]
fn fp8_decodes_as_on_the_processor() {
    let device = device();
    let mut random = Random(0x5eed);
    for block in [128, 32] {
        let (rows, columns) = (3, 5 * block);
        let len = rows * columns;
        let codes = random.bytes(len);
        let scales: Vec<f32> = (0..len / block).map(|_| random.weight()).collect();
        let mut want = vec![0.0; len];
        fp8::widen_block_scaled(Isa::detect(), &codes, columns, 0, &scales, (1, block), &mut want);
        let planes = [codes, bytemuck::cast_slice(&scales).to_vec()];
        let got = on_device(&device, &Decoder::fp8(block as u32), &planes, len);
        same("fp8", block, &got, &want);
        assert!(got.iter().zip(&want).all(|(got, want)| got.is_nan() == want.is_nan()));
    }
}

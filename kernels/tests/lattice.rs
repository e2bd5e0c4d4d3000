//! What every lattice of the table must keep: blocks decode to what it says, codes are written where decoders read them, and scales
//! are multiplied as nearly as their numbers allow.

use halfbyte_kernels::lattice::{Lattice, Levels};
use halfbyte_kernels::nvfp4::COMPRESSED_NVFP4;
use halfbyte_kernels::{Format, Isa, float, mlx_affine, table, w4a16, w4a16_asym};

/// Blocks of each format and kind of weights.
const BLOCKS: usize = 24;

/// A small generator, the same numbers in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }

    /// In -1..1.
    fn weight(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 31) as f32 - 1.0
    }

    fn indices(&mut self, format: &Format, levels: usize) -> Vec<u8> {
        (0..format.block).map(|_| (self.next() as usize % levels) as u8).collect()
    }
}

/// The planes of one block.
type Block = Vec<Vec<u8>>;

fn encode(format: &Format, src: &[f32]) -> Block {
    let mut block: Block = format.planes.iter().map(|&bytes| vec![0xa5; bytes]).collect();
    let mut planes: Vec<&mut [u8]> = block.iter_mut().map(Vec::as_mut_slice).collect();
    format.encode.expect("a format with a lattice is written")(format, Isa::detect(), src, None, &mut planes);
    block
}

fn decode(format: &Format, block: &Block) -> Vec<f32> {
    let mut out = vec![f32::NAN; format.block];
    (format.decode)(format, Isa::detect(), &slices(block), &mut out);
    out
}

fn slices(block: &Block) -> Vec<&[u8]> {
    block.iter().map(Vec::as_slice).collect()
}

fn steps(format: &Format, lattice: &Lattice, block: &Block) -> (Vec<f32>, Vec<f32>) {
    let groups = format.block / lattice.group;
    let (mut scales, mut offsets) = (vec![f32::NAN; groups], vec![f32::NAN; groups]);
    (lattice.steps)(&slices(block), &mut scales, &mut offsets);
    (scales, offsets)
}

fn store(lattice: &Lattice, indices: &[u8], block: &Block) -> Block {
    let mut block = block.clone();
    let mut planes: Vec<&mut [u8]> = block.iter_mut().map(Vec::as_mut_slice).collect();
    (lattice.store)(indices, &mut planes);
    block
}

/// The block with scales and offsets multiplied, if the format can.
fn rescale(lattice: &Lattice, factors: [f32; 2], block: &Block) -> Option<Block> {
    let mut block = block.clone();
    let mut planes: Vec<&mut [u8]> = block.iter_mut().map(Vec::as_mut_slice).collect();
    lattice.rescale?(factors, &mut planes);
    Some(block)
}

fn levels(lattice: &Lattice) -> Vec<f32> {
    match lattice.levels {
        Levels::Integers(first, last) => (first..=last).map(|level| level as f32).collect(),
        Levels::Values(values) => values.to_vec(),
    }
}

/// How far a decoded weight may be from the lattice, relative to its product and offset: decoders round to their floats after the
/// product and after the sum. Half floats in GGUF are scales only: weights are `f32`.
fn decoded_precision(format: &Format) -> f32 {
    match scales_of(format) {
        Some(scales) => scale_precision(format, scales),
        None => f32::EPSILON,
    }
}

/// The float format of a format's scales, where it is decoded in it.
fn scales_of(format: &Format) -> Option<&'static Format> {
    mlx_affine::scales_of(format)
        .or_else(|| w4a16::scales_of(format))
        .or_else(|| w4a16_asym::scales_of(format))
}

/// The distance between floats above one.
fn scale_precision(format: &Format, scales: &Format) -> f32 {
    match scales.name {
        "bf16" => 1.0 / 128.0,
        "f16" => 1.0 / 1024.0,
        "f32" => f32::EPSILON,
        _ => panic!("{format:?} has scales in {scales:?}"),
    }
}

fn formats() -> impl Iterator<Item = (&'static Format, &'static Lattice)> {
    table::all().filter_map(|format| Some((format, format.lattice?)))
}

/// Encoded blocks of noise, of noise far from zero, and of the format's own numbers.
fn blocks(format: &'static Format, lattice: &'static Lattice) -> impl Iterator<Item = Block> {
    let mut noise = Noise(5);
    let levels = levels(lattice);
    (0..3 * BLOCKS).map(move |i| {
        let mut weight = || match i % 3 {
            0 => 300.0 * noise.weight(),
            1 => 500.0 + 300.0 * noise.weight(),
            _ => levels[noise.next() as usize % levels.len()] / 4.0,
        };
        // compressed-tensors' NVFP4 holds none beyond 10.5.
        let unit = if *format == COMPRESSED_NVFP4 { 0.01 } else { 1.0 };
        let weights: Vec<f32> = (0..format.block).map(|_| unit * weight()).collect();
        encode(format, &weights)
    })
}

#[test]
fn all_that_is_written_in_less_than_eight_bits_is_a_lattice() {
    for format in table::all().filter(|format| format.encode.is_some() && format.bits_per_weight() < 8.0) {
        assert!(format.lattice.is_some(), "{format:?}");
    }
}

#[test]
fn levels_rise_and_groups_divide_the_block() {
    for (format, lattice) in formats() {
        let levels = levels(lattice);
        assert!(levels.is_sorted_by(|a, b| a < b), "{format:?}: {levels:?}");
        assert!(levels.len() <= if matches!(lattice.levels, Levels::Values(_)) { 16 } else { 256 });
        assert!(format.block.is_multiple_of(lattice.group), "{format:?}");
    }
}

#[test]
fn any_codes_decode_to_scale_times_level_plus_offset() {
    let mut noise = Noise(1);
    for (format, lattice) in formats() {
        let levels = levels(lattice);
        let precision = decoded_precision(format);
        for block in blocks(format, lattice) {
            let indices = noise.indices(format, levels.len());
            let stored = store(lattice, &indices, &block);
            assert_eq!(store(lattice, &indices, &stored), stored, "{format:?}");
            let (scales, offsets) = steps(format, lattice, &block);
            assert_eq!(steps(format, lattice, &stored), (scales.clone(), offsets.clone()), "{format:?}");
            for (i, (got, &index)) in decode(format, &stored).into_iter().zip(&indices).enumerate() {
                let (level, group) = (levels[usize::from(index)], i / lattice.group);
                let (product, offset) = (scales[group] * level, offsets[group]);
                let (off, most) = (got - (product + offset), product.abs() + offset.abs());
                assert!(
                    off.abs() <= precision * most,
                    "{format:?}: weight {i} is {got}, not {product} + {offset}"
                );
            }
        }
    }
}

/// The codes that an encoder wrote, found again by what they decode to, and written over others.
#[test]
fn store_writes_what_encoders_write() {
    let mut noise = Noise(2);
    for (format, lattice) in formats() {
        let levels = levels(lattice);
        let mut compared = 0;
        for block in blocks(format, lattice) {
            let decoded = decode(format, &block);
            let mut indices = vec![0; format.block];
            let mut matches = vec![0; format.block];
            for index in 0..levels.len() {
                let all = store(lattice, &vec![index as u8; format.block], &block);
                for (i, (one, own)) in decode(format, &all).iter().zip(&decoded).enumerate() {
                    if one == own {
                        (indices[i], matches[i]) = (index as u8, matches[i] + 1);
                    }
                }
            }
            let scrambled = store(lattice, &noise.indices(format, levels.len()), &block);
            let stored = store(lattice, &indices, &scrambled);
            assert_eq!(decode(format, &stored), decoded, "{format:?}");
            // Neighbours that are rounded to one number, a scale of zero, and -0 have several codes.
            let negative_zero = matches!(lattice.levels, Levels::Values(levels) if levels.contains(&0.0));
            let certain =
                |(&matches, &weight): (&i32, &f32)| matches == 1 && (weight != 0.0 || !negative_zero);
            if matches.iter().zip(&decoded).all(certain) {
                assert_eq!(stored, block, "{format:?}");
                compared += 1;
            }
        }
        assert!(compared > 0, "{format:?}: no block had but one way to be written");
    }
}

#[test]
fn scales_are_multiplied_as_nearly_as_their_numbers_allow() {
    for (format, lattice) in formats().filter(|(_, lattice)| lattice.rescale.is_some()) {
        let precision = scale_precision(format, scales_of(format).unwrap_or(&float::F16));
        for block in blocks(format, lattice) {
            assert_eq!(rescale(lattice, [1.0, 1.0], &block).as_ref(), Some(&block), "{format:?}");
            let rescaled = rescale(lattice, [1.1, 0.9], &block).expect("rescaled");
            let (old, new) = (steps(format, lattice, &block), steps(format, lattice, &rescaled));
            for (factor, old, new) in [(1.1, &old.0, &new.0), (0.9, &old.1, &new.1)] {
                for (old, new) in old.iter().zip(new) {
                    let off = new - factor * old;
                    assert!(off.abs() <= precision * new.abs(), "{format:?}: {old} becomes {new}");
                }
            }
            // Nothing but these numbers has changed.
            let indices = vec![0; format.block];
            let undone = steps(format, lattice, &store(lattice, &indices, &rescaled));
            assert_eq!(undone, new, "{format:?}");
        }
    }
}

#[test]
fn a_factor_beyond_the_format_changes_nothing() {
    for (format, lattice) in formats().filter(|(_, lattice)| lattice.rescale.is_some()) {
        // BF16 and F32 have room for a small number times the largest.
        let wide = scales_of(format).is_some_and(|scales| *scales != float::F16);
        for block in blocks(format, lattice) {
            for factor in [f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e-44] {
                let (scales, offsets) = steps(format, lattice, &block);
                let rescaled = rescale(lattice, [factor; 2], &block).expect("rescaled");
                let (new_scales, new_offsets) = steps(format, lattice, &rescaled);
                let old = scales.into_iter().chain(offsets);
                for (old, new) in old.zip(new_scales.into_iter().chain(new_offsets)) {
                    assert!(new.is_finite(), "{format:?}: {old} by {factor} becomes {new}");
                    let may_change = wide && (old * factor).is_normal();
                    assert!(new == old || may_change, "{format:?}: {old} by {factor} becomes {new}");
                }
            }
        }
    }
}

#[test]
fn a_block_of_zeros_stays_one() {
    let mut noise = Noise(3);
    for (format, lattice) in formats() {
        let zeros = vec![0.0; format.block];
        let block = encode(format, &zeros);
        let (scales, offsets) = steps(format, lattice, &block);
        assert!(scales.iter().chain(&offsets).all(|step| step.is_finite()), "{format:?}");
        for factor in [1.1, -2.0, f32::MAX, f32::INFINITY] {
            if let Some(rescaled) = rescale(lattice, [factor; 2], &block) {
                assert_eq!(decode(format, &rescaled), zeros, "{format:?}");
            }
        }
        let levels = levels(lattice).len();
        let stored = store(lattice, &noise.indices(format, levels), &block);
        assert!(decode(format, &stored).iter().all(|weight| weight.is_finite()), "{format:?}");
    }
}

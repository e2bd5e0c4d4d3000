//! Weights that move from one format to another as they are: the same codes, and scales and offsets that stand for the same numbers.
//!
//! What moves is `scale · level + offset` as a real number. Formats whose consumers compute in 16 bits round it, each in its own way, so
//! that what is decoded may differ in the last bit: [`is_decoded_alike`] tells.

use crate::format::Format;
use crate::lattice::{Lattice, Levels, Moves};
use crate::simd::Isa;
use crate::{mlx_affine, w4a16, w4a16_asym};

/// Weights of the largest block that moves.
const LARGEST: usize = 128;

/// Whether two formats number their levels alike, so that weights may move from the one to the other if its scales allow.
pub fn may_move(from: &Format, to: &Format) -> bool {
    pair(from, to).is_some()
}

/// Both formats' lattices and moves, if codes of the one can be those of the other.
fn pair(from: &Format, to: &Format) -> Option<[(&'static Lattice, &'static Moves); 2]> {
    let (source, target) = (from.lattice?, to.lattice?);
    let counted = match (source.levels, target.levels) {
        (Levels::Integers(first, last), Levels::Integers(to_first, to_last)) => {
            last - first <= to_last - to_first
        }
        (Levels::Values(values), Levels::Values(to_values)) => values == to_values,
        _ => false,
    };
    let largest = from.block.max(to.block);
    let divides =
        largest <= LARGEST && largest.is_multiple_of(from.block) && largest.is_multiple_of(to.block);
    // A block that moves is one group.
    let is_one = from.block == source.group && to.block == target.group;
    let both = [(source, source.moves?), (target, target.moves?)];
    (counted && divides && is_one).then_some(both)
}

/// Writes the blocks of `planes` in another format, a slice for each of its planes, if all weights can be held just as they are: whether
/// they can. If not, what is written is worth nothing.
pub fn transcode(from: &Format, to: &Format, planes: &[&[u8]], out: &mut [&mut [u8]]) -> bool {
    let Some([(source, source_moves), (target, target_moves)]) = pair(from, to) else { return false };
    let shift = match (source.levels, target.levels) {
        (Levels::Integers(first, _), Levels::Integers(to_first, _)) => f64::from(first - to_first),
        _ => 0.0,
    };
    let largest = from.block.max(to.block);
    let chunks = planes[0].len() / from.planes[0] * from.block / largest;
    let mut codes = [0; LARGEST];
    // Of each group of the source.
    let (mut scales, mut offsets) = ([0.0; LARGEST], [0.0; LARGEST]);
    for chunk in 0..chunks {
        for (i, codes) in codes[..largest].chunks_exact_mut(from.block).enumerate() {
            let block = block_of(from, planes, chunk * (largest / from.block) + i);
            let block = &block[..planes.len()];
            (source_moves.load)(block, codes);
            (source.steps)(block, &mut scales[i..=i], &mut offsets[i..=i]);
            let offset = f64::from(offsets[i]) + f64::from(scales[i]) * shift;
            offsets[i] = offset as f32;
            if f64::from(offsets[i]) != offset {
                return false;
            }
        }
        for (i, codes) in codes[..largest].chunks_exact(to.block).enumerate() {
            let targets = out.len();
            let mut block = block_of_mut(to, out, chunk * (largest / to.block) + i);
            let block = &mut block[..targets];
            // The source's groups that make up this one, or the one that it is part of.
            let groups = i * to.block / from.block..((i + 1) * to.block).div_ceil(from.block);
            let (scale, offset) = (scales[groups.start], offsets[groups.start]);
            let alike = groups.clone().all(|group| scales[group] == scale && offsets[group] == offset);
            if !alike || !(target_moves.set)(&[scale], &[offset], block) {
                return false;
            }
            (target_moves.store)(codes, block);
        }
    }
    true
}

/// Planes of a block at most.
const PLANES: usize = 3;

fn block_of<'a>(format: &Format, planes: &[&'a [u8]], index: usize) -> [&'a [u8]; PLANES] {
    let mut block = [&[][..]; PLANES];
    for ((block, plane), bytes) in block.iter_mut().zip(planes).zip(format.planes) {
        *block = &plane[index * bytes..][..*bytes];
    }
    block
}

fn block_of_mut<'a>(format: &Format, planes: &'a mut [&mut [u8]], index: usize) -> [&'a mut [u8]; PLANES] {
    let mut block = [&mut [][..], &mut [], &mut []];
    for ((block, plane), bytes) in block.iter_mut().zip(planes).zip(format.planes) {
        *block = &mut plane[index * bytes..][..*bytes];
    }
    block
}

/// The real numbers that blocks stand for, before consumers that compute in 16 bits round them.
pub fn numbers(format: &Format, planes: &[&[u8]], out: &mut [f64]) {
    let exact = format.lattice.and_then(|lattice| match lattice.levels {
        Levels::Integers(first, _) => Some((lattice, lattice.moves?, f64::from(first))),
        Levels::Values(_) => None,
    });
    let Some((lattice, moves, first)) = exact.filter(|(lattice, ..)| lattice.group == format.block) else {
        let mut decoded = vec![0.0; out.len()];
        (format.decode)(format, Isa::detect(), planes, &mut decoded);
        out.iter_mut().zip(decoded).for_each(|(out, decoded)| *out = f64::from(decoded));
        return;
    };
    let mut codes = [0; LARGEST];
    for (i, out) in out.chunks_exact_mut(format.block).enumerate() {
        let block = block_of(format, planes, i);
        let block = &block[..planes.len()];
        (moves.load)(block, &mut codes[..format.block]);
        let (mut scale, mut offset) = ([0.0], [0.0]);
        (lattice.steps)(block, &mut scale, &mut offset);
        let number = |code: u8| f64::from(scale[0]) * (first + f64::from(code)) + f64::from(offset[0]);
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = number(code));
    }
}

/// Whether the same codes and scales are decoded by the same arithmetic, which rounds products, or products and sums, or nothing, to the
/// scales' type.
pub fn is_decoded_alike(from: &Format, to: &Format) -> bool {
    let arithmetic = |format: &Format| {
        let products = w4a16::scales_of(format).or_else(|| w4a16_asym::scales_of(format));
        let sums = mlx_affine::scales_of(format);
        (products.map(|scales| scales.name), sums.map(|scales| scales.name))
    };
    arithmetic(from) == arithmetic(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    /// Blocks of long-tailed weights, enough for all formats' largest, each scaled by another power of two.
    fn encoded(format: &Format) -> Vec<Vec<u8>> {
        let mut state = 3u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let src: Vec<f32> = (0..40 * LARGEST)
            .map(|i| (0..4).map(|_| uniform()).sum::<f32>() * 0.05 * (1 << (i / LARGEST % 4)) as f32)
            .collect();
        let mut planes = planes_of(format, src.len());
        let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        format.encode.expect("an encoder")(format, Isa::detect(), &src, None, &mut out);
        planes
    }

    fn planes_of(format: &Format, weights: usize) -> Vec<Vec<u8>> {
        format.planes.iter().map(|bytes| vec![0; weights / format.block * bytes]).collect()
    }

    fn decoded(format: &Format, planes: &[Vec<u8>]) -> Vec<f32> {
        let mut out = vec![f32::NAN; planes[0].len() / format.planes[0] * format.block];
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        (format.decode)(format, Isa::detect(), &planes, &mut out);
        out
    }

    fn read(format: &Format, planes: &[Vec<u8>]) -> Vec<f64> {
        let mut out = vec![f64::NAN; planes[0].len() / format.planes[0] * format.block];
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        numbers(format, &planes, &mut out);
        out
    }

    fn moved(from: &Format, to: &Format, planes: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        let mut made = planes_of(to, planes[0].len() / from.planes[0] * from.block);
        let mut out: Vec<&mut [u8]> = made.iter_mut().map(Vec::as_mut_slice).collect();
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        transcode(from, to, &planes, &mut out).then_some(made)
    }

    #[test]
    fn what_moves_comes_back_as_it_was() {
        let mut pairs = 0;
        for from in table::all().filter(|format| format.encode.is_some()) {
            for to in table::all().filter(|to| may_move(from, to)) {
                let planes = encoded(from);
                let Some(there) = moved(from, to, &planes) else { continue };
                pairs += 1;
                assert!(read(to, &there) == read(from, &planes), "{from:?} to {to:?}");
                if is_decoded_alike(from, to) {
                    assert!(decoded(to, &there) == decoded(from, &planes), "{from:?} to {to:?}");
                }
                if !may_move(to, from) {
                    continue;
                }
                // Of smaller groups alike ones come back to a large one.
                let back = moved(to, from, &there).unwrap_or_else(|| panic!("{to:?} to {from:?}"));
                assert!(decoded(from, &back) == decoded(from, &planes), "{from:?} to {to:?} and back");
                assert!(back == planes, "{from:?} to {to:?} and back");
            }
        }
        assert!(pairs > 200, "{pairs}");
    }

    /// The first of MLX's formats that holds what another format's blocks hold, and so on: what the documentation says.
    #[test]
    fn formats_hold_what_their_numbers_allow() {
        let find = |name: &str| table::all().find(|format| format.name == name).expect("known");
        let mlx = |name: &str| table::mlx(name).expect("known");
        let holds = |from: &Format, to: &Format| moved(from, to, &encoded(from)).is_some();
        for group in [32, 64, 128] {
            let half = find(&format!("w4a16-g{group}-f16"));
            assert!(holds(half, find("q4_0")) && holds(half, find("q4_1")));
            assert!(holds(half, mlx(&format!("4bit-g{group}-f16"))));
            assert!(holds(half, find(&format!("w4a16-asym-g{group}-f16"))));
            assert!(!holds(find(&format!("w4a16-g{group}-f32")), find("q4_0")), "scales are finer");
            // A zero point times a scale is no half float.
            let zeros = find(&format!("w4a16-asym-g{group}-f16"));
            assert!(!holds(zeros, mlx(&format!("4bit-g{group}-f16"))));
            assert!(holds(zeros, mlx(&format!("4bit-g{group}-f32"))));
            assert!(!holds(zeros, find("q4_0")) && !holds(zeros, find("q4_1")));
        }
        assert!(holds(find("q4_0"), mlx("4bit-g32-f16")) && holds(find("q4_0"), find("w4a16-g32-f16")));
        assert!(holds(find("q4_1"), mlx("4bit-g32-f16")) && !holds(find("q4_1"), find("w4a16-asym-g32-f16")));
        assert!(holds(mlx("4bit-g64-f16"), find("q4_1")) && !holds(mlx("4bit-g64-f16"), find("q4_0")));
        assert!(holds(mlx("4bit-g64"), find("q4_1")), "BF16 that half floats hold");
        let gguf = table::gguf("mxfp4").expect("known");
        assert!(holds(gguf, mlx("mxfp4")) && holds(mlx("mxfp4"), gguf));
        assert!(!may_move(find("q4_k"), mlx("4bit-g32")) && !may_move(find("q5_0"), find("q4_0")));
    }

    /// Codes of minus zero too.
    #[test]
    fn every_code_of_mxfp4_comes_back() {
        let (mlx, gguf) = (table::mlx("mxfp4").expect("known"), table::gguf("mxfp4").expect("known"));
        let codes: Vec<u8> = (0..64).map(|i| (i * 37 % 256) as u8 ^ 0x80).collect();
        let planes = vec![codes, vec![0, 1, 127, 254]];
        let there = moved(mlx, gguf, &planes).expect("held");
        assert_eq!(moved(gguf, mlx, &there).expect("held"), planes);
        assert!(moved(mlx, gguf, &[vec![0; 16], vec![255]]).is_none(), "no number");
    }
}

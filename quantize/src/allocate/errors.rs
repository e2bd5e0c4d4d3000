//! The relative squared error ‖W − Ŵ‖² / ‖W‖² that a format makes of a tensor: expected, or sampled.

use std::f64::consts::TAU;

use formats::{Content, OutputTensor, Part, TensorSource, scales::Scales};
use kernels::stats::damage;
use kernels::{Format, Isa};

use crate::encode::{Stats, encode, round};
use crate::error::{Error, Result};
use crate::read::load;
use crate::segment::Pieces;
use crate::tile::Tile;

/// Weights that stand for any tensor: whole blocks of every format.
const NORMAL: usize = 32 * 1024;

/// Places of a tensor that are sampled, and weights at each.
const PLACES: u64 = 4;
const WEIGHTS: u64 = 16 * 1024;

/// The errors of some formats on normally distributed BF16 weights: what to expect of a tensor of which only the header is
/// known.
///
/// # Errors
/// If a format can't be written.
pub fn expected(formats: &[&'static Format]) -> Result<Vec<f64>> {
    let (weights, isa) = (normal(), Isa::detect());
    let mut decoded = vec![0.0; NORMAL];
    let mut one = |format: &&'static Format| {
        format.encode.ok_or(Error::ReadOnly { format: format.name })?;
        decoded.copy_from_slice(&weights);
        round(isa, format, &mut decoded);
        let damage = damage(isa, &weights, &decoded);
        Ok(damage.squared_error / damage.squared_norm)
    };
    formats.iter().map(&mut one).collect()
}

/// Numbers of a standard normal distribution times 0.02, the same every time (Box and Muller's transform), rounded to BF16.
fn normal() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let one = |_| {
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), TAU * uniform());
        let bits = ((0.02 * radius * angle.cos()) as f32).to_bits();
        f32::from_bits(bits & 0xffff_0000)
    };
    (0..NORMAL).map(one).collect()
}

/// The errors of some formats on a few rows of a tensor, taken at even distances: the first and the last of its experts and some
/// between, if it is made of such. A tensor without a source, or of zeros alone, has none.
///
/// # Errors
/// If the source can't be read.
pub fn sampled(
    source: &dyn TensorSource,
    scales: &Scales,
    output: &OutputTensor,
    formats: &[&'static Format],
) -> Result<Vec<f64>> {
    let Content::Parts(parts) = &output.content else { return Ok(vec![0.0; formats.len()]) };
    let mut sums = vec![Stats::default(); formats.len()];
    let mut planes = Vec::new();
    for part in places(parts) {
        let weights = part.weights();
        let pieces = Pieces::Source(vec![part]);
        let tile = Tile { tensor: 0, step: 0, first_weight: 0, weights, pieces, last: true };
        let loaded = load(source, scales, tile, Vec::new())?;
        for (sum, format) in sums.iter_mut().zip(formats) {
            sum.add(&encode(source, &loaded, format, Isa::detect(), None, &mut planes)?);
        }
    }
    Ok(sums.iter().map(|sum| if sum.energy > 0.0 { sum.squared_error / sum.energy } else { 0.0 }).collect())
}

/// Some rows at even distances, and what can't be cut as a whole.
fn places(parts: &[Part]) -> Vec<Part> {
    let rows: u64 = parts.iter().map(|part| part.output_shape().0).sum();
    let at = |place: u64| {
        let mut row = rows * place / PLACES + rows / (2 * PLACES);
        for (index, part) in parts.iter().enumerate() {
            let (here, columns) = part.output_shape();
            if row < here {
                let count = (WEIGHTS / columns.max(1)).clamp(1, here);
                let first = row.min(here - count);
                return Some((index, part.cut(first..first + count).unwrap_or_else(|| part.clone())));
            }
            row -= here;
        }
        None
    };
    let mut places: Vec<(usize, Part)> = (0..PLACES).filter_map(at).collect();
    places.dedup();
    places.into_iter().map(|(_, part)| part).collect()
}

#[cfg(test)]
mod tests {
    use formats::{TensorId, output::Map};
    use kernels::table;

    use super::*;

    #[test]
    fn more_bits_are_expected_to_err_less() {
        let formats: Vec<_> = ["q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0", "f16", "bf16"]
            .iter()
            .map(|name| table::gguf(name).expect("known"))
            .collect();
        let errors = expected(&formats).expect("all can be written");
        assert!(errors.windows(2).all(|pair| pair[0] > pair[1] || pair[0] == 0.0), "{errors:?}");
        // Four bits of a normal distribution: about 1 % of the energy is lost; BF16 weights lose nothing in BF16.
        assert!((0.003..0.012).contains(&errors[3]) && errors[8] == 0.0, "{errors:?}");
    }

    #[test]
    fn samples_are_spread_over_all_parts() {
        let part = |source, map| Part { source: TensorId(source), columns: 1024, rows: 0..4096, map };
        let experts: Vec<Part> = (0..8).map(|at| part(at, Map::Identity)).collect();
        let sampled: Vec<_> =
            places(&experts).iter().map(|part| (part.source.0, part.rows.clone())).collect();
        assert_eq!(sampled, [(1, 0..16), (3, 0..16), (5, 0..16), (7, 0..16)]);
        // What can't be cut is taken whole, once.
        assert_eq!(places(&[part(0, Map::Transpose)]), [part(0, Map::Transpose)]);
        let small = [Part { source: TensorId(0), columns: 32, rows: 0..3, map: Map::Identity }];
        assert_eq!(places(&small), small);
    }
}

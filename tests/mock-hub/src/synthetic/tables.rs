//! What tensors are filled from: a few tables of numbers, drawn from the seed.

use super::mix;
use super::tensors::{Dtype, Tensor};

/// Tables' lengths are primes: reading round and round, no two rows of a tensor are the same, and no two tensors that
/// start at different places either.
const WEIGHTS: usize = 4_194_301;
const EMBEDDINGS: usize = 1_048_573;
const NORMS: usize = 65_521;
const SCALES: usize = 262_139;
const BIASES: usize = 65_521;

/// The tables.
pub(super) struct Tables {
    seed: u64,
    weights: Vec<u8>,
    embeddings: Vec<u8>,
    norms: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Tables {
    pub(super) fn new(seed: u64) -> Tables {
        let mut random = Random(mix(seed));
        let codes = Codes::new();
        // Blocks of 128 by 128 are scaled so that their largest is 448: four or five standard deviations.
        let normal: Vec<u8> = (0..65_536).map(|_| codes.nearest(random.normal() * 100.0)).collect();
        let mut weights = Vec::with_capacity(WEIGHTS + 4);
        while weights.len() < WEIGHTS {
            let bits = random.bits();
            weights.extend([0, 16, 32, 48].map(|shift| normal[(bits >> shift) as usize & 0xffff]));
        }
        weights.truncate(WEIGHTS);
        let embeddings = (0..EMBEDDINGS).flat_map(|_| bf16(random.normal() * 0.02)).collect();
        let norms = (0..NORMS).flat_map(|_| bf16(1.0 + random.normal() * 0.1)).collect();
        let scales = (0..SCALES).flat_map(|_| (1e-5 + random.unit() * 9.9e-5).to_le_bytes()).collect();
        let biases = (0..BIASES).flat_map(|_| random.unit().to_le_bytes()).collect();
        Tables { seed, weights, embeddings, norms, scales, biases }
    }

    /// The table a tensor is filled from, and the byte of it that comes first. Steps between tensors are the same and
    /// coprime to the tables' lengths, so that no two begin at the same place.
    pub(super) fn of(&self, tensor: &Tensor) -> (&[u8], usize) {
        let table = match tensor.dtype {
            Dtype::F8 => &self.weights,
            Dtype::Bf16 if tensor.shape.len() == 1 => &self.norms,
            Dtype::Bf16 => &self.embeddings,
            Dtype::F32 if tensor.name.ends_with("_bias") => &self.biases,
            Dtype::F32 => &self.scales,
        };
        let size = tensor.dtype.size();
        let places = table.len() as u64 / size;
        let place = (mix(self.seed) % places + tensor.number * 2_654_435_761) % places;
        (table, (place * size) as usize)
    }
}

fn bf16(value: f32) -> [u8; 2] {
    ((value.to_bits() >> 16) as u16).to_le_bytes()
}

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// Evenly in `[0, 1)`.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// About normal: twelve that are even. Sums come out the same on every machine, which logarithms need not.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// The positive numbers of E4M3, in the order of their codes; 0x7F is no number.
struct Codes([f32; 127]);

impl Codes {
    fn new() -> Codes {
        Codes(std::array::from_fn(|code| {
            let (exponent, mantissa) = ((code >> 3) as i32, (code & 7) as f32);
            if exponent == 0 { mantissa / 512.0 } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) }
        }))
    }

    fn nearest(&self, value: f32) -> u8 {
        let size = value.abs();
        let above = self.0.partition_point(|&number| number < size).min(126);
        let below = above.saturating_sub(1);
        let code = if size - self.0[below] < self.0[above] - size { below } else { above };
        code as u8 | (u8::from(value < 0.0) << 7)
    }
}

#[cfg(test)]
mod tests {
    use super::Codes;

    #[test]
    fn codes_are_those_of_e4m3() {
        let codes = Codes::new();
        assert_eq!((codes.0[126], codes.0[0x38], codes.0[1]), (448.0, 1.0, 1.0 / 512.0));
        assert_eq!((codes.nearest(500.0), codes.nearest(-1.0), codes.nearest(0.0)), (126, 0xb8, 0));
        assert_eq!(codes.nearest(1.04), 0x38);
    }
}

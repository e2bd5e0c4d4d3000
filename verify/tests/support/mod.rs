//! Small models of all families, made when they are needed. `families/<family>.json` holds a model's configuration and, for each
//! tensor, its type, shape, mean and standard deviation. They are those of a trained model, so that nothing explodes or vanishes,
//! but for the decay of Qwen 3.5's linear attention, which is slow: its state is to outlive a few tokens.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::Value;

/// SplitMix64 (Steele, Lea and Flood, <https://doi.org/10.1145/2714064.2660195>).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Almost normal, with a deviation of one: four sixteen-bit numbers added, the same on every machine.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 3.0f32.sqrt()
    }
}

#[derive(Deserialize)]
struct Recipe {
    config: Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, f32, f32)>,
}

/// Writes the family's model into `folder`: always the same.
pub fn checkpoint(family: &str, folder: &Path) {
    let recipe = format!("{}/tests/families/{family}.json", env!("CARGO_MANIFEST_DIR"));
    let recipe = std::fs::read_to_string(&recipe).expect(&recipe);
    let recipe: Recipe = serde_json::from_str(&recipe).expect(family);
    std::fs::write(folder.join("config.json"), recipe.config.to_string()).expect("config.json");
    let mut random = Random(0);
    let tensors: Vec<_> = recipe
        .tensors
        .into_iter()
        .map(|(name, (dtype, shape, mean, deviation))| {
            let values = (0..shape.iter().product()).map(|_| mean + deviation * random.normal());
            let bytes: Vec<u8> = match dtype {
                // Cut off: to which side a random value is rounded is all the same.
                Dtype::BF16 => values.flat_map(|value| [2, 3].map(|i| value.to_le_bytes()[i])).collect(),
                Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                other => panic!("{name}: no recipe for {other:?}"),
            };
            (name, dtype, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape says"))
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).expect("model.safetensors");
}

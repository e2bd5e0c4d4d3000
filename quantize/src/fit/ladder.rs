//! What one would take without a plan: the container's named mixes, beside the plan's size and cost.

use crate::{
    allocate::Costs,
    error::Result,
    fit::Wish,
    job::Job,
    mix::{self, MIXES},
    overrides::Overrides,
    plan::Container,
};

/// A mix of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rung {
    /// Its name.
    pub name: String,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Its cost, if all its types are among those that the target runs; in units of the plan's.
    pub cost: Option<f64>,
}

/// MLX's uniform modes that people publish.
const MLX: [&str; 8] =
    ["2bit-g64", "3bit-g64", "mxfp4", "4bit-g64", "5bit-g64", "6bit-g64", "mxfp8", "8bit-g64"];

/// The mixes that quantize, by rising size.
pub fn ladder(job: &Job, wish: &Wish, costs: &Costs, plan: f64) -> Result<Vec<Rung>> {
    let none = Overrides::default();
    let mut ladder = Vec::new();
    let mut add = |name: &str, formats: Vec<&'static kernels::Format>| {
        let bytes = job.outputs.iter().zip(&formats).map(|(output, format)| {
            let planes =
                (0..format.planes.len()).filter_map(|plane| format.plane_bytes(plane, output.elements()));
            planes.sum::<u64>()
        });
        let cost = costs.of(&formats).filter(|_| plan > 0.0).map(|cost| cost / plan);
        ladder.push(Rung { name: name.to_owned(), bytes: bytes.sum(), cost });
    };
    match wish.container {
        Container::Gguf => {
            let facts = job.facts;
            for mix in MIXES.iter().filter(|mix| !["f32", "f16", "bf16"].contains(&mix.name)) {
                add(mix.name, mix::choose(mix, &job.outputs, &facts, &none)?.formats);
            }
        }
        Container::Mlx => {
            for mode in MLX {
                add(mode, mix::mlx_formats(mode, &job.outputs, job.facts.dtype, &none)?.formats);
            }
        }
        // Every uniform plan is made, see `uniform`.
        _ => {}
    }
    ladder.sort_by_key(|rung| rung.bytes);
    Ok(ladder)
}

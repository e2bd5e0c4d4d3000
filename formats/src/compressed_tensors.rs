//! Folders of compressed-tensors, which vLLM, SGLang and transformers load: safetensors shards under Hugging Face's own names, their
//! index, and what `config.json` says about the quantization. (compressed-tensors: `compressors/pack_quantized/base.py`,
//! `compressors/mxfp4/base.py`, `quantization/quant_config.py`, `quant_scheme.py`, `quant_args.py`.)
//!
//! A quantized weight `X.weight` [N, K] is `X.weight_packed` (codes, in I32 words [N, K/8]), `X.weight_scale` [N, K/g] and
//! `X.weight_shape` (I64 [2]: N and K), and with zero points `X.weight_zero_point` (I32 [N/8, K/g], rounded up, eight rows in a word).
//! In MXFP4 it is `X.weight_packed` (U8 [N, K/2]) and `X.weight_scale` (U8 [N, K/32], exponents), in NVFP4 the same with
//! `X.weight_scale` (E4M3 [N, K/16]) and what that is divided by, `X.weight_global_scale` (F32 [1]).
//! [`join`](crate::compressed_folder::join) reads them.

use kernels::{
    Format,
    mxfp4::MLX_MXFP4,
    nvfp4::{COMPRESSED_NVFP4, GLOBAL_SCALE},
    table, w4a16_asym,
};
use serde_json::{Map, Value, json};

use crate::arrangement::{Eights, IN_ORDER, Order};
pub(crate) use crate::linears::WEIGHT;
use crate::linears::{Holds, Linear, Modules, Packing, Part};
pub use crate::linears::{SHARD_SIZE, Tensor};

/// The ends of the names of what a quantized weight is stored as: the formats' planes, and the shape.
pub(crate) const PACKED: &str = ".weight_packed";
pub(crate) const SCALE: &str = ".weight_scale";
pub(crate) const SHAPE: &str = ".weight_shape";
pub(crate) const ZERO_POINT: &str = ".weight_zero_point";
pub(crate) const DIVISOR: &str = ".weight_global_scale";

/// compressed-tensors' names of what is written here.
const INTEGERS: &str = "pack-quantized";
const MXFP4: &str = "mxfp4-pack-quantized";
const NVFP4: &str = "nvfp4-pack-quantized";
const MIXED: &str = "mixed-precision";

/// compressed-tensors.
///
/// One scheme for all is said of every `Linear` but those listed; with several, each says which modules it is for.
pub static PACKING: Packing = Packing {
    name: "compressed-tensors",
    formats: table::COMPRESSED_TENSORS,
    scales: None,
    rows: 1,
    uniform: false,
    parts,
    quantization,
};

fn is_asymmetric(format: &Format) -> bool {
    w4a16_asym::scales_of(format).is_some()
}

fn parts(linear: &Linear) -> Option<Vec<Part>> {
    let (rows, columns, groups) = (linear.rows, linear.columns, linear.groups());
    if *linear.format == COMPRESSED_NVFP4 {
        return Some(vec![
            Part::new(PACKED, "U8", &[rows, columns / 2], Holds::Plane(0)),
            Part::new(SCALE, "F8_E4M3", &[rows, groups], Holds::Plane(1)),
            Part::new(DIVISOR, "F32", &[1], Holds::Bytes(GLOBAL_SCALE.to_le_bytes().to_vec())),
        ]);
    }
    if *linear.format == MLX_MXFP4 {
        return Some(vec![
            Part::new(PACKED, "U8", &[rows, columns / 2], Holds::Plane(0)),
            Part::new(SCALE, "U8", &[rows, groups], Holds::Plane(1)),
        ]);
    }
    let sizes = [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect();
    let mut parts = vec![
        Part::new(PACKED, "I32", &[rows, columns / 8], Holds::Plane(0)),
        Part::new(SCALE, linear.scales()?, &[rows, groups], Holds::Plane(1)),
        Part::new(SHAPE, "I64", &[2], Holds::Bytes(sizes)),
    ];
    if is_asymmetric(linear.format) {
        let eights = Order::Eights(Eights { bits: 8, places: IN_ORDER, across: false, less: 0 });
        let holds = Holds::Arranged(2, eights, groups);
        parts.push(Part::new(ZERO_POINT, "I32", &[rows.div_ceil(8), groups], holds));
    }
    Some(parts)
}

fn quantization(modules: &Modules<'_>) -> Value {
    let mut schemes: Vec<(&str, Value, Vec<&str>)> = Vec::new();
    for &(module, format) in &modules.quantized {
        let weights = weights(format);
        match schemes.iter_mut().find(|(_, known, _)| *known == weights) {
            Some((_, _, modules)) => modules.push(module),
            None => schemes.push((packed_as(format), weights, vec![module])),
        }
    }
    let (is_only, first) = (schemes.len() == 1, schemes[0].0);
    let packed = if schemes.iter().all(|(packed, ..)| *packed == first) { first } else { MIXED };
    let groups = schemes.into_iter().enumerate().map(|(i, (packed, weights, modules))| {
        let targets = if is_only { vec!["Linear"] } else { modules };
        let scheme = json!({
            "targets": targets,
            "weights": weights,
            "input_activations": null,
            "output_activations": null,
            "format": packed,
        });
        (format!("group_{i}"), scheme)
    });
    json!({
        "quant_method": "compressed-tensors",
        "format": packed,
        "quantization_status": "compressed",
        "config_groups": groups.collect::<Map<_, _>>(),
        "ignore": modules.left_with_head(),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}

/// compressed-tensors' name for how a format is stored.
fn packed_as(format: &Format) -> &'static str {
    if *format == MLX_MXFP4 {
        MXFP4
    } else if *format == COMPRESSED_NVFP4 {
        NVFP4
    } else {
        INTEGERS
    }
}

/// The `QuantizationArgs` of a format.
fn weights(format: &Format) -> Value {
    let (is_float, has_divisor) = (packed_as(format) != INTEGERS, *format == COMPRESSED_NVFP4);
    let mut weights = json!({
        "num_bits": 4,
        "type": if is_float { "float" } else { "int" },
        "symmetric": !is_asymmetric(format),
        "strategy": if has_divisor { "tensor_group" } else { "group" },
        "group_size": format.block,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    });
    // Older versions refuse what they don't know.
    if is_float {
        weights["scale_dtype"] = if has_divisor { "torch.float8_e4m3fn" } else { "torch.uint8" }.into();
    }
    weights
}

//! Folders of compressed-tensors as a source: the tensors of a quantized linear are one tensor `X.weight`.
//! ([`compressed_tensors`](crate::compressed_tensors) writes such folders.)
//!
//! | scheme | `X.weight_packed` | `X.weight_scale` | besides |
//! |---|---|---|---|
//! | pack-quantized | I32 [N, K/8], the first code in the lowest bits | float [N, K/g] | `X.weight_shape` (N, K); asymmetric: `X.weight_zero_point` I32 [⌈N/8⌉, K/g] along N |
//! | mxfp4-pack-quantized | U8 [N, K/2], the same | U8 [N, K/32], E8M0 | |
//! | nvfp4-pack-quantized | U8 [N, K/2], the same | E4M3 [N, K/16] | `X.weight_global_scale` F32 \[1\], a divisor |
//!
//! (compressed-tensors: `compressors/pack_quantized`, `mxfp4`, `nvfp4`.) Weights in FP8 keep their name and have scales beside them:
//! [`scales`](crate::scales). Scales of activations, `input_global_scale` among them, say nothing about weights and are left out.

use kernels::mxfp4::MLX_MXFP4;
use kernels::nvfp4::MLX_NVFP4;
use kernels::w4a16::w4a16;
use kernels::w4a16_asym::w4a16_asym;

use crate::arrangement::{Arrangement, Eights, IN_ORDER, Order};
use crate::compressed_schemes::{Kind, Schemes};
use crate::compressed_tensors::{DIVISOR, PACKED, SCALE, SHAPE, WEIGHT};
use crate::decoded::Decoding;
use crate::error::Result;
use crate::joined::{Convention, Joined, Plane, Stated, Whole, malformed};
use crate::module::{Module, is_i32, is_u8};
use crate::packed::Quantization;
use crate::safetensors::Safetensors;
use crate::scales::is_of_activations;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

const ZEROS: &str = ".weight_zero_point";
const INDEX: &str = ".weight_g_idx";

/// The [`Reader`](crate::packed::Reader).
///
/// # Errors
/// As a reader's.
pub fn join(quantization: &Quantization, stored: Safetensors) -> Result<Joined> {
    let schemes = Schemes::of(quantization)?;
    let mut wholes = Vec::new();
    for (id, meta) in stored.tensors().iter().enumerate() {
        let id = TensorId(id);
        if meta.name.ends_with(INDEX) {
            let reason = format!(
                "{} means columns out of order (actorder `group`), which is not read: give the full-precision checkpoint",
                meta.name
            );
            return Err(malformed(&stored, id, reason));
        }
        let has_codes = |module: &str| stored.find(&format!("{module}{PACKED}")).is_some();
        let is_part = |end: &&str| meta.name.strip_suffix(end).is_some_and(has_codes);
        if [SCALE, SHAPE, ZEROS, DIVISOR].iter().any(is_part) || is_of_activations(&meta.name) {
            continue;
        }
        if meta.dtype == Dtype::F8E4M3 && meta.name.ends_with(WEIGHT) {
            schemes
                .check(Kind::Fp8, None)
                .map_err(|what| malformed(&stored, id, format!("{} is {what}", meta.name)))?;
        }
        wholes.push(match meta.name.strip_suffix(PACKED) {
            Some(name) => linear(&Module { stored: &stored, name, codes: id }, &schemes)?,
            None => Whole::new(meta.clone(), vec![id.into()]),
        });
    }
    Ok(Joined::new(Convention::CompressedTensors, stored, wholes))
}

/// A quantized linear's weight.
fn linear(module: &Module<'_>, schemes: &Schemes) -> Result<Whole> {
    let codes = module.codes();
    let scales = module.need(SCALE)?;
    let (is_bytes, scale_dtype) = (is_u8(codes), module.stored.meta(scales).dtype);
    if is_i32(codes) {
        integers(module, scales, schemes)
    } else if is_bytes && scale_dtype == Dtype::F8E4M3 {
        nvfp4(module, scales, schemes)
    } else if is_bytes && (scale_dtype == Dtype::F8E8M0 || is_u8(module.stored.meta(scales))) {
        mxfp4(module, scales, schemes)
    } else {
        let what =
            "are neither codes in I32 with scales in floats, nor codes in U8 with scales in U8 or F8_E4M3";
        Err(module.contradiction(&[module.codes, scales], what))
    }
}

fn integers(module: &Module<'_>, scales: TensorId, schemes: &Schemes) -> Result<Whole> {
    let contradiction = |what: &str| module.contradiction(&[module.codes, scales], what);
    let (shape, groups) = shape(module, scales, 8)?;
    let [rows, columns] = shape;
    let float = module.float(scales)?;
    let group = columns / groups;
    let zeros = module.find(ZEROS);
    let kind = Kind::Int4 { symmetric: zeros.is_none() };
    let format = if zeros.is_some() { w4a16_asym(group, float) } else { w4a16(group, float) };
    if format.is_none() && groups > 1 {
        return Err(contradiction(&format!(
            "make groups of {group}: read are 32, 64 and 128, and whole rows"
        )));
    }
    schemes.check(kind, Some(group)).map_err(|what| contradiction(&format!("are {what}")))?;
    let mut planes = vec![module.codes.into(), scales.into()];
    if let Some(zeros) = zeros {
        let meta = module.stored.meta(zeros);
        if !is_i32(meta) || meta.shape != [rows.div_ceil(8), groups] {
            let what = format!(
                "don't belong together: the zero points of {rows} rows are I32 [{}, {groups}]",
                rows.div_ceil(8)
            );
            return Err(module.contradiction(&[module.codes, zeros], &what));
        }
        let order = Order::Eights(Eights { bits: 8, places: IN_ORDER, across: false, less: 0 });
        planes.push(Plane { stored: zeros, arrangement: Some(Arrangement { order, rows, columns: groups }) });
    }
    let stated = module.find(SHAPE).map(|id| stated_shape(module, id)).transpose()?;
    let decoding = match format {
        Some(_) => None,
        None => Some(Decoding::Grouped { index: None, groups, scales: float }),
    };
    let meta = module.weight(format.unwrap_or(float), shape)?;
    Ok(Whole { meta, planes, stated, decoding })
}

fn stated_shape(module: &Module<'_>, id: TensorId) -> Result<Stated> {
    let meta: &TensorMeta = module.stored.meta(id);
    if meta.shape == [2] && matches!(meta.dtype, Dtype::Other { name: "I64" | "I32", .. }) {
        return Ok(Stated::Shape(id));
    }
    let reason = format!("{} is {} {:?}, not two integers, I64 [2]", meta.name, meta.dtype, meta.shape);
    Err(malformed(module.stored, id, reason))
}

fn mxfp4(module: &Module<'_>, scales: TensorId, schemes: &Schemes) -> Result<Whole> {
    let shape = floats(module, scales, MLX_MXFP4.block, Kind::Mxfp4, schemes)?;
    let weight = module.weight(&MLX_MXFP4, shape)?;
    Ok(Whole::new(weight, vec![module.codes.into(), scales.into()]))
}

fn nvfp4(module: &Module<'_>, scales: TensorId, schemes: &Schemes) -> Result<Whole> {
    let shape = floats(module, scales, MLX_NVFP4.block, Kind::Nvfp4, schemes)?;
    let divisor = module.need(DIVISOR)?;
    let meta = module.stored.meta(divisor);
    if meta.dtype != Dtype::Block(&kernels::float::F32) || meta.elements() != 1 {
        return Err(
            module.contradiction(&[divisor], "is not one number in F32, the divisor of NVFP4's scales")
        );
    }
    let decoding = Decoding::Divided { divisor };
    let weight = module.weight(decoding.float(), shape)?;
    let planes = vec![module.codes.into(), scales.into()];
    Ok(Whole { decoding: Some(decoding), ..Whole::new(weight, planes) })
}

/// The shape of a weight in floats of four bits, in groups of `group`.
fn floats(
    module: &Module<'_>,
    scales: TensorId,
    group: usize,
    kind: Kind,
    schemes: &Schemes,
) -> Result<[u64; 2]> {
    let contradiction = |what: &str| module.contradiction(&[module.codes, scales], what);
    let (shape, groups) = shape(module, scales, 2)?;
    if shape[1] / groups != group as u64 {
        return Err(contradiction(&format!(
            "make groups of {}: those of {kind} are {group}",
            shape[1] / groups
        )));
    }
    schemes.check(kind, None).map_err(|what| contradiction(&format!("are {what}")))?;
    Ok(shape)
}

/// The shape of a weight and the groups in its rows, if codes, so many in an element, and scales belong together.
fn shape(module: &Module<'_>, scales: TensorId, codes_in_one: u64) -> Result<([u64; 2], u64)> {
    let contradiction = |what: &str| module.contradiction(&[module.codes, scales], what);
    let ([rows, elements], [scale_rows, groups]) = (module.matrix(module.codes)?, module.matrix(scales)?);
    let columns = elements.checked_mul(codes_in_one).filter(|_| scale_rows == rows);
    match columns.filter(|columns| columns.is_multiple_of(groups)) {
        Some(columns) => Ok(([rows, columns], groups)),
        None => Err(contradiction(&format!(
            "don't belong together: an element has {codes_in_one} codes, and rows are whole groups"
        ))),
    }
}

//! AWQ's folders as a source: `X.qweight`, `X.scales` and `X.qzeros` of a quantized linear are one tensor `X.weight`. (AutoAWQ:
//! `modules/linear/gemm.py`, `WQLinear_GEMM`; GPTQModel and AutoRound write the same.)
//!
//! For a weight [N, K] in groups of g columns: codes in I32 words [K, N/8] along N, in AWQ's own order of eight; scales [K/g, N] in a
//! float type; zero points in words [K/g, N/8] like the codes (with `zero_point: false` too, then all are 8). Read is version GEMM, of four bits in groups of 32, 64 or 128.

use kernels::w4a16_asym::w4a16_asym;

use crate::arrangement::{AWQ_ORDER, Arrangement, Eights, Order};
use crate::error::Result;
use crate::gptq_folder::wholes;
use crate::joined::{Convention, Joined, Plane, Whole};
use crate::module::{Module, is_i32};
use crate::packed::Quantization;
use crate::safetensors::Safetensors;
use crate::tensor::TensorSource;

const SCALES: &str = ".scales";
const ZEROS: &str = ".qzeros";

/// The [`Reader`](crate::packed::Reader).
///
/// # Errors
/// As a reader's.
pub fn join(quantization: &Quantization, stored: Safetensors) -> Result<Joined> {
    quantization.check_bits()?;
    if quantization.text("version")?.is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
        return Err(quantization.refused("version", "read is `gemm`"));
    }
    let wholes = wholes(&stored, [SCALES, ZEROS], |module| whole(module, quantization))?;
    Ok(Joined::new(Convention::Awq, stored, wholes))
}

fn whole(module: &Module<'_>, quantization: &Quantization) -> Result<Whole> {
    let (codes, scales, zeros) = (module.codes, module.need(SCALES)?, module.need(ZEROS)?);
    let [[columns, words], [groups, scale_rows], zero_words] =
        [module.matrix(codes)?, module.matrix(scales)?, module.matrix(zeros)?];
    let contradiction = |what: &str| module.contradiction(&[codes, scales, zeros], what);
    if ![codes, zeros].iter().all(|&id| is_i32(module.stored.meta(id))) {
        return Err(contradiction("are no codes and zero points in I32"));
    }
    let rows = words.checked_mul(8).filter(|&rows| scale_rows == rows && columns.is_multiple_of(groups));
    let Some(rows) = rows.filter(|_| zero_words == [groups, words]) else {
        return Err(contradiction("don't belong together as codes of 4 bits in groups"));
    };
    let group = columns / groups;
    quantization.check_group(group, groups == 1).map_err(|what| contradiction(&what))?;
    let float = module.float(scales)?;
    let format = w4a16_asym(group, float)
        .ok_or_else(|| contradiction(&format!("make groups of {group}: read are 32, 64 and 128")))?;
    let eights = |bits| Order::Eights(Eights { bits, places: AWQ_ORDER, across: true, less: 0 });
    let lie = |order, columns| Some(Arrangement { order, rows, columns });
    let planes = vec![
        Plane { stored: codes, arrangement: lie(eights(4), columns) },
        Plane {
            stored: scales,
            arrangement: lie(Order::Transposed { unit: float.planes[0] as u64 }, groups),
        },
        Plane { stored: zeros, arrangement: lie(eights(8), groups) },
    ];
    Ok(Whole::new(module.weight(format, [rows, columns])?, planes))
}

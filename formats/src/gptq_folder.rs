//! GPTQ's folders as a source: `X.qweight`, `X.scales`, `X.qzeros` and `X.g_idx` of a quantized linear are one tensor `X.weight`.
//! (GPTQModel: `nn_modules/qlinear/__init__.py`, `pack_block` and `dequantize_weight`; AutoRound writes the same.)
//!
//! For a weight [N, K] in groups of g columns: codes in I32 words [K/8, N] along K, the first in the lowest bits; scales [K/g, N] in a
//! float type; zero points in words [K/g, N/8] along N; `g_idx` I32 [K] ([`group_index`](crate::group_index)). The first version of the
//! format stores zero points less 1. Four bits are read, in groups of 32, 64 or 128, or a whole row.

use kernels::w4a16_asym::w4a16_asym;
use serde_json::Value;

use crate::arrangement::{Arrangement, Eights, IN_ORDER, Order};
use crate::decoded::Decoding;
use crate::error::Result;
use crate::group_index::GroupIndex;
use crate::joined::{Convention, Joined, Plane, Stated, Whole};
use crate::module::{Module, is_i32};
use crate::packed::Quantization;
use crate::safetensors::Safetensors;
use crate::tensor::{TensorId, TensorSource};

const CODES: &str = ".qweight";
const SCALES: &str = ".scales";
const ZEROS: &str = ".qzeros";
const INDEX: &str = ".g_idx";

/// What `config.json` says about all modules.
struct Said<'a> {
    quantization: &'a Quantization,
    /// What stored zero points are less than the real ones.
    less: u8,
    /// Whether the columns of a group may be anywhere.
    desc_act: bool,
}

/// The [`Reader`](crate::packed::Reader).
///
/// # Errors
/// As a reader's.
pub fn join(quantization: &Quantization, stored: Safetensors) -> Result<Joined> {
    quantization.check_bits()?;
    let desc_act = quantization.get("desc_act").and_then(Value::as_bool).unwrap_or(false);
    let said = Said { quantization, less: less(quantization)?, desc_act };
    let wholes = wholes(&stored, [SCALES, ZEROS, INDEX], |module| said.whole(module))?;
    Ok(Joined::new(Convention::Gptq, stored, wholes))
}

/// All tensors of a folder; those of a module with codes become one, and its tensors whose names end in one of `others` are no more.
pub(crate) fn wholes<const N: usize>(
    stored: &Safetensors,
    others: [&str; N],
    whole: impl Fn(&Module<'_>) -> Result<Whole>,
) -> Result<Vec<Whole>> {
    let has_codes = |module: &str| stored.find(&format!("{module}{CODES}")).is_some();
    let mut wholes = Vec::new();
    for (id, meta) in stored.tensors().iter().enumerate() {
        if others.iter().any(|end| meta.name.strip_suffix(end).is_some_and(has_codes)) {
            continue;
        }
        wholes.push(match meta.name.strip_suffix(CODES) {
            Some(name) => whole(&Module { stored, name, codes: TensorId(id) })?,
            None => Whole::new(meta.clone(), vec![TensorId(id).into()]),
        });
    }
    Ok(wholes)
}

/// What the version of the format makes stored zero points less than the real ones. AutoRound states it in another way.
fn less(quantization: &Quantization) -> Result<u8> {
    if let Some(packing) = quantization.text("packing_format")? {
        return Ok(u8::from(!["auto_round", "auto_round:gptqmodel"].contains(&packing)));
    }
    let key = if quantization.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    match quantization.text(key)? {
        None | Some("gptq") => Ok(1),
        Some("gptq_v2") => Ok(0),
        Some(_) => Err(quantization.refused(key, "read are `gptq` and `gptq_v2`")),
    }
}

impl Said<'_> {
    fn whole(&self, module: &Module<'_>) -> Result<Whole> {
        let (codes, scales, zeros) = (module.codes, module.need(SCALES)?, module.need(ZEROS)?);
        let [[words, rows], [groups, scale_rows], zero_words] =
            [module.matrix(codes)?, module.matrix(scales)?, module.matrix(zeros)?];
        let contradiction = |what: &str| module.contradiction(&[codes, scales, zeros], what);
        if ![codes, zeros].iter().all(|&id| is_i32(module.stored.meta(id))) {
            return Err(contradiction("are no codes and zero points in I32"));
        }
        let columns =
            words.checked_mul(8).filter(|columns| scale_rows == rows && columns.is_multiple_of(groups));
        let Some(columns) = columns.filter(|_| zero_words == [groups, rows.div_ceil(8)]) else {
            return Err(match zero_words[1].saturating_mul(32) / rows {
                bits @ (2 | 3 | 8) => contradiction(&format!("have {bits} bits: read are 4")),
                _ => contradiction("don't belong together as codes of 4 bits in groups"),
            });
        };
        let (group, is_one) = (columns / groups, groups == 1);
        self.quantization.check_group(group, is_one).map_err(|what| contradiction(&what))?;
        let float = module.float(scales)?;
        let lie = |order, columns| Some(Arrangement { order, rows, columns });
        let zero_order = Order::Eights(Eights { bits: 8, places: IN_ORDER, across: true, less: self.less });
        let planes = vec![
            Plane { stored: codes, arrangement: lie(Order::Transposed { unit: 4 }, words) },
            Plane {
                stored: scales,
                arrangement: lie(Order::Transposed { unit: float.planes[0] as u64 }, groups),
            },
            Plane { stored: zeros, arrangement: lie(zero_order, groups) },
        ];
        let index = module.find(INDEX).map(|index| GroupIndex::new(module.stored, index, columns, groups));
        let index = index.transpose()?;
        if self.desc_act && index.is_none() && !is_one {
            return Err(contradiction("lack their g_idx, and config.json says desc_act: fetch all shards"));
        }
        let format = w4a16_asym(group, float);
        if format.is_none() && !is_one {
            return Err(contradiction(&format!(
                "make groups of {group}: read are 32, 64 and 128, and whole rows"
            )));
        }
        let stated = index.map(Stated::Groups);
        if let Some(format) = format.filter(|_| !self.desc_act) {
            let meta = module.weight(format, [rows, columns])?;
            return Ok(Whole { stated, ..Whole::new(meta, planes) });
        }
        let decoding = Decoding::Grouped { index: index.filter(|_| self.desc_act), groups, scales: float };
        let meta = module.weight(decoding.float(), [rows, columns])?;
        let stated = stated.filter(|_| !self.desc_act);
        Ok(Whole { meta, planes, stated, decoding: Some(decoding) })
    }
}

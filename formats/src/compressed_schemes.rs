//! The schemes that `config.json` of a compressed-tensors folder states, to which its tensors are held. (compressed-tensors:
//! `quantization/quant_config.py`, `quant_scheme.py`, `quant_args.py`.)

use std::fmt;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::packed::Quantization;

/// How the weights of a linear are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `pack-quantized` of four bits in groups, around zero or with zero points.
    Int4 { symmetric: bool },
    /// `mxfp4-pack-quantized`
    Mxfp4,
    /// `nvfp4-pack-quantized`
    Nvfp4,
    /// `float-quantized`: E4M3 with scales of the tensor, of rows or of blocks.
    Fp8,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Int4 { symmetric: true } => "symmetric pack-quantized of 4 bits",
            Kind::Int4 { symmetric: false } => "asymmetric pack-quantized of 4 bits",
            Kind::Mxfp4 => "mxfp4-pack-quantized",
            Kind::Nvfp4 => "nvfp4-pack-quantized",
            Kind::Fp8 => "float-quantized",
        })
    }
}

/// What may be in a folder. How its activations are quantized does not matter to its weights.
#[derive(Debug)]
pub(crate) struct Schemes {
    /// Each with the size of its groups, where that is stated; none at all if the folder states none.
    stated: Vec<(Kind, Option<u64>)>,
}

impl Schemes {
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) for a scheme that is not read.
    pub fn of(quantization: &Quantization) -> Result<Schemes> {
        let sparsity = quantization.get("sparsity_config").and_then(|sparsity| sparsity.get("format"));
        if sparsity.is_some_and(|format| format != "dense") {
            return Err(quantization.refused("sparsity_config", "read are weights without sparsity"));
        }
        let Some(groups) = quantization.get("config_groups") else {
            return Ok(Schemes { stated: Vec::new() });
        };
        let Some(groups) = groups.as_object() else {
            return Err(quantization.refused("config_groups", "read is an object"));
        };
        let stated = groups.iter().map(|(name, group)| Group { quantization, name, group }.scheme());
        Ok(Schemes { stated: stated.filter_map(Result::transpose).collect::<Result<_>>()? })
    }

    /// Why tensors of this kind, with groups of so many columns if it leaves a choice, can't be in the folder.
    pub fn check(&self, kind: Kind, group: Option<u64>) -> Result<(), String> {
        let fits = |&(stated, size): &(Kind, Option<u64>)| {
            stated == kind && (group.is_none() || size.is_none() || size == group)
        };
        if self.stated.is_empty() || self.stated.iter().any(fits) {
            return Ok(());
        }
        let groups = group.map(|group| format!(" in groups of {group}")).unwrap_or_default();
        let stated = self.stated.iter().map(|(kind, group)| match group {
            Some(group) => format!("{kind} in groups of {group}"),
            None => kind.to_string(),
        });
        let stated = stated.collect::<Vec<_>>().join(", ");
        Err(format!("{kind}{groups}, but config.json says {stated}"))
    }
}

/// One of `config_groups`.
struct Group<'a> {
    quantization: &'a Quantization,
    name: &'a str,
    group: &'a Value,
}

impl Group<'_> {
    /// The scheme of its weights; `None` if they are not quantized.
    fn scheme(&self) -> Result<Option<(Kind, Option<u64>)>> {
        let Some(weights) = self.group.get("weights").and_then(Value::as_object) else { return Ok(None) };
        let format = match self.group.get("format").filter(|format| !format.is_null()) {
            Some(own) => own.as_str().unwrap_or_default(),
            None => self.quantization.text("format")?.unwrap_or_default(),
        };
        let said = |key: &str| weights.get(key).filter(|value| !value.is_null());
        let bits = said("num_bits").and_then(Value::as_u64);
        let size = said("group_size").and_then(Value::as_u64);
        let is_strategy =
            |read: &[&str]| said("strategy").is_none_or(|said| read.iter().any(|read| said == read));
        let is_float = said("type").is_some_and(|kind| kind == "float");
        let expect = |key: &str, is_so: bool| if is_so { Ok(()) } else { Err(self.wrong(weights, key)) };
        match format {
            "pack-quantized" => {
                expect("num_bits", bits == Some(4))?;
                expect("type", !is_float)?;
                expect("strategy", is_strategy(&["group", "channel"]))?;
                // "weight" is an order that only its calibration went by.
                let orders = [false.into(), "weight".into(), "static".into()];
                expect("actorder", said("actorder").is_none_or(|order| orders.contains(order)))?;
                let symmetric = said("symmetric").is_none_or(|symmetric| symmetric == true);
                Ok(Some((Kind::Int4 { symmetric }, size)))
            }
            "mxfp4-pack-quantized" => Ok(Some((Kind::Mxfp4, None))),
            "nvfp4-pack-quantized" => Ok(Some((Kind::Nvfp4, None))),
            "float-quantized" | "naive-quantized" => {
                expect("num_bits", bits == Some(8))?;
                expect("type", is_float)?;
                expect("strategy", is_strategy(&["tensor", "channel", "block"]))?;
                Ok(Some((Kind::Fp8, None)))
            }
            other => {
                let name = self.name;
                Err(self.quantization.malformed(format!(
                    "the format of quantization_config.config_groups.{name} is `{other}`: {READ}"
                )))
            }
        }
    }

    fn wrong(&self, weights: &Map<String, Value>, key: &str) -> crate::Error {
        let (name, value) = (self.name, weights.get(key).unwrap_or(&Value::Null));
        self.quantization
            .malformed(format!("quantization_config.config_groups.{name}.weights.{key} is {value}: {READ}"))
    }
}

/// What is read, and what to do with anything else.
const READ: &str = "read are pack-quantized of 4 bits in groups or channels, mxfp4-pack-quantized, nvfp4-pack-quantized, and float-quantized of \
                    8 bits with scales of a tensor, channel or block; give the full-precision checkpoint";

//! Schemes of the containers that keep the checkpoint's own names: which weight gets which.

use std::collections::HashMap;

use formats::output::{Class, OutputTensor};
use formats::{Content, Dtype, TensorSource, config::FloatType, linears::Packing};
use kernels::{Format, float};

use crate::error::{Error, Result};
use crate::mix::{Choices, Fallback, format_error, full_precision};
use crate::overrides::{Overrides, writable};

/// The format of each tensor: `spec` (`w4a16-g128`, … or a float type) for the linears of attention and MLPs, its own type for what isn't quantized
/// (BF16 if that is FP8). Scales are in the packing's type; where it leaves the choice in the model's, unless the scheme's name says
/// another.
///
/// # Errors
/// If `spec` is unknown, an override finds no tensor, linears that consumers fuse would have different schemes, or a tensor holds no
/// weights.
pub fn linear_formats(
    packing: &Packing,
    spec: &str,
    tensors: &[OutputTensor],
    source: &dyn TensorSource,
    dtype: Option<FloatType>,
    overrides: &Overrides,
) -> Result<Choices> {
    overrides.check_used(tensors)?;
    let format = writable(&packing.named(), spec).map_err(format_error)?;
    let full = full_precision(dtype);
    let mut choices = Choices::default();
    for tensor in tensors {
        let own = own_float(tensor, source)?;
        let mut got = own;
        if tensor.quantizable {
            let wanted = packing.scaled(overrides.of(tensor).unwrap_or(format), full);
            let rows = tensor.elements() / tensor.columns().max(1);
            let holds_rows = wanted.block == 1 || rows.is_multiple_of(packing.rows);
            if wanted.holds_row(tensor.columns()) && holds_rows {
                got = wanted;
            } else {
                choices.fallbacks.push(Fallback {
                    tensor: tensor.name.clone(),
                    wanted,
                    got,
                    columns: tensor.columns(),
                    rows: (!holds_rows).then_some((rows, packing.rows)),
                });
            }
        }
        choices.formats.push(got);
    }
    check_fused(tensors, &choices.formats)?;
    Ok(choices)
}

/// The float type of a tensor's source, or BF16 if it is quantized.
pub(crate) fn own_float(tensor: &OutputTensor, source: &dyn TensorSource) -> Result<&'static Format> {
    let Content::Parts(parts) = &tensor.content else { return Ok(&float::F32) };
    let dtype = parts.first().map(|part| source.meta(part.source).dtype);
    match dtype {
        Some(Dtype::Block(format)) if format.block == 1 => Ok(format),
        Some(Dtype::Block(_) | Dtype::F8E4M3) => Ok(&float::BF16),
        _ => {
            let dtype = dtype.map_or(String::new(), |dtype| dtype.to_string());
            let (tensor, shape) = (tensor.name.clone(), tensor.shape.clone());
            Err(formats::Error::NotWeights { tensor, dtype, shape }.into())
        }
    }
}

/// What vLLM loads into one matrix, or as the experts of one layer (`packed_modules_mapping` of its models): a number for each set.
pub(crate) fn fused(class: Class) -> Option<u32> {
    match class {
        Class::AttnQ | Class::AttnK | Class::AttnV => Some(0),
        Class::AttnQA | Class::AttnKvA => Some(1),
        Class::FfnGate | Class::FfnUp => Some(2),
        Class::SharedGate | Class::SharedUp => Some(3),
        Class::ExpertGate | Class::ExpertUp | Class::ExpertDown => Some(4),
        _ => None,
    }
}

/// Refuses different schemes where consumers have but one.
fn check_fused(tensors: &[OutputTensor], formats: &[&'static Format]) -> Result<()> {
    let mut first: HashMap<_, (&str, &Format)> = HashMap::new();
    for (tensor, format) in tensors.iter().zip(formats).filter(|(tensor, _)| tensor.quantizable) {
        let Some(set) = fused(tensor.class) else { continue };
        let (name, other) = *first.entry((tensor.layer, set)).or_insert((&tensor.name, format));
        if other != *format {
            return Err(Error::Usage(format!(
                "{} would be {} and {name} {}, but vLLM loads the two as one, which has one scheme: give all of them the same \
                 with --tensor, or choose groups that divide the rows of all",
                tensor.name, format.name, other.name
            )));
        }
    }
    Ok(())
}

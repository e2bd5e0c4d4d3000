//! The stored tensors of one quantized linear, whose names begin with the module's, and the errors that name them.

use kernels::Format;

use crate::compressed_tensors::WEIGHT;
use crate::error::{Error, Result};
use crate::joined::malformed;
use crate::safetensors::Safetensors;
use crate::tensor::{Dtype, TensorId, TensorMeta, TensorSource};

/// A module, known by the tensor that holds its codes.
#[derive(Clone, Copy)]
pub(crate) struct Module<'a> {
    pub stored: &'a Safetensors,
    /// What the names of its tensors begin with.
    pub name: &'a str,
    pub codes: TensorId,
}

impl<'a> Module<'a> {
    /// The tensor of the module whose name ends so.
    pub fn find(&self, end: &str) -> Option<TensorId> {
        self.stored.find(&format!("{}{end}", self.name))
    }

    /// The same where there must be one.
    pub fn need(&self, end: &str) -> Result<TensorId> {
        self.find(end).ok_or_else(|| {
            let (codes, module) = (&self.codes().name, self.name);
            self.wrong(format!("there is {codes}, but no {module}{end}: fetch all shards"))
        })
    }

    pub fn codes(&self) -> &'a TensorMeta {
        self.stored.meta(self.codes)
    }

    /// Rows and columns of a stored tensor, neither of them zero.
    pub fn matrix(&self, id: TensorId) -> Result<[u64; 2]> {
        match self.stored.meta(id).shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            _ => Err(self.contradiction(&[id], "is no matrix")),
        }
    }

    /// The type of scales in a float format.
    pub fn float(&self, scales: TensorId) -> Result<&'static Format> {
        match self.stored.meta(scales).dtype {
            Dtype::Block(float) => Ok(float),
            _ => Err(self.contradiction(&[scales], "has scales that are neither BF16 nor F16 nor F32")),
        }
    }

    /// The module's weight, whose bytes are those of `format`.
    pub fn weight(&self, format: &'static Format, shape: [u64; 2]) -> Result<TensorMeta> {
        let codes = self.codes();
        let name = format!("{}{WEIGHT}", self.name);
        if self.stored.find(&name).is_some() {
            return Err(self.wrong(format!("there is {name} beside {}", codes.name)));
        }
        let blocks = shape[0].checked_mul(shape[1]).map(|weights| weights / format.block as u64);
        let len = blocks.and_then(|blocks| blocks.checked_mul(format.planes.iter().sum::<usize>() as u64));
        let len = len.ok_or_else(|| self.wrong(format!("{} is impossibly large", codes.name)))?;
        Ok(TensorMeta { name, dtype: Dtype::Block(format), shape: shape.to_vec(), len, ..codes.clone() })
    }

    /// An error about the module's codes.
    pub fn wrong(&self, reason: String) -> Error {
        malformed(self.stored, self.codes, reason)
    }

    /// An error about what tensors of the module, with their types and shapes, together do.
    pub fn contradiction(&self, tensors: &[TensorId], what: &str) -> Error {
        let described = tensors.iter().map(|&id| {
            let meta = self.stored.meta(id);
            format!("{} {} {:?}", meta.name, meta.dtype, meta.shape)
        });
        self.wrong(format!("{} {what}", described.collect::<Vec<_>>().join(" and ")))
    }
}

/// Whether a tensor has 32-bit integers.
pub(crate) fn is_i32(meta: &TensorMeta) -> bool {
    matches!(meta.dtype, Dtype::Other { name: "I32", .. })
}

/// Whether a tensor has bytes.
pub(crate) fn is_u8(meta: &TensorMeta) -> bool {
    matches!(meta.dtype, Dtype::Other { name: "U8", .. })
}

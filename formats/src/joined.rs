//! Tensors that are stored in several: read as one, whose bytes are those of its planes, one after the other, or where no format has
//! such planes, the weights that they stand for.

use std::collections::HashMap;

use crate::arrangement::{Arrangement, Eights, Order};
use crate::decoded::Decoding;
use crate::error::{Error, Result};
use crate::group_index::GroupIndex;
use crate::safetensors::Safetensors;
use crate::tensor::{SourceFile, TensorId, TensorMeta, TensorSource};

/// Whose names and layouts a folder's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// mlx-lm's.
    Mlx,
    /// Those of compressed-tensors (llm-compressor).
    CompressedTensors,
    /// Those of AutoGPTQ and GPTQModel.
    Gptq,
    /// AutoAWQ's.
    Awq,
}

impl Convention {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Convention::Mlx => "mlx",
            Convention::CompressedTensors => "compressed-tensors",
            Convention::Gptq => "gptq",
            Convention::Awq => "awq",
        }
    }
}

/// A plane of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plane {
    /// The stored tensor.
    pub stored: TensorId,
    /// How its rows lie, if not one after the other.
    pub arrangement: Option<Arrangement>,
}

impl From<TensorId> for Plane {
    fn from(stored: TensorId) -> Plane {
        Plane { stored, arrangement: None }
    }
}

impl Plane {
    /// Bytes of the plane, which may be more than are stored.
    fn len(&self, stored: &Safetensors) -> u64 {
        self.arrangement.map_or(stored.meta(self.stored).len, |lies| lies.rows * lies.row_bytes())
    }

    /// Fills `out` with the plane's bytes from `offset` on.
    pub fn read(&self, stored: &Safetensors, offset: u64, out: &mut [u8]) -> Result<()> {
        let Some(lies) = self.arrangement else { return stored.read_at(self.stored, offset, out) };
        lies.read(offset, out, |at, bytes| stored.read_at(self.stored, at, bytes))?;
        // Others are four bits wide.
        let may_exceed = matches!(lies.order, Order::Eights(Eights { less, .. }) if less > 0);
        match out.iter().position(|&zero| may_exceed && zero > 15) {
            None => Ok(()),
            Some(at) => {
                let place = offset + at as u64;
                let reason = format!(
                    "{}: the zero point of row {}, group {} is stored as 15, a GPTQ v1 zero point of 16, which four bits can't hold \
                     and readers take for 16 or for 0: write the folder with checkpoint_format gptq_v2",
                    stored.meta(self.stored).name,
                    place / lies.columns,
                    place % lies.columns
                );
                Err(malformed(stored, self.stored, reason))
            }
        }
    }
}

/// What is stored about a tensor besides its planes. It is compared when the tensor is first read, for an index is made from headers
/// alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stated {
    /// Its shape, in as many integers.
    Shape(TensorId),
    /// Which group each of its columns belongs to. They must be in order, a group after the other.
    Groups(GroupIndex),
}

/// A tensor and what it is made of.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// The tensor, which lies where its first plane lies.
    pub meta: TensorMeta,
    pub planes: Vec<Plane>,
    pub stated: Option<Stated>,
    /// How its weights follow from the planes, where no format has them.
    pub decoding: Option<Decoding>,
}

impl Whole {
    /// A tensor of these planes.
    pub fn new(meta: TensorMeta, planes: Vec<Plane>) -> Whole {
        Whole { meta, planes, stated: None, decoding: None }
    }
}

/// A folder of such tensors.
#[derive(Debug)]
pub struct Joined {
    convention: Convention,
    stored: Safetensors,
    tensors: Vec<TensorMeta>,
    by_name: HashMap<String, TensorId>,
    parts: Vec<Parts>,
}

#[derive(Debug)]
struct Parts {
    planes: Vec<Plane>,
    stated: Option<Stated>,
    decoding: Option<Decoding>,
}

impl Joined {
    pub(crate) fn new(convention: Convention, stored: Safetensors, wholes: Vec<Whole>) -> Joined {
        let part = |whole: Whole| {
            let Whole { meta, planes, stated, decoding } = whole;
            (meta, Parts { planes, stated, decoding })
        };
        let (tensors, parts): (Vec<TensorMeta>, _) = wholes.into_iter().map(part).unzip();
        let names = tensors.iter().enumerate();
        let by_name = names.map(|(id, tensor)| (tensor.name.clone(), TensorId(id))).collect();
        Joined { convention, stored, tensors, by_name, parts }
    }

    /// Whose names and layouts its tensors have.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// The files' own tensors and free strings.
    pub fn stored(&self) -> &Safetensors {
        &self.stored
    }

    /// Bytes of the stored tensors that a tensor is made of.
    pub fn stored_bytes(&self, id: TensorId) -> u64 {
        self.parts[id.0].stored().map(|part| self.stored.meta(part).len).fold(0, u64::saturating_add)
    }

    /// Holds a tensor to what is stated about it.
    fn check(&self, id: TensorId) -> Result<()> {
        match self.parts[id.0].stated {
            None => Ok(()),
            Some(Stated::Shape(shape)) => self.check_shape(self.meta(id), shape),
            Some(Stated::Groups(index)) => index.check_order(&self.stored),
        }
    }

    fn check_shape(&self, meta: &TensorMeta, shape: TensorId) -> Result<()> {
        let stated = self.stored.meta(shape);
        let mut bytes = vec![0; stated.len as usize];
        self.stored.read_at(shape, 0, &mut bytes)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let sizes: Vec<u64> = bytes.chunks(bytes.len() / meta.shape.len()).map(number).collect();
        if sizes == meta.shape {
            return Ok(());
        }
        let reason =
            format!("{} says {sizes:?}, but the codes of {} are {:?}", stated.name, meta.name, meta.shape);
        Err(malformed(&self.stored, shape, reason))
    }
}

impl Parts {
    /// The stored tensors.
    fn stored(&self) -> impl Iterator<Item = TensorId> {
        let others =
            [self.decoding.as_ref().and_then(Decoding::beside), self.stated.map(|stated| stated.by())];
        self.planes.iter().map(|plane| plane.stored).chain(others.into_iter().flatten())
    }
}

impl Stated {
    fn by(self) -> TensorId {
        match self {
            Stated::Shape(by) => by,
            Stated::Groups(index) => index.stored,
        }
    }
}

/// An error about a stored tensor.
pub(crate) fn malformed(stored: &Safetensors, tensor: TensorId, reason: String) -> Error {
    Error::Malformed { path: stored.files()[stored.meta(tensor).file].path.clone(), reason }
}

impl TensorSource for Joined {
    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }

    fn files(&self) -> &[SourceFile] {
        self.stored.files()
    }

    fn files_of(&self, id: TensorId) -> Vec<usize> {
        self.parts[id.0].stored().map(|part| self.stored.meta(part).file).collect()
    }

    fn decoded_from(&self, id: TensorId) -> Option<(&'static str, u64)> {
        let decoding = self.parts[id.0].decoding.as_ref()?;
        Some((decoding.name(), self.stored_bytes(id)))
    }

    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (meta, len) = (self.meta(id), buffer.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > meta.len) {
            return Err(Error::OutOfTensor { tensor: meta.name.clone(), offset, len, size: meta.len });
        }
        if offset == 0 {
            self.check(id)?;
        }
        let Parts { planes, decoding, .. } = &self.parts[id.0];
        if let Some(decoding) = decoding {
            return decoding.read(&self.stored, meta, planes, offset, buffer);
        }
        let (mut offset, mut rest) = (offset, buffer);
        for plane in planes {
            let size = plane.len(&self.stored);
            let here = size.saturating_sub(offset).min(rest.len() as u64);
            if here > 0 {
                let (head, tail) = rest.split_at_mut(here as usize);
                plane.read(&self.stored, offset, head)?;
                rest = tail;
            }
            offset = offset.saturating_sub(size);
        }
        Ok(())
    }

    fn expect(&self, steps: Vec<Vec<usize>>) -> Result<()> {
        self.stored.expect(steps)
    }

    fn settled(&self, step: usize) {
        self.stored.settled(step);
    }

    fn is_mlx(&self) -> bool {
        self.convention == Convention::Mlx
    }
}

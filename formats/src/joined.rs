//! Tensors whose planes are tensors of their own in the files: read as one, whose bytes are those of its planes, one after the other.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::safetensors::Safetensors;
use crate::tensor::{SourceFile, TensorId, TensorMeta, TensorSource};

/// A folder of such tensors.
#[derive(Debug)]
pub struct Joined {
    stored: Safetensors,
    tensors: Vec<TensorMeta>,
    by_name: HashMap<String, TensorId>,
    /// For each tensor, the stored ones that are its planes.
    planes: Vec<Vec<TensorId>>,
    /// For some, the stored ones that state their shape.
    shapes: HashMap<TensorId, TensorId>,
    is_mlx: bool,
}

impl Joined {
    /// Of tensors, each with the stored ones that are its planes.
    pub(crate) fn new(
        stored: Safetensors,
        joined: impl IntoIterator<Item = (TensorMeta, Vec<TensorId>)>,
        is_mlx: bool,
    ) -> Joined {
        let (tensors, planes): (Vec<TensorMeta>, _) = joined.into_iter().unzip();
        let names = tensors.iter().enumerate();
        let by_name = names.map(|(id, tensor)| (tensor.name.clone(), TensorId(id))).collect();
        Joined { stored, tensors, by_name, planes, shapes: HashMap::new(), is_mlx }
    }

    /// States which tensors' shapes others state: pairs of a tensor's name and a stored tensor of as many integers. They are
    /// compared when the tensor is read, for an index is made from headers alone.
    pub(crate) fn with_shapes(mut self, shapes: Vec<(String, TensorId)>) -> Joined {
        let found = shapes.into_iter().filter_map(|(name, shape)| Some((self.find(&name)?, shape)));
        self.shapes = found.collect();
        self
    }

    /// Holds a tensor to the shape that is stated of it.
    fn check_shape(&self, id: TensorId) -> Result<()> {
        let Some(&stated) = self.shapes.get(&id) else { return Ok(()) };
        let (meta, shape) = (self.meta(id), self.stored.meta(stated));
        let mut bytes = vec![0; shape.len as usize];
        self.stored.read_at(stated, 0, &mut bytes)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let sizes: Vec<u64> = bytes.chunks(bytes.len() / meta.shape.len()).map(number).collect();
        if sizes == meta.shape {
            return Ok(());
        }
        let path = self.files()[shape.file].path.clone();
        let reason =
            format!("{} says {sizes:?}, but the codes of {} are {:?}", shape.name, meta.name, meta.shape);
        Err(Error::Malformed { path, reason })
    }

    /// The files' own tensors and free strings.
    pub fn stored(&self) -> &Safetensors {
        &self.stored
    }
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

    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (meta, len) = (self.meta(id), buffer.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > meta.len) {
            return Err(Error::OutOfTensor { tensor: meta.name.clone(), offset, len, size: meta.len });
        }
        if offset == 0 {
            self.check_shape(id)?;
        }
        let (mut offset, mut rest) = (offset, buffer);
        for &plane in &self.planes[id.0] {
            let size = self.stored.meta(plane).len;
            let here = size.saturating_sub(offset).min(rest.len() as u64);
            if here > 0 {
                let (head, tail) = rest.split_at_mut(here as usize);
                self.stored.read_at(plane, offset, head)?;
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
        self.is_mlx
    }
}

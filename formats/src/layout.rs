//! Where every output byte goes, known before the first one is written. A container (GGUF, MLX) is a function from
//! tensors and metadata to a [`Layout`]; writing it is the same for all.

use std::collections::HashMap;

use crate::arrangement::Arrangement;

/// A file of the output.
#[derive(Clone, Debug)]
pub struct OutputFile {
    /// Its name within the output's folder.
    pub name: String,
    /// Its first bytes: header and index, padded to where the data starts. For a side file (`config.json`), all of it.
    pub header: Vec<u8>,
    /// Its whole size in bytes.
    pub len: u64,
}

/// Where one plane of a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index into [`Layout::files`].
    pub file: usize,
    /// From the start of the file.
    pub offset: u64,
    /// Bytes in the file: of an arranged plane other than the format's.
    pub len: u64,
}

/// Bytes that belong to a tensor and are known before any weight is read, and are too many to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where they lie.
    pub at: Placement,
    /// What they are.
    pub fill: Fill,
}

/// Bytes that follow from their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The same byte all over.
    Byte(u8),
    /// For each column the number of its group of so many columns, in I32.
    Groups(u64),
}

impl Fill {
    /// The bytes from `offset` on, which like the length of `out` is a multiple of 4.
    pub fn write(self, offset: u64, out: &mut [u8]) {
        match self {
            Fill::Byte(byte) => out.fill(byte),
            Fill::Groups(columns) => {
                let words = out.as_chunks_mut().0.iter_mut().zip(offset / 4..);
                words.for_each(|(word, column)| *word = ((column / columns) as u32).to_le_bytes());
            }
        }
    }
}

/// The files of an output and the place of every tensor's planes.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Weights and side files. A reader finds the model by the last one, so they are put in place in this order.
    pub files: Vec<OutputFile>,
    /// For each output tensor, for each plane of its format.
    pub planes: Vec<Vec<Placement>>,
    /// By tensor and plane: planes whose rows lie apart.
    pub arranged: HashMap<(usize, usize), Arrangement>,
    /// By tensor: what lies beside its planes.
    pub known: HashMap<usize, Vec<Known>>,
}

impl Layout {
    /// Bytes of a tensor in the files.
    pub fn tensor_bytes(&self, tensor: usize) -> u64 {
        let known = self.known.get(&tensor).into_iter().flatten().map(|known| known.at.len);
        self.planes[tensor].iter().map(|plane| plane.len).chain(known).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_is_the_same_in_pieces() {
        let groups = |offset, len| {
            let mut out = vec![0; len];
            Fill::Groups(3).write(offset, &mut out);
            out.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>()
        };
        assert_eq!(groups(0, 28), [0, 0, 0, 1, 1, 1, 2]);
        assert_eq!(groups(8, 12), [0, 1, 1]);
        let mut out = [0; 4];
        Fill::Byte(0x77).write(64, &mut out);
        assert_eq!(out, [0x77; 4]);
    }
}

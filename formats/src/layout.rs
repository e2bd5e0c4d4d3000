//! Where every output byte goes, known before the first one is written. A container (GGUF, MLX) is a function from
//! tensors and metadata to a [`Layout`]; writing it is the same for all.

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
    /// Bytes.
    pub len: u64,
}

/// The files of an output and the place of every tensor's planes.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Weights and side files. A reader finds the model by the last one, so they are put in place in this order.
    pub files: Vec<OutputFile>,
    /// For each output tensor, for each plane of its format.
    pub planes: Vec<Vec<Placement>>,
}

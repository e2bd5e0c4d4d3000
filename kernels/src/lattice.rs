//! [`Lattice`]: what a block can stand for once its scales are chosen, which is what rounding with error feedback needs to know
//! of a format.
//!
//! A weight of a block is `scale · level + offset`: the level is the weight's own, picked by its code; scale and offset are those of
//! its group within the block. (Formats differ in how they come to them: a K-quant's are an `f16` of the super-block times an
//! integer of the group.)

/// The numbers that a code can pick, before scale and offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// All integers from the first to the last: code `i` is the first plus `i`.
    Integers(i32, i32),
    /// At most sixteen, rising: index `i` is the `i`th of them, whatever its code in the file.
    Values(&'static [f32]),
}

/// How the codes of a format lie, given the scales.
pub struct Lattice {
    /// Weights that share a scale and an offset; divides the format's block.
    pub group: usize,
    /// The numbers that codes pick.
    pub levels: Levels,
    /// Reads one block, a slice for each plane: the scale and the offset of each of its groups.
    pub steps: fn(planes: &[&[u8]], scales: &mut [f32], offsets: &mut [f32]),
    /// Writes the codes of one block (for each weight the index of its level) and leaves its scales.
    pub store: fn(indices: &[u8], planes: &mut [&mut [u8]]),
    /// Multiplies all scales of one block by the first factor and all offsets by the second, as nearly as the format can: it has
    /// one number for each in the whole block, of which it rounds the product. `None` where they are no such numbers (powers of
    /// two).
    pub rescale: Option<Rescale>,
    /// How its blocks are taken apart and put together, where weights move to another format as they are: see
    /// [`moves`](crate::moves).
    pub moves: Option<&'static Moves>,
}

/// How blocks are taken apart and put together again.
pub struct Moves {
    /// Reads the codes of one block, a byte for each weight: of integers the index of the level, else the code as it is stored.
    pub load: fn(planes: &[&[u8]], codes: &mut [u8]),
    /// Writes them, and leaves scales and offsets.
    pub store: fn(codes: &[u8], planes: &mut [&mut [u8]]),
    /// Sets the scale and the offset of each group of one block, if it can hold just these: whether it can.
    pub set: Set,
}

/// Sets scales and offsets of one block, and tells whether they are just these.
pub type Set = fn(scales: &[f32], offsets: &[f32], planes: &mut [&mut [u8]]) -> bool;

/// Multiplies the scales and the offsets of one block by these factors.
pub type Rescale = fn(factors: [f32; 2], planes: &mut [&mut [u8]]);

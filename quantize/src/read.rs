//! From a tile to its source bytes: what the reader thread does.

use formats::{
    TensorSource,
    rows::{self, RawRows, part_bytes},
    scales::Scales,
};

use crate::{error::Result, segment::Pieces, tile::Tile};

/// A tile and its source bytes.
pub struct Loaded {
    /// The tile.
    pub tile: Tile,
    /// For each of its pieces, what was read. Empty for computed values.
    pub pieces: Vec<RawRows>,
    /// The bytes of all pieces.
    pub bytes: Vec<u8>,
}

/// Bytes of source that a tile reads.
///
/// # Errors
/// If a source tensor can't be read as weights.
pub fn tile_bytes(source: &dyn TensorSource, tile: &Tile) -> Result<u64> {
    let Pieces::Source(pieces) = &tile.pieces else { return Ok(0) };
    Ok(pieces.iter().map(|piece| part_bytes(source, piece)).sum::<formats::Result<u64>>()?)
}

/// Reads a tile's bytes into `bytes`.
///
/// # Errors
/// If the source can't be read, or a tensor in it is no weight.
pub fn load(source: &dyn TensorSource, scales: &Scales, tile: Tile, mut bytes: Vec<u8>) -> Result<Loaded> {
    bytes.clear();
    let mut pieces = Vec::new();
    if let Pieces::Source(parts) = &tile.pieces {
        for part in parts {
            pieces.push(rows::read(source, scales, part, &mut bytes)?);
        }
    }
    Ok(Loaded { tile, pieces, bytes })
}

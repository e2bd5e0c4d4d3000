//! From a tile to its source bytes: what the reader thread does.

use std::ops::Range;

use formats::{
    Dtype, TensorSource,
    scales::{BlockScale, Scales},
};

use kernels::fp8::e8m0_to_f32;

use crate::{
    error::{Error, Result},
    tile::{Piece, Pieces, Tile},
};

/// A tile and its source bytes.
pub struct Loaded {
    /// The tile.
    pub tile: Tile,
    /// For each of its pieces, what was read. Empty for computed values.
    pub pieces: Vec<Raw>,
    /// The bytes of all pieces.
    pub bytes: Vec<u8>,
}

/// What was read of one piece.
pub struct Raw {
    /// Its bytes in the tile's buffer.
    pub bytes: Range<usize>,
    /// The scales of its rows, if it is FP8.
    pub scales: Option<RowScales>,
}

/// The block scales that some consecutive rows need.
pub struct RowScales {
    /// Where they come from.
    of: BlockScale,
    /// Row-major, from row `first` of the scales on.
    values: Vec<f32>,
    first: u64,
}

impl RowScales {
    /// The scales of row `row` (counted in the whole source tensor): one for each `block_columns` columns.
    pub fn of_row(&self, row: u64) -> &[f32] {
        let per_row = self.of.columns as usize;
        &self.values[(self.of.row_of(row) - self.first) as usize * per_row..][..per_row]
    }

    /// Columns under one scale.
    pub fn block_columns(&self) -> usize {
        self.of.block[1] as usize
    }
}

/// Bytes that `weights` weights of a dtype take.
fn bytes_of(dtype: Dtype, weights: u64) -> Option<u64> {
    match dtype {
        Dtype::Block(format) => format.plane_bytes(0, weights),
        Dtype::F8E4M3 | Dtype::F8E8M0 => Some(weights),
        _ => None,
    }
}

/// Bytes of source that a tile reads.
///
/// # Errors
/// If a source tensor can't be read as weights.
pub fn tile_bytes(source: &dyn TensorSource, tile: &Tile) -> Result<u64> {
    let Pieces::Source(pieces) = &tile.pieces else { return Ok(0) };
    pieces.iter().map(|piece| piece_range(source, piece).map(|(_, len)| len)).sum()
}

/// First byte and number of bytes of a piece within its tensor.
fn piece_range(source: &dyn TensorSource, piece: &Piece) -> Result<(u64, u64)> {
    let meta = source.meta(piece.source);
    let start = bytes_of(meta.dtype, piece.rows.start * piece.columns);
    let len = bytes_of(meta.dtype, piece.weights());
    start.zip(len).ok_or_else(|| Error::NotWeights {
        tensor: meta.name.clone(),
        dtype: format!("{:?} in rows of {}", meta.dtype, piece.columns),
    })
}

/// Reads a tile's bytes into `bytes`.
///
/// # Errors
/// If the source can't be read, or a tensor in it is no weight.
pub fn load(source: &dyn TensorSource, scales: &Scales, tile: Tile, mut bytes: Vec<u8>) -> Result<Loaded> {
    bytes.clear();
    let mut raw = Vec::new();
    if let Pieces::Source(pieces) = &tile.pieces {
        let ranges = pieces.iter().map(|piece| piece_range(source, piece)).collect::<Result<Vec<_>>>()?;
        let total: u64 = ranges.iter().map(|(_, len)| len).sum();
        bytes.resize(usize::try_from(total).unwrap_or(usize::MAX), 0);
        let mut at = 0;
        for (piece, (start, len)) in pieces.iter().zip(ranges) {
            let range = at..at + len as usize;
            source.read_at(piece.source, start, &mut bytes[range.clone()])?;
            at = range.end;
            raw.push(Raw { bytes: range, scales: load_scales(source, scales, piece)? });
        }
    }
    Ok(Loaded { tile, pieces: raw, bytes })
}

fn load_scales(source: &dyn TensorSource, scales: &Scales, piece: &Piece) -> Result<Option<RowScales>> {
    let Some(&of) = scales.of(piece.source) else { return Ok(None) };
    let meta = source.meta(of.scale);
    let (first, last) = (of.row_of(piece.rows.start), of.row_of(piece.rows.end.saturating_sub(1)));
    let count = (last - first + 1) * of.columns;
    let (start, len) = bytes_of(meta.dtype, first * of.columns)
        .zip(bytes_of(meta.dtype, count))
        .ok_or_else(|| Error::NotWeights { tensor: meta.name.clone(), dtype: format!("{:?}", meta.dtype) })?;
    let mut bytes = vec![0; len as usize];
    source.read_at(of.scale, start, &mut bytes)?;
    let mut values = vec![0.0; count as usize];
    match meta.dtype {
        Dtype::Block(format) => (format.decode)(format, kernels::Isa::detect(), &[&bytes], &mut values),
        _ => values.iter_mut().zip(&bytes).for_each(|(value, &code)| *value = e8m0_to_f32(code)),
    }
    Ok(Some(RowScales { of, values, first }))
}

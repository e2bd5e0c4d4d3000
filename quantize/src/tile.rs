//! Cutting a segment into tiles, each a bounded number of source bytes that give consecutive rows of the output.

use formats::Part;

use crate::segment::{Pieces, Segment};

/// Consecutive rows of an output tensor: what is read, encoded and written at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Index of the output tensor.
    pub tensor: usize,
    /// The step of the pass that it belongs to: the position of its segment in the order of the work.
    pub step: usize,
    /// The first weight of the tile within its tensor.
    pub first_weight: u64,
    /// Number of weights.
    pub weights: u64,
    /// Where they come from.
    pub pieces: Pieces,
    /// Whether this tile ends its segment.
    pub last: bool,
}

/// The tiles of a segment that is worked at `step`, in order. `tile_weights` bounds a tile's weights, except where one row or one
/// part that must be taken whole is longer, and computed values are one tile.
pub fn tiles(segment: &Segment, step: usize, tile_weights: u64) -> Vec<Tile> {
    let tile = |first_weight, weights, pieces| Tile {
        tensor: segment.tensor,
        step,
        first_weight,
        weights,
        pieces,
        last: false,
    };
    let mut tiles: Vec<Tile> = Vec::new();
    match &segment.pieces {
        Pieces::Values(_) => tiles.push(tile(segment.first_weight, segment.weights, segment.pieces.clone())),
        Pieces::Source(parts) => {
            let mut first_weight = segment.first_weight;
            for pieces in cut(parts, tile_weights) {
                let weights = pieces.iter().map(Part::weights).sum();
                tiles.push(tile(first_weight, weights, Pieces::Source(pieces)));
                first_weight += weights;
            }
        }
    }
    if let Some(tile) = tiles.last_mut() {
        tile.last = true;
    }
    tiles
}

/// Fills one tile after the other with rows of the parts.
fn cut(parts: &[Part], tile_weights: u64) -> Vec<Vec<Part>> {
    let mut tiles = Vec::new();
    let mut open: Vec<Part> = Vec::new();
    let mut open_weights = 0;
    for part in parts {
        let row_wise = part.map.is_row_wise();
        let all = part.rows.end - part.rows.start;
        let step = if row_wise { (tile_weights / part.columns.max(1)).max(1) } else { all };
        let mut start = part.rows.start;
        while start < part.rows.end {
            let mut end = part.rows.end.min(start.saturating_add(step));
            if row_wise && open_weights > 0 {
                // Fill the open tile up first.
                let room = (tile_weights.saturating_sub(open_weights)) / part.columns.max(1);
                if room > 0 {
                    end = end.min(start + room);
                }
            }
            let piece = Part { rows: start..end, ..part.clone() };
            if open_weights > 0 && open_weights + piece.weights() > tile_weights {
                tiles.push(std::mem::take(&mut open));
                open_weights = 0;
            }
            open_weights += piece.weights();
            open.push(piece);
            start = end;
        }
    }
    if open_weights > 0 {
        tiles.push(open);
    }
    tiles
}

#[cfg(test)]
mod tests {
    use formats::output::Map;

    use super::*;
    use crate::segment::{
        segments,
        tests::{output, part, source},
    };

    fn tiles(shapes: &[&[u64]], shape: &[u64], parts: Vec<Part>, tile_weights: u64) -> Vec<Tile> {
        let segments = segments(&source(shapes), &output(shape, parts), 7).expect("segments");
        segments.iter().enumerate().flat_map(|(at, all)| super::tiles(all, at, tile_weights)).collect()
    }

    #[test]
    fn tiles_are_bounded_and_cover_every_row_in_order() {
        let parts = vec![part(0, 4, 0..10, Map::Identity), part(1, 4, 0..3, Map::Identity)];
        let tiles = tiles(&[&[10, 4], &[3, 4]], &[13, 4], parts, 16);
        let mut next = 0;
        for tile in &tiles {
            assert_eq!((tile.tensor, tile.step, tile.first_weight), (7, 0, next));
            assert!(tile.weights <= 16);
            let Pieces::Source(pieces) = &tile.pieces else { panic!("pieces") };
            assert_eq!(pieces.iter().map(Part::weights).sum::<u64>(), tile.weights);
            next += tile.weights;
        }
        assert_eq!(next, 52);
        assert_eq!(tiles.len(), 4, "two pieces share a tile where they fit");
        assert_eq!(tiles.iter().filter(|tile| tile.last).count(), 1);
    }

    #[test]
    fn a_part_that_must_be_whole_is_never_cut() {
        let tiles = tiles(&[&[8, 6]], &[6, 8], vec![part(0, 6, 0..8, Map::Transpose)], 5);
        assert_eq!(tiles.len(), 1);
        assert_eq!(tiles[0].weights, 48);
    }

    #[test]
    fn half_of_the_rows_or_columns_make_half_of_the_weights() {
        for (shape, map) in [([4, 6], Map::OddRows), ([3, 8], Map::EvenColumns)] {
            let tiles = tiles(&[&[8, 6]], &shape, vec![part(0, 6, 0..8, map)], 5);
            assert_eq!((tiles.len(), tiles[0].weights), (1, 24));
        }
    }
}

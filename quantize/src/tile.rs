//! Cutting the work: an output tensor becomes tiles, each a bounded number of source bytes that give consecutive rows of
//! the output.

use formats::{Content, OutputTensor, Part, TensorSource, output::Map};

use crate::error::{Error, Result};

/// What a tile is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Pieces {
    /// Rows of source tensors.
    Source(Vec<Part>),
    /// All values of a computed tensor.
    Values(Vec<f32>),
}

/// Consecutive rows of an output tensor: what is read, encoded and written at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Index of the output tensor.
    pub tensor: usize,
    /// The first weight of the tile within its tensor.
    pub first_weight: u64,
    /// Number of weights.
    pub weights: u64,
    /// Where they come from.
    pub pieces: Pieces,
    /// Whether this tile ends its tensor.
    pub last: bool,
}

/// The tiles of output tensor `index`, in order. `tile_weights` bounds a tile's weights, except where one row or one part that
/// must be taken whole is longer.
///
/// # Errors
/// If the parts do not make up the tensor's shape.
pub fn tiles(
    source: &dyn TensorSource,
    output: &OutputTensor,
    index: usize,
    tile_weights: u64,
) -> Result<Vec<Tile>> {
    let fail = |detail: String| Error::Shape { tensor: output.name.clone(), detail };
    let parts = match &output.content {
        Content::Values(values) => {
            if values.len() as u64 != output.elements() {
                return Err(fail(format!("{} values for {} elements", values.len(), output.elements())));
            }
            let pieces = Pieces::Values(values.clone());
            return Ok(vec![Tile {
                tensor: index,
                first_weight: 0,
                weights: output.elements(),
                pieces,
                last: true,
            }]);
        }
        Content::Parts(parts) => parts,
    };

    let mut tiles: Vec<Tile> = Vec::new();
    let mut open: Vec<Part> = Vec::new();
    let (mut first_weight, mut open_weights, mut weights) = (0, 0, 0);
    let mut close = |open: &mut Vec<Part>, weights: &mut u64| {
        if *weights > 0 {
            let pieces = Pieces::Source(std::mem::take(open));
            tiles.push(Tile { tensor: index, first_weight, weights: *weights, pieces, last: false });
            first_weight += std::mem::take(weights);
        }
    };
    for part in parts {
        let meta = source.meta(part.source);
        if part.columns != meta.columns() && part.columns != 1 {
            return Err(fail(format!(
                "rows of {} from {}, whose are {}",
                part.columns,
                meta.name,
                meta.columns()
            )));
        }
        let source_rows = meta.elements() / part.columns.max(1);
        if part.rows.start > part.rows.end || part.rows.end > source_rows {
            return Err(fail(format!("rows {:?} of {}, which has {source_rows}", part.rows, meta.name)));
        }
        let (part_rows, part_columns) = part.output_shape();
        // Vectors may be put together from single elements.
        let elements = part_columns == 1 && !output.quantizable;
        if part_columns != output.columns() && !elements {
            return Err(fail(format!(
                "rows of {part_columns} from {}, where {} are due",
                meta.name,
                output.columns()
            )));
        }
        let source_rows = part.rows.end - part.rows.start;
        let (length, divisor) = match part.map {
            Map::InterleaveHalves | Map::EvenRows | Map::OddRows => (source_rows, 2),
            Map::EvenColumns | Map::OddColumns => (part.columns, 2),
            Map::DealColumns { groups, width } => (part.columns, u64::from(groups) * u64::from(width)),
            Map::Identity | Map::PlusOne | Map::NegExp | Map::Transpose => (0, 1),
        };
        if !length.is_multiple_of(divisor) {
            let detail = format!("{length} rows or columns of {} are no multiple of {divisor}", meta.name);
            return Err(fail(detail));
        }
        weights += part_rows * part_columns;
        let row_wise = part.map.is_row_wise();
        let step = if row_wise { (tile_weights / part.columns.max(1)).max(1) } else { source_rows };
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
                close(&mut open, &mut open_weights);
            }
            open_weights += piece.weights();
            open.push(piece);
            start = end;
        }
    }
    close(&mut open, &mut open_weights);
    if weights != output.elements() {
        return Err(fail(format!("its parts have {weights} weights, its shape is {:?}", output.shape)));
    }
    if let Some(tile) = tiles.last_mut() {
        tile.last = true;
    }
    Ok(tiles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    use formats::{Dtype, Result as FormatsResult, TensorId, TensorMeta, output::Class, tensor::SourceFile};

    struct Source(Vec<TensorMeta>);

    impl TensorSource for Source {
        fn tensors(&self) -> &[TensorMeta] {
            &self.0
        }
        fn find(&self, _: &str) -> Option<TensorId> {
            None
        }
        fn files(&self) -> &[SourceFile] {
            &[]
        }
        fn read_at(&self, _: TensorId, _: u64, _: &mut [u8]) -> FormatsResult<()> {
            Ok(())
        }
    }

    fn source(shapes: &[&[u64]]) -> Source {
        let meta = |shape: &&[u64]| TensorMeta {
            name: "w".into(),
            dtype: Dtype::F8E4M3,
            shape: shape.to_vec(),
            file: 0,
            offset: 0,
            len: shape.iter().product(),
        };
        Source(shapes.iter().map(meta).collect())
    }

    fn output(shape: &[u64], parts: Vec<Part>) -> OutputTensor {
        OutputTensor {
            name: "out".into(),
            shape: shape.to_vec(),
            class: Class::AttnQ,
            layer: None,
            quantizable: true,
            content: Content::Parts(parts),
        }
    }

    fn part(source: usize, columns: u64, rows: Range<u64>, map: Map) -> Part {
        Part { source: TensorId(source), columns, rows, map }
    }

    #[test]
    fn tiles_are_bounded_and_cover_every_row_in_order() {
        let source = source(&[&[10, 4], &[3, 4]]);
        let output =
            output(&[13, 4], vec![part(0, 4, 0..10, Map::Identity), part(1, 4, 0..3, Map::Identity)]);
        let tiles = tiles(&source, &output, 7, 16).expect("tiles");
        let mut next = 0;
        for tile in &tiles {
            assert_eq!((tile.tensor, tile.first_weight), (7, next));
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
        let source = source(&[&[8, 6]]);
        let output = output(&[6, 8], vec![part(0, 6, 0..8, Map::Transpose)]);
        let tiles = tiles(&source, &output, 0, 5).expect("tiles");
        assert_eq!(tiles.len(), 1);
        assert_eq!(tiles[0].weights, 48);
    }

    #[test]
    fn half_of_the_rows_or_columns_make_half_of_the_weights() {
        let source = source(&[&[8, 6]]);
        for (shape, map) in [([4, 6], Map::OddRows), ([3, 8], Map::EvenColumns)] {
            let output = output(&shape, vec![part(0, 6, 0..8, map)]);
            let tiles = tiles(&source, &output, 0, 5).expect("tiles");
            assert_eq!((tiles.len(), tiles[0].weights), (1, 24));
        }
    }

    #[test]
    fn a_vector_may_be_made_of_single_elements() {
        let source = source(&[&[2, 6]]);
        let mut output = output(&[2, 3], vec![part(0, 1, 0..12, Map::EvenRows)]);
        assert!(tiles(&source, &output, 0, 100).is_err(), "a matrix is not");
        output.quantizable = false;
        assert_eq!(tiles(&source, &output, 0, 100).expect("tiles")[0].weights, 6);
    }

    #[test]
    fn parts_that_do_not_make_up_the_shape_are_refused() {
        let source = source(&[&[10, 4]]);
        for (shape, rows, map) in [
            ([9, 4], 0..10, Map::Identity),
            ([10, 5], 0..10, Map::Identity),
            ([11, 4], 0..11, Map::Identity),
            ([5, 4], 0..5, Map::InterleaveHalves),
            ([2, 4], 0..5, Map::EvenRows),
        ] {
            let output = output(&shape, vec![part(0, 4, rows, map)]);
            assert!(matches!(tiles(&source, &output, 0, 100), Err(Error::Shape { .. })), "{shape:?}");
        }
    }
}

//! Where an output is cut into files: at the ends of layers where it can be, for a layer is loaded, and placed on a device, as
//! a whole.

use std::ops::Range;

/// A tensor, or a plane of one, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Its layer, if any. What has none belongs with its neighbours that have none.
    pub layer: Option<u32>,
    /// Bytes that it takes in a file.
    pub len: u64,
}

/// Cuts the pieces into runs of at most `limit` bytes. A layer lies in one of them unless it is larger than the limit by itself:
/// such a one is cut between its pieces, and a larger piece is a run of its own. A run ends behind each layer of `after`.
pub(crate) fn shards(pieces: &[Piece], limit: Option<u64>, after: &[u32]) -> Vec<Range<usize>> {
    let limit = limit.unwrap_or(u64::MAX);
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0u64);
    let mut layer_start = 0;
    for layer in pieces.chunk_by(|a, b| a.layer == b.layer) {
        let whole: u64 = layer.iter().map(|piece| piece.len).sum();
        let is_asked = pieces[..layer_start]
            .last()
            .is_some_and(|last| last.layer.is_some_and(|number| after.contains(&number)));
        let mut cuts = is_asked || (whole <= limit && whole > limit - size.min(limit));
        for (at, piece) in (layer_start..).zip(layer) {
            cuts |= piece.len > limit - size.min(limit);
            if cuts && at > start {
                shards.push(start..at);
                (start, size) = (at, 0);
            }
            cuts = false;
            size += piece.len;
        }
        layer_start += layer.len();
    }
    shards.push(start..pieces.len());
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of embedding, three layers of two pieces, and head.
    fn cut(limit: Option<u64>, after: &[u32]) -> Vec<Range<usize>> {
        let layers = [None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(2), None];
        let pieces = layers.iter().zip([3, 4, 4, 5, 5, 4, 4, 3]);
        let pieces: Vec<_> = pieces.map(|(&layer, len)| Piece { layer, len }).collect();
        shards(&pieces, limit, after)
    }

    #[test]
    fn layers_stay_whole_where_they_fit() {
        assert_eq!(cut(None, &[]).len(), 1);
        assert_eq!(cut(Some(32), &[]).len(), 1);
        assert_eq!(cut(Some(31), &[]), [0..7, 7..8]);
        // The first two pieces of layer 1 would still fit the first file.
        assert_eq!(cut(Some(20), &[]), [0..3, 3..7, 7..8]);
        assert_eq!(cut(Some(11), &[]), [0..3, 3..5, 5..8]);
    }

    #[test]
    fn a_layer_beyond_the_limit_is_cut_within() {
        // Layer 1 takes 10.
        assert_eq!(cut(Some(9), &[]), [0..1, 1..3, 3..4, 4..5, 5..7, 7..8]);
        assert_eq!(cut(Some(1), &[]).len(), 8);
    }

    #[test]
    fn cuts_that_are_asked_for_come_on_top() {
        assert_eq!(cut(None, &[0]), [0..3, 3..8]);
        assert_eq!(cut(None, &[2, 0, 7]), [0..3, 3..7, 7..8]);
        assert_eq!(cut(Some(20), &[1]), [0..3, 3..5, 5..8]);
    }
}

//! Cutting an output tensor into segments, runs of whole parts: what is read in one go, and noted in the journal by itself. A
//! stack of experts is written in the order in which the source has them, not in its own.

use formats::{Content, OutputTensor, Part, TensorSource, layout::Placement, output::Map, scales::Scales};
use kernels::Format;

use crate::error::{Error, Result};

/// Parts are put together until a segment has so many weights. A constant, so that a run that is gone on with finds the same
/// segments whatever memory it has: an expert of DeepSeek-R1 is one.
pub const SEGMENT_WEIGHTS: u64 = 4 << 20;

/// What rows of an output are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Pieces {
    /// Rows of source tensors.
    Source(Vec<Part>),
    /// All values of a computed tensor.
    Values(Vec<f32>),
}

/// Consecutive rows of an output tensor, made of whole parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Index of the output tensor.
    pub tensor: usize,
    /// Its position within its tensor.
    pub index: usize,
    /// The first weight within its tensor.
    pub first_weight: u64,
    /// Number of weights.
    pub weights: u64,
    /// Where they come from.
    pub pieces: Pieces,
}

impl Segment {
    /// Where its bytes lie in each plane, of a tensor in `format` whose planes lie at `planes`, row by row.
    pub fn placements(&self, format: &Format, planes: &[Placement]) -> Vec<Placement> {
        let place = |(at, &bytes): (&Placement, &usize)| {
            let span = |weights: u64| weights / format.block as u64 * bytes as u64;
            Placement { file: at.file, offset: at.offset + span(self.first_weight), len: span(self.weights) }
        };
        planes.iter().zip(format.planes).map(place).collect()
    }

    /// Where its first byte lies in the source: file, and offset of the tensor in it. `None` if it is computed.
    pub fn place(&self, source: &dyn TensorSource) -> Option<(usize, u64)> {
        let Pieces::Source(parts) = &self.pieces else { return None };
        parts.first().map(|part| {
            let meta = source.meta(part.source);
            (meta.file, meta.offset)
        })
    }

    /// The source's files that it is read from, those with its block scales included: sorted, each once.
    pub fn files(&self, source: &dyn TensorSource, scales: &Scales) -> Vec<usize> {
        let Pieces::Source(parts) = &self.pieces else { return Vec::new() };
        let of = |part: &Part| [Some(part.source), scales.of(part.source).map(|of| of.scale)];
        let mut files: Vec<usize> =
            parts.iter().flat_map(of).flatten().flat_map(|id| source.files_of(id)).collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// The segments of output tensor `index`, in order.
///
/// # Errors
/// If the parts do not make up the tensor's shape.
pub fn segments(source: &dyn TensorSource, output: &OutputTensor, index: usize) -> Result<Vec<Segment>> {
    cut(source, output, index, SEGMENT_WEIGHTS)
}

fn cut(source: &dyn TensorSource, output: &OutputTensor, tensor: usize, least: u64) -> Result<Vec<Segment>> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut first_weight = 0;
    let mut push = |weights: u64, pieces| {
        if weights > 0 {
            segments.push(Segment { tensor, index: segments.len(), first_weight, weights, pieces });
            first_weight += weights;
        }
    };
    let parts = match &output.content {
        Content::Values(values) => {
            let found = values.len() as u64;
            if found != output.elements() {
                let detail = format!("{found} values for {} elements", output.elements());
                return Err(Error::Shape { tensor: output.name.clone(), detail });
            }
            push(found, Pieces::Values(values.clone()));
            return Ok(segments);
        }
        Content::Parts(parts) => parts,
    };
    let (mut open, mut weights): (Vec<Part>, u64) = (Vec::new(), 0);
    let mut rest = output.elements();
    // A vector that is put together from single elements has no rows to be cut at.
    let rows = parts.iter().all(|part| part.output_shape().1 == output.columns());
    let least = if rows { least } else { u64::MAX };
    for part in parts {
        check(source, output, part)?;
        let more = part.weights();
        let Some(left) = rest.checked_sub(more) else { return Err(wrong_sum(output, parts)) };
        rest = left;
        open.push(part.clone());
        weights += more;
        if weights >= least {
            push(std::mem::take(&mut weights), Pieces::Source(std::mem::take(&mut open)));
        }
    }
    if rest > 0 {
        return Err(wrong_sum(output, parts));
    }
    push(weights, Pieces::Source(open));
    Ok(segments)
}

fn wrong_sum(output: &OutputTensor, parts: &[Part]) -> Error {
    let weights = parts.iter().map(Part::weights).fold(0u64, u64::saturating_add);
    let detail = format!("its parts have {weights} weights, its shape is {:?}", output.shape);
    Error::Shape { tensor: output.name.clone(), detail }
}

/// Whether a part gives rows of the tensor.
fn check(source: &dyn TensorSource, output: &OutputTensor, part: &Part) -> Result<()> {
    let fail = |detail: String| Err(Error::Shape { tensor: output.name.clone(), detail });
    let meta = source.meta(part.source);
    if part.columns != meta.columns() && part.columns != 1 {
        return fail(format!("rows of {} from {}, whose are {}", part.columns, meta.name, meta.columns()));
    }
    let source_rows = meta.elements() / part.columns.max(1);
    if part.rows.start > part.rows.end || part.rows.end > source_rows {
        return fail(format!("rows {:?} of {}, which has {source_rows}", part.rows, meta.name));
    }
    let (_, part_columns) = part.output_shape();
    // Vectors may be put together from single elements.
    let elements = part_columns == 1 && !output.quantizable;
    if part_columns != output.columns() && !elements {
        return fail(format!(
            "rows of {part_columns} from {}, where {} are due",
            meta.name,
            output.columns()
        ));
    }
    let source_rows = part.rows.end - part.rows.start;
    let (length, divisor) = match part.map {
        Map::InterleaveHalves | Map::EvenRows | Map::OddRows => (source_rows, 2),
        Map::EvenColumns | Map::OddColumns => (part.columns, 2),
        Map::DealColumns { groups, width } => (part.columns, u64::from(groups) * u64::from(width)),
        Map::Identity | Map::PlusOne | Map::NegExp | Map::Transpose => (0, 1),
    };
    if !length.is_multiple_of(divisor) {
        return fail(format!("{length} rows or columns of {} are no multiple of {divisor}", meta.name));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ops::Range;

    use super::*;

    use formats::{Dtype, Result as FormatsResult, TensorId, TensorMeta, output::Class, tensor::SourceFile};
    use kernels::table;

    pub(crate) struct Source(Vec<TensorMeta>);

    impl TensorSource for Source {
        fn tensors(&self) -> &[TensorMeta] {
            &self.0
        }
        fn find(&self, name: &str) -> Option<TensorId> {
            self.0.iter().position(|meta| meta.name == name).map(TensorId)
        }
        fn files(&self) -> &[SourceFile] {
            &[]
        }
        fn read_at(&self, _: TensorId, _: u64, _: &mut [u8]) -> FormatsResult<()> {
            Ok(())
        }
    }

    /// Tensors `w0`, `w1` and so on, each in a file of its own.
    pub(crate) fn source(shapes: &[&[u64]]) -> Source {
        let meta = |(at, shape): (usize, &&[u64])| TensorMeta {
            name: format!("w{at}"),
            dtype: Dtype::Block(table::gguf("q8_0").expect("known")),
            shape: shape.to_vec(),
            file: at,
            offset: 100 * at as u64,
            len: shape.iter().product(),
        };
        Source(shapes.iter().enumerate().map(meta).collect())
    }

    pub(crate) fn output(shape: &[u64], parts: Vec<Part>) -> OutputTensor {
        OutputTensor {
            name: "out".into(),
            shape: shape.to_vec(),
            class: Class::AttnQ,
            layer: None,
            quantizable: true,
            content: Content::Parts(parts),
        }
    }

    pub(crate) fn part(source: usize, columns: u64, rows: Range<u64>, map: Map) -> Part {
        Part { source: TensorId(source), columns, rows, map }
    }

    #[test]
    fn segments_are_whole_parts_of_at_least_so_many_weights() {
        let source = source(&[&[2, 4], &[9, 4], &[1, 4], &[2, 4]]);
        let parts = (0..4).map(|at| {
            let rows = source.meta(TensorId(at)).rows();
            part(at, 4, 0..rows, Map::Identity)
        });
        let output = output(&[14, 4], parts.collect());
        let found = cut(&source, &output, 3, 16).expect("segments");
        let places: Vec<_> = found.iter().map(|s| (s.index, s.first_weight, s.weights)).collect();
        assert_eq!(places, [(0, 0, 44), (1, 44, 12)]);
        assert_eq!(found[1].place(&source), Some((2, 200)));
        assert_eq!(cut(&source, &output, 3, 8).expect("segments").len(), 3);
        assert_eq!(segments(&source, &output, 3).expect("segments").len(), 1);
    }

    #[test]
    fn a_segment_s_bytes_lie_within_its_tensor_s() {
        let format = table::gguf("q8_0").expect("known");
        let segment =
            Segment { tensor: 0, index: 1, first_weight: 64, weights: 96, pieces: Pieces::Values(vec![]) };
        let plane = Placement { file: 2, offset: 1000, len: 5 * 34 };
        let due = Placement { file: 2, offset: 1000 + 2 * 34, len: 3 * 34 };
        assert_eq!(segment.placements(format, &[plane]), [due]);
    }

    #[test]
    fn the_files_of_block_scales_are_read_too() {
        let mut source = source(&[&[128, 128], &[1, 1], &[128, 128]]);
        for at in [0, 2] {
            source.0[at].dtype = Dtype::F8E4M3;
        }
        source.0[1].name = "w2_scale_inv".into();
        source.0[1].dtype = Dtype::Block(table::gguf("f32").expect("known"));
        source.0[0].name = "w1_unused".into();
        source.0[0].dtype = Dtype::Block(table::gguf("q8_0").expect("known"));
        let scales = Scales::find(&source, [128, 128]).expect("scales");
        let parts = vec![part(2, 128, 0..128, Map::Identity), part(0, 128, 0..128, Map::Identity)];
        let found = segments(&source, &output(&[256, 128], parts), 0).expect("segments");
        assert_eq!(found[0].files(&source, &scales), [0, 1, 2]);
    }

    #[test]
    fn a_vector_may_be_made_of_single_elements() {
        let source = source(&[&[2, 6]]);
        let parts = vec![part(0, 1, 0..6, Map::EvenRows), part(0, 1, 6..12, Map::EvenRows)];
        let mut output = output(&[2, 3], parts);
        assert!(cut(&source, &output, 0, 1).is_err(), "a matrix is not");
        output.quantizable = false;
        let found = cut(&source, &output, 0, 1).expect("segments");
        assert_eq!((found.len(), found[0].weights), (1, 6));
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
            assert!(matches!(segments(&source, &output, 0), Err(Error::Shape { .. })), "{shape:?}");
        }
    }
}

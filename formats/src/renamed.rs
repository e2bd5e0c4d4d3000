//! A converted model under the names of the checkpoint that it was made of: the way back from GGUF's and mlx-lm's names.
//!
//! The checkpoint's headers say what became of each of its tensors; read backwards, that says where the rows of each lie now. Only
//! tensors whose rows were moved as they are can go back.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::output::{Content, Map, OutputTensor, Part};
use crate::tensor::{Dtype, SourceFile, TensorId, TensorMeta, TensorSource};

/// Tensors of a converted model as the checkpoint had them.
pub struct Renamed {
    made: Box<dyn TensorSource>,
    tensors: Vec<TensorMeta>,
    by_name: HashMap<String, TensorId>,
    pieces: Vec<Vec<Piece>>,
}

/// Some rows of a checkpoint's tensor, and where they lie in the converted model.
#[derive(Clone, Debug)]
struct Piece {
    /// The first of its weights in the checkpoint's tensor.
    first: u64,
    /// Weights of a row.
    columns: u64,
    rows: u64,
    made: TensorId,
    /// The first weight of what the piece became.
    at: u64,
    map: Map,
}

impl Piece {
    fn end(&self) -> u64 {
        self.first + self.rows * self.columns
    }

    /// The place, in the converted tensor, of a weight of the checkpoint's, and how many follow it in order.
    fn place(&self, weight: u64) -> (u64, u64) {
        let within = weight - self.first;
        if self.map == Map::Identity {
            return (self.at + within, self.end() - weight);
        }
        let (row, column) = (within / self.columns, within % self.columns);
        let half = self.rows / 2;
        let to = if row < half { 2 * row } else { 2 * (row - half) + 1 };
        (self.at + to * self.columns + column, self.columns - column)
    }
}

impl Renamed {
    /// `outputs` is what becomes of the tensors of the checkpoint `like` in the container of `made`, which lies at `path`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the converted model lacks a tensor, has it in another shape, or in a form that can't go back.
    pub fn new(
        path: &Path,
        made: Box<dyn TensorSource>,
        like: &dyn TensorSource,
        outputs: &[OutputTensor],
    ) -> Result<Renamed> {
        let wrong = |reason: String| Error::Malformed { path: path.to_owned(), reason };
        let mut pieces: HashMap<TensorId, Vec<Piece>> = HashMap::new();
        for output in outputs {
            let Content::Parts(parts) = &output.content else { continue };
            let weight = format!("{}.weight", output.name);
            let Some(id) = made.find(&output.name).or_else(|| made.find(&weight)) else {
                let source = parts.first().map_or("", |part| &like.meta(part.source).name);
                return Err(wrong(format!(
                    "there is no tensor {}, which {source} became: it was made of another model",
                    output.name
                )));
            };
            let meta = made.meta(id);
            if meta.elements() != output.elements() || meta.columns() != output.columns() {
                return Err(wrong(format!(
                    "{} is {:?}, but should be {:?}: it was made of another model",
                    meta.name, meta.shape, output.shape
                )));
            }
            let mut at = 0;
            for part in parts {
                let piece = piece(part, id, at).ok_or_else(|| {
                    let source = &like.meta(part.source).name;
                    wrong(format!(
                        "{} is {source} with other numbers or its columns as rows, which can't go back: convert the checkpoint itself",
                        meta.name
                    ))
                })?;
                at += part.weights();
                pieces.entry(part.source).or_default().push(piece);
            }
        }
        let mut renamed = Renamed { made, tensors: Vec::new(), by_name: HashMap::new(), pieces: Vec::new() };
        for (id, meta) in like.tensors().iter().enumerate() {
            let Some(mut pieces) = pieces.remove(&TensorId(id)) else { continue };
            pieces.sort_by_key(|piece| piece.first);
            renamed.push(meta, pieces).map_err(wrong)?;
        }
        Ok(renamed)
    }

    /// Adds a tensor that pieces make up.
    fn push(&mut self, like: &TensorMeta, pieces: Vec<Piece>) -> std::result::Result<(), String> {
        let mut end = 0;
        for piece in &pieces {
            if piece.first != end {
                return Err(format!("not all rows of {} are there", like.name));
            }
            end = piece.end();
        }
        if end != like.elements() {
            return Err(format!("not all rows of {} are there", like.name));
        }
        let first = self.made.meta(pieces[0].made);
        if let Some(other) =
            pieces.iter().map(|piece| self.made.meta(piece.made)).find(|m| m.dtype != first.dtype)
        {
            return Err(format!(
                "{} is {} and {} {}, which were one tensor, {}: they must have one type",
                first.name, first.dtype, other.name, other.dtype, like.name
            ));
        }
        let Dtype::Block(format) = first.dtype else {
            return Err(format!("{} is {}, which is no weight", first.name, first.dtype));
        };
        let len = (0..format.planes.len())
            .try_fold(0u64, |sum, plane| sum.checked_add(format.plane_bytes(plane, like.elements())?));
        let in_blocks = pieces.iter().all(|piece| format.holds_row(piece.columns));
        let Some(len) = len.filter(|_| in_blocks) else {
            return Err(format!("the rows of {} are no whole blocks of {}", like.name, format.name));
        };
        let meta = TensorMeta { name: like.name.clone(), shape: like.shape.clone(), len, ..first.clone() };
        self.by_name.insert(like.name.clone(), TensorId(self.tensors.len()));
        self.tensors.push(meta);
        self.pieces.push(pieces);
        Ok(())
    }

    /// Fills `buffer` with bytes of a plane from weight `weight` on, a whole number of blocks.
    fn read_plane(&self, id: TensorId, plane: usize, mut weight: u64, mut buffer: &mut [u8]) -> Result<()> {
        let Dtype::Block(format) = self.tensors[id.0].dtype else { return Ok(()) };
        let (block, bytes) = (format.block as u64, format.planes[plane] as u64);
        while !buffer.is_empty() {
            let pieces = &self.pieces[id.0];
            let piece = &pieces[pieces.partition_point(|piece| piece.end() <= weight)];
            let (at, run) = piece.place(weight);
            let len = (run / block * bytes).min(buffer.len() as u64);
            let all = self.made.meta(piece.made).elements();
            let before: u64 = format.planes[..plane].iter().map(|bytes| all / block * *bytes as u64).sum();
            let (head, rest) = buffer.split_at_mut(len as usize);
            self.made.read_at(piece.made, before + at / block * bytes, head)?;
            weight += len / bytes * block;
            buffer = rest;
        }
        Ok(())
    }
}

/// Where the rows of a part are, unless their numbers were changed.
fn piece(part: &Part, made: TensorId, at: u64) -> Option<Piece> {
    let kept = matches!(part.map, Map::Identity | Map::InterleaveHalves);
    let rows = part.rows.end - part.rows.start;
    let first = part.rows.start * part.columns;
    kept.then_some(Piece { first, columns: part.columns, rows, made, at, map: part.map })
}

impl TensorSource for Renamed {
    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.by_name.get(name).copied()
    }

    fn files(&self) -> &[SourceFile] {
        self.made.files()
    }

    fn files_of(&self, id: TensorId) -> Vec<usize> {
        self.pieces[id.0].iter().flat_map(|piece| self.made.files_of(piece.made)).collect()
    }

    fn read_at(&self, id: TensorId, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (meta, len) = (self.meta(id), buffer.len() as u64);
        let out_of_tensor = || Error::OutOfTensor { tensor: meta.name.clone(), offset, len, size: meta.len };
        if offset.checked_add(len).is_none_or(|end| end > meta.len) {
            return Err(out_of_tensor());
        }
        let Dtype::Block(format) = meta.dtype else { return Err(out_of_tensor()) };
        let blocks = meta.elements() / format.block as u64;
        let (mut start, mut offset, mut rest) = (0, offset, buffer);
        for (plane, &bytes) in format.planes.iter().enumerate() {
            let (bytes, end) = (bytes as u64, start + blocks * bytes as u64);
            if offset < end && !rest.is_empty() {
                let here = (end - offset).min(rest.len() as u64);
                // Whole blocks, of which the first and the last may be cut.
                let first = (offset - start) / bytes;
                let last = (offset - start + here).div_ceil(bytes);
                let mut whole = vec![0; ((last - first) * bytes) as usize];
                self.read_plane(id, plane, first * format.block as u64, &mut whole)?;
                let skipped = (offset - start - first * bytes) as usize;
                let (head, tail) = rest.split_at_mut(here as usize);
                head.copy_from_slice(&whole[skipped..skipped + here as usize]);
                (offset, rest) = (end, tail);
            }
            start = end;
        }
        Ok(())
    }

    fn expect(&self, steps: Vec<Vec<usize>>) -> Result<()> {
        self.made.expect(steps)
    }

    fn settled(&self, step: usize) {
        self.made.settled(step);
    }
}

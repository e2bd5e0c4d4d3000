//! An importance matrix, laid over the tensors of a job: what each row's columns weigh when it is encoded.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
};

use formats::{Content, OutputTensor, TensorId, output::Map};
use sha2::{Digest, Sha256};

use crate::{
    calibrate::imatrix::{Channels, Importance},
    error::{Error, Result},
    recipe::{ImatrixFile, hex},
};

/// What a column that was never active weighs, of the average: it may be needed on another text.
const LEAST: f64 = 1e-4;

/// An importance matrix and which entry of it each matrix of the output has.
#[derive(Debug)]
pub struct Weighted {
    path: PathBuf,
    importance: Importance,
    sha256: String,
    /// For each output tensor, for each of its matrices.
    places: Vec<Vec<Option<Place>>>,
}

/// One matrix of one of the GGUF file's tensors.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    tensor: String,
    matrix: usize,
    /// How many matrices the tensor has.
    of: usize,
}

/// What the columns of a tensor's rows weigh: on average 1, finite and positive.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnWeights {
    /// Rows and columns of a matrix.
    rows: u64,
    columns: u64,
    /// For each matrix, [columns]; `None` if nothing is known of it.
    matrices: Vec<Option<Vec<f32>>>,
}

impl ColumnWeights {
    /// Length of a row.
    pub fn columns(&self) -> u64 {
        self.columns
    }

    /// Cuts some rows of the tensor where a matrix ends; each piece comes with what its columns weigh.
    pub fn cut(&self, rows: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<&[f32]>)> {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            let matrix = next / self.rows.max(1);
            let end = ((matrix + 1) * self.rows.max(1)).min(rows.end);
            let piece = next..end;
            next = end;
            let weights = self.matrices.get(matrix as usize).and_then(Option::as_deref);
            (!piece.is_empty()).then_some((piece, weights))
        })
    }
}

impl Weighted {
    /// Reads an importance matrix.
    ///
    /// # Errors
    /// As [`Importance::read`].
    pub fn read(path: &Path) -> Result<Weighted> {
        let importance = Importance::read(path)?;
        let mut hasher = Sha256::new();
        let mut file = File::open(path).map_err(Error::io(path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(Error::io(path))? {
                0 => break,
                len => hasher.update(&buffer[..len]),
            }
        }
        let sha256 = hex(&hasher.finalize());
        Ok(Weighted { path: path.to_owned(), importance, sha256, places: Vec::new() })
    }

    /// Finds the entries of the tensors of a GGUF file by name.
    ///
    /// # Errors
    /// [`Error::Imatrix`] if an entry has not as many columns as its tensor.
    pub fn over_gguf(mut self, outputs: &[OutputTensor]) -> Result<Weighted> {
        let place = |output: &OutputTensor| {
            let of = matrices(output);
            let place = |matrix| self.place(Place { tensor: output.name.clone(), matrix, of });
            (0..of).map(place).collect()
        };
        self.places = outputs.iter().map(place).collect();
        self.checked(outputs)
    }

    /// Finds the entries of the tensors of a folder: a matrix has that of the matrix of the GGUF file, `as_gguf`, that is
    /// made of the same rows of the checkpoint, if its columns are in the same order there.
    ///
    /// # Errors
    /// As [`over_gguf`](Self::over_gguf).
    pub fn over_checkpoint(mut self, outputs: &[OutputTensor], as_gguf: &[OutputTensor]) -> Result<Weighted> {
        let mut of_source: HashMap<TensorId, Vec<(Origin, Place)>> = HashMap::new();
        for output in as_gguf {
            for (at, origin) in origins(output) {
                let place = Place { tensor: output.name.clone(), matrix: at, of: matrices(output) };
                of_source.entry(origin.source).or_default().push((origin, place));
            }
        }
        let place = |output: &OutputTensor| {
            let mut places = vec![None; matrices(output)];
            for (at, origin) in origins(output) {
                let others = of_source.get(&origin.source).map(Vec::as_slice).unwrap_or_default();
                let same = others.iter().find(|(other, _)| other.has_the_columns_of(&origin));
                if let (Some((_, place)), Some(found @ None)) = (same, places.get_mut(at)) {
                    *found = self.place(place.clone());
                }
            }
            places
        };
        self.places = outputs.iter().map(place).collect();
        self.checked(outputs)
    }

    /// The place, if the file has an entry for it.
    fn place(&self, place: Place) -> Option<Place> {
        self.importance.tensors.contains_key(&place.tensor).then_some(place)
    }

    fn checked(self, outputs: &[OutputTensor]) -> Result<Weighted> {
        for (output, places) in outputs.iter().zip(&self.places) {
            for place in places.iter().flatten() {
                let channels = &self.importance.tensors[&place.tensor];
                if split(channels, place.of) != Some(output.columns() as usize) {
                    let (found, columns) = (channels.columns, output.columns());
                    let detail = format!(
                        "{} has {found} columns and {} counts, but tensor {} has {columns} columns and {} matrices",
                        place.tensor,
                        channels.counts.len(),
                        output.name,
                        place.of
                    );
                    return Err(Error::Imatrix { path: self.path, detail });
                }
            }
        }
        Ok(self)
    }

    /// What the columns of output tensor `index` weigh.
    pub fn of(&self, index: usize, output: &OutputTensor) -> Option<ColumnWeights> {
        let places = self.places.get(index)?;
        let rows = output.rows() / places.len().max(1) as u64;
        let columns = output.columns() as usize;
        let mut all: HashMap<&str, Vec<Option<Vec<f32>>>> = HashMap::new();
        let matrices: Vec<_> = places
            .iter()
            .map(|place| {
                let Place { tensor, matrix, .. } = place.as_ref()?;
                let channels = self.importance.tensors.get(tensor)?;
                let means = all.entry(tensor).or_insert_with(|| channels.mean_squares().collect());
                // One count for all: one row holds the columns of every matrix.
                let per_row = channels.columns.checked_div(columns)?.max(1);
                let row = means.get(matrix / per_row)?.as_ref()?;
                relative(row.get(matrix % per_row * columns..)?.get(..columns)?)
            })
            .collect();
        matrices.iter().any(Option::is_some).then_some(ColumnWeights {
            rows,
            columns: output.columns().max(1),
            matrices,
        })
    }

    /// Whether something is known of every matrix of output tensor `index`.
    pub fn covers(&self, index: usize) -> bool {
        self.places.get(index).is_some_and(|places| places.iter().all(Option::is_some))
    }

    /// The file, for the recipe.
    pub fn file(&self) -> ImatrixFile {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ImatrixFile { name, sha256: self.sha256.clone() }
    }

    /// What it was gathered on.
    pub fn importance(&self) -> &Importance {
        &self.importance
    }
}

/// Where a matrix of an output tensor comes from: some rows of one source tensor.
#[derive(Debug)]
struct Origin {
    source: TensorId,
    rows: Range<u64>,
    map: Map,
}

impl Origin {
    /// Whether the other's rows begin among these and their columns become the same columns.
    fn has_the_columns_of(&self, other: &Origin) -> bool {
        let rows_only =
            |map| matches!(map, Map::Identity | Map::InterleaveHalves | Map::EvenRows | Map::OddRows);
        if rows_only(self.map) && rows_only(other.map) {
            return self.rows.contains(&other.rows.start);
        }
        self.map == other.map && (self.rows == other.rows || self.map.is_row_wise())
    }
}

/// The matrices of a tensor, in order, each with what it is made of: once for each part of it.
fn origins(output: &OutputTensor) -> Vec<(usize, Origin)> {
    let Content::Parts(parts) = &output.content else { return Vec::new() };
    let rows = (output.rows() / matrices(output) as u64).max(1);
    let mut origins = Vec::new();
    let mut row = 0;
    for part in parts {
        let end = row + part.output_shape().0;
        while row < end {
            let next = ((row / rows + 1) * rows).min(end);
            let first = row - (end - part.output_shape().0);
            // What can't be cut lies in one matrix.
            let piece = part.cut(first..first + next - row).unwrap_or_else(|| part.clone());
            let origin = Origin { source: piece.source, rows: piece.rows, map: piece.map };
            origins.push(((row / rows) as usize, origin));
            row = next;
        }
    }
    origins
}

/// How many matrices a tensor is a stack of: experts, or heads.
fn matrices(output: &OutputTensor) -> usize {
    let stacked = output.shape.len().saturating_sub(2);
    output.shape[..stacked].iter().product::<u64>().max(1) as usize
}

/// The columns of each of a tensor's matrices, if the entry has some for each.
fn split(channels: &Channels, matrices: usize) -> Option<usize> {
    match channels.counts.len() {
        counts if counts == matrices => Some(channels.columns),
        1 if channels.columns.is_multiple_of(matrices) => Some(channels.columns / matrices),
        _ => None,
    }
}

/// Divided by the average and at least [`LEAST`], so that no encoder meets a block of zeros or runs out of the range of F32.
fn relative(mean_squares: &[f32]) -> Option<Vec<f32>> {
    let sum: f64 = mean_squares.iter().map(|&value| f64::from(value)).sum();
    let average = sum / mean_squares.len().max(1) as f64;
    let relative = |&value: &f32| (f64::from(value) / average).max(LEAST) as f32;
    (average > 0.0).then(|| mean_squares.iter().map(relative).collect())
}

#[cfg(test)]
mod tests;

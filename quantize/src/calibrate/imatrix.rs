//! llama.cpp's importance matrices: for every linear, the sum of squares of each of its input channels over a text, and the
//! number of tokens that went into it. Files are read in both forms that `llama-imatrix` writes and written in the newer one.
//!
//! - GGUF (`general.type` = `imatrix`): a tensor `<name>.in_sum2` [experts, columns] of sums and `<name>.counts` [experts, 1]
//!   of tokens, both F32. A batch of matrices that every token passes (MLA's `attn_k_b`) is one row of all of their columns
//!   with a single count.
//! - The older `.dat`: number of entries; for each its name, number of chunks and the mean squares times that number; behind
//!   them the chunks of all and the text's name. Integers are `i32`, little-endian.
//!
//! Source: `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp`.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::Path,
};

use formats::{
    Dtype, TensorId, TensorMeta, TensorSource,
    gguf::{self, Array, Gguf, Metadata, Value},
};
use kernels::table;

use crate::error::{Error, Result};

mod dat;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Tokens that the mean over a layer's experts counts for in each of them: what an expert adds to the layer's mean outweighs
/// the noise of its own few tokens from about there on.
const PRIOR: f64 = 16.0;

/// The second moments of the inputs of a tensor's rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channels {
    /// Length of a row of `sums`.
    pub columns: usize,
    /// Sums of squares, [experts, columns] row-major.
    pub sums: Vec<f32>,
    /// Tokens that each expert saw, [experts]; one for a tensor without experts.
    pub counts: Vec<f32>,
}

/// An importance matrix: the input channels of a model's linears.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// By the tensor's name in GGUF.
    pub tensors: HashMap<String, Channels>,
    /// What it was gathered on, as the file says.
    pub datasets: Vec<String>,
    /// Chunks of text it was gathered on.
    pub chunks: u32,
}

impl Importance {
    /// Reads a file in either form.
    ///
    /// # Errors
    /// [`Error::Imatrix`] if it is none, contradicts itself, is cut off, or holds a number that can't be a sum of squares or
    /// a count; [`Error::Io`] and [`Error::Format`] if it can't be read.
    pub fn read(path: &Path) -> Result<Importance> {
        let importance = if is_gguf(path)? { read_gguf(path)? } else { dat::read(path)? };
        for (name, channels) in &importance.tensors {
            channels.check().map_err(|detail| wrong(path, format!("{name}: {detail}")))?;
        }
        match importance.tensors.is_empty() {
            true => Err(wrong(path, "it has no entry".into())),
            false => Ok(importance),
        }
    }

    /// Writes a file in GGUF's form, tensors in the order of their names: into a temporary file, which then takes its place.
    /// `chunk_size` is the number of tokens in a chunk.
    ///
    /// # Errors
    /// [`Error::Imatrix`] as for [`read`](Self::read), [`Error::Format`] if a name is too long for llama.cpp, [`Error::Io`].
    pub fn write(&self, path: &Path, chunk_size: u32) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", self.datasets.clone());
        metadata.set("imatrix.chunk_count", self.chunks);
        metadata.set("imatrix.chunk_size", chunk_size);

        let mut names: Vec<&String> = self.tensors.keys().collect();
        names.sort_unstable();
        let mut planes = Vec::new();
        for name in names {
            let channels = &self.tensors[name];
            channels.check().map_err(|detail| wrong(path, format!("{name}: {detail}")))?;
            let experts = channels.counts.len() as u64;
            planes.push((format!("{name}{SUMS}"), [experts, channels.columns as u64], &channels.sums));
            planes.push((format!("{name}{COUNTS}"), [experts, 1], &channels.counts));
        }
        let format = table::gguf("f32").ok_or(Error::ReadOnly { format: "f32" })?;
        let tensors: Vec<_> = planes
            .iter()
            .map(|(name, shape, _)| gguf::write::Tensor { name, layer: None, shape, format })
            .collect();
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        let options = gguf::write::Options {
            stem: stem.strip_suffix(".gguf").unwrap_or(&stem),
            alignment: gguf::DEFAULT_ALIGNMENT,
            shard_size: None,
            shard_after: &[],
        };
        let layout = gguf::write::layout(&metadata, &tensors, &options)?;
        let mut bytes = Vec::new();
        for file in &layout.files {
            bytes.extend(&file.header);
        }
        for ((_, _, values), place) in planes.iter().zip(&layout.planes) {
            bytes.resize(place.iter().map(|place| place.offset).sum::<u64>() as usize, 0);
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        bytes.resize(layout.files.iter().map(|file| file.len).sum::<u64>() as usize, 0);

        let partial = path.with_file_name(format!(".{stem}.{}", std::process::id()));
        let put = |partial: &Path| {
            let mut file = File::create(partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(partial, path)
        };
        put(&partial).map_err(|error| {
            // What is left of a failed attempt is of no use to anybody.
            let _ = fs::remove_file(&partial);
            Error::io(path)(error)
        })
    }

    /// The mean squares of the inputs of one of a tensor's experts (0 if it has none): [columns], finite. An expert that saw few
    /// tokens leans on the mean over its layer's experts, one that saw none has it. `None` if the tensor has no entry or
    /// nothing but zeros.
    pub fn of(&self, tensor: &str, expert: usize) -> Option<Vec<f32>> {
        let channels = self.tensors.get(tensor)?;
        channels.mean_squares().nth(expert).flatten()
    }
}

impl Channels {
    /// [`Importance::of`] for each expert in turn.
    pub fn mean_squares(&self) -> impl Iterator<Item = Option<Vec<f32>>> + '_ {
        let tokens: f64 = self.counts.iter().map(|&count| f64::from(count)).sum();
        let mut layer = vec![0.0; self.columns];
        for row in self.sums.chunks_exact(self.columns.max(1)) {
            layer.iter_mut().zip(row).for_each(|(mean, &sum)| *mean += f64::from(sum) / tokens.max(1.0));
        }
        let prior = if self.counts.len() > 1 { PRIOR } else { 0.0 };
        self.counts.iter().zip(self.sums.chunks_exact(self.columns.max(1))).map(move |(&count, sums)| {
            let weight = f64::from(count) + prior;
            let mean = |(&sum, layer): (&f32, &f64)| ((f64::from(sum) + prior * layer) / weight) as f32;
            let seen = tokens > 0.0 && layer.iter().any(|&mean| mean > 0.0);
            seen.then(|| sums.iter().zip(&layer).map(mean).collect())
        })
    }

    /// Whether it can be what it says it is.
    fn check(&self) -> Result<(), String> {
        let (columns, experts) = (self.columns, self.counts.len());
        if columns == 0 || experts == 0 || columns.checked_mul(experts) != Some(self.sums.len()) {
            return Err(format!("{} sums for {experts} counts and {columns} columns", self.sums.len()));
        }
        if let Some(at) = self.sums.iter().position(|sum| !(sum.is_finite() && *sum >= 0.0)) {
            let (expert, column, sum) = (at / columns, at % columns, self.sums[at]);
            return Err(format!("the sum of squares of column {column} of matrix {expert} is {sum}"));
        }
        for (expert, (&count, sums)) in self.counts.iter().zip(self.sums.chunks_exact(columns)).enumerate() {
            if !(count.is_finite() && (count == 0.0 || count >= 1.0)) {
                return Err(format!("the count of matrix {expert} is {count}"));
            }
            if count == 0.0 && sums.iter().any(|&sum| sum > 0.0) {
                return Err(format!("matrix {expert} has sums, but a count of 0"));
            }
        }
        Ok(())
    }
}

fn wrong(path: &Path, detail: String) -> Error {
    Error::Imatrix { path: path.to_owned(), detail }
}

fn is_gguf(path: &Path) -> Result<bool> {
    use std::io::Read;
    // Asked before opening: to open a pipe would wait for its writer.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(wrong(path, "it is no file".into()));
    }
    let mut magic = Vec::new();
    File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic)).map_err(Error::io(path))?;
    Ok(magic == gguf::MAGIC)
}

fn read_gguf(path: &Path) -> Result<Importance> {
    let file = Gguf::open(path)?;
    let metadata = file.metadata();
    let kind = metadata.get("general.type").and_then(Value::as_str).unwrap_or("missing");
    if kind != "imatrix" {
        return Err(wrong(path, format!("its general.type is {kind}, not imatrix")));
    }
    let mut importance = Importance {
        datasets: match metadata.get("imatrix.datasets") {
            Some(Value::Array(Array::String(names))) => names.clone(),
            _ => Vec::new(),
        },
        chunks: metadata
            .get("imatrix.chunk_count")
            .and_then(Value::as_u64)
            .and_then(|n| n.try_into().ok())
            .unwrap_or(0),
        ..Importance::default()
    };
    for (at, sums) in file.tensors().iter().enumerate() {
        let Some(name) = sums.name.strip_suffix(SUMS) else {
            let sums = sums.name.strip_suffix(COUNTS).map(|name| format!("{name}{SUMS}"));
            match sums.as_ref().map(|name| file.find(name)) {
                Some(Some(_)) => continue,
                Some(None) => {
                    let missing = sums.unwrap_or_default();
                    return Err(wrong(path, format!("it has no tensor {missing}")));
                }
                None => {
                    let other = &file.tensors()[at].name;
                    return Err(wrong(path, format!("tensor {other} ends in neither {SUMS} nor {COUNTS}")));
                }
            }
        };
        let counts = format!("{name}{COUNTS}");
        let counts = file.find(&counts).ok_or_else(|| wrong(path, format!("it has no tensor {counts}")))?;
        let meta = file.meta(counts);
        let experts = sums.rows();
        if meta.elements() != experts {
            return Err(wrong(
                path,
                format!("{name}: {:?} sums of squares, but {:?} counts", sums.shape, meta.shape),
            ));
        }
        let channels = Channels {
            columns: sums.columns() as usize,
            sums: floats(path, &file, TensorId(at), sums)?,
            counts: floats(path, &file, counts, meta)?,
        };
        importance.tensors.insert(name.to_owned(), channels);
    }
    Ok(importance)
}

/// A tensor of F32, whose length was checked against the file's.
fn floats(path: &Path, file: &Gguf, id: TensorId, meta: &TensorMeta) -> Result<Vec<f32>> {
    if !matches!(meta.dtype, Dtype::Block(format) if format.name == "f32") {
        return Err(wrong(path, format!("{} is of type {}, not F32", meta.name, meta.dtype)));
    }
    let mut bytes = vec![0; meta.len as usize];
    file.read_at(id, 0, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests;

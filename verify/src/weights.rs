//! A model's weights under GGUF's names and in GGUF's conventions, whatever container they lie in, decoded row by row.

use std::collections::HashMap;
use std::ops::Range;

use formats::checkpoint::Weights as Container;
use formats::families::{self, Target, gguf_tensors};
use formats::rows::{self, Stored};
use formats::scales::{DEFAULT_BLOCK, Scales};
use formats::{Checkpoint, Content, Dtype, ModelConfig, OutputTensor, Source};
use kernels::Isa;

use crate::error::{Error, Result};
use crate::hyper::Hyper;

/// A model, opened.
pub struct Weights {
    /// Where it is.
    pub checkpoint: Checkpoint,
    /// Its hyper-parameters.
    pub hyper: Hyper,
    /// Its tensors.
    pub tensors: Vec<OutputTensor>,
    scales: Scales,
    by_name: HashMap<String, usize>,
}

/// A matrix of a model: `rows` × `columns` weights, and a bias of `rows` values if it has one.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Index of the tensor.
    pub tensor: usize,
    /// Which rows of the tensor, all dimensions but the last flattened.
    pub rows: Range<usize>,
    /// Length of a row.
    pub columns: usize,
    /// Added to each output row.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Only some of the rows, counted from the first.
    pub fn part(&self, rows: Range<usize>) -> Linear {
        Linear {
            tensor: self.tensor,
            rows: self.rows.start + rows.start..self.rows.start + rows.end,
            columns: self.columns,
            bias: self.bias.as_ref().map(|bias| bias[rows].to_vec()),
        }
    }
}

/// Several matrices of the same shape, stacked: [count, rows, columns], and as many biases if there are any.
#[derive(Clone, Debug)]
pub struct Stack {
    all: Linear,
    /// How many.
    pub count: usize,
    /// Which rows of each.
    rows: Range<usize>,
}

impl Stack {
    /// A matrix seen as `count` of them.
    pub fn new(all: Linear, count: usize) -> Stack {
        let rows = 0..all.rows.len() / count.max(1);
        Stack { all, count, rows }
    }

    /// One of the matrices.
    pub fn one(&self, index: usize) -> Linear {
        let first = self.all.rows.len() / self.count * index;
        self.all.part(first + self.rows.start..first + self.rows.end)
    }

    /// Only some of the rows of each.
    pub fn part(&self, rows: Range<usize>) -> Stack {
        Stack { rows: self.rows.start + rows.start..self.rows.start + rows.end, ..self.clone() }
    }
}

impl Weights {
    /// Opens a model from its headers.
    ///
    /// # Errors
    /// If the container is malformed, its family unknown, or a tensor missing.
    pub fn open(model: &Source) -> Result<Weights> {
        let checkpoint = Checkpoint::open(model)?;
        let source = checkpoint.source();
        let place = model.to_string();
        let (metadata, tensors, scales) = match &checkpoint.weights {
            Container::Gguf(gguf) => {
                (gguf.metadata().clone(), gguf_tensors(source), Scales::find(source, DEFAULT_BLOCK)?)
            }
            _ => {
                let config = ModelConfig::read(&checkpoint.folder)?;
                let block = config.quantization.as_ref().and_then(|q| q.weight_block);
                let scales = Scales::find(source, block.unwrap_or(DEFAULT_BLOCK))?;
                let tensors = families::plan(&config, source, Target::Gguf)?;
                (families::gguf_metadata(&config)?, tensors, scales)
            }
        };
        let hyper = Hyper::new(metadata, &place)?;
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Ok(Weights { hyper, tensors, scales, by_name, checkpoint })
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&OutputTensor> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// Its index.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Looks a tensor up and checks its shape; ones in front of a shape don't count.
    fn take(&self, name: &str, shape: &[usize]) -> Result<usize> {
        let &index =
            self.by_name.get(name).ok_or_else(|| Error::MissingTensor { tensor: name.to_owned() })?;
        let strip = |shape: &[u64]| -> Vec<u64> { shape.iter().copied().skip_while(|&n| n == 1).collect() };
        let expected: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let found = &self.tensors[index].shape;
        if strip(found) != strip(&expected) {
            return Err(Error::Shape { tensor: name.to_owned(), found: found.clone(), expected });
        }
        Ok(index)
    }

    /// The values of `<name>`, a vector of `len`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], and whatever reading finds.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.values(self.take(name, &[len])?)
    }

    /// The same, if there is such a tensor.
    ///
    /// # Errors
    /// As [`vector`](Self::vector).
    pub fn optional_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.find(name).map(|_| self.vector(name, len)).transpose()
    }

    /// All values of a small tensor.
    fn values(&self, index: usize) -> Result<Vec<f32>> {
        let tensor = &self.tensors[index];
        let mut values = vec![0.0; tensor.elements() as usize];
        self.rows(index, 0..tensor.rows() as usize, &mut values)?;
        Ok(values)
    }

    /// The matrix `<name>.weight` [rows, columns] and its bias, if there is one.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], and whatever reading the bias finds.
    pub fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let tensor = self.take(&format!("{name}.weight"), &[rows, columns])?;
        let bias = self.optional_vector(&format!("{name}.bias"), rows)?;
        Ok(Linear { tensor, rows: 0..rows, columns, bias })
    }

    /// The stacked matrices `<name>.weight` [count, rows, columns] and their biases, if there are any.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn stack(&self, name: &str, count: usize, rows: usize, columns: usize) -> Result<Stack> {
        let tensor = self.take(&format!("{name}.weight"), &[count, rows, columns])?;
        let bias = format!("{name}.bias");
        let bias = match self.by_name.contains_key(&bias) {
            true => Some(self.values(self.take(&bias, &[count, rows])?)?),
            false => None,
        };
        Ok(Stack::new(Linear { tensor, rows: 0..count * rows, columns, bias }, count))
    }

    /// Decodes rows of a tensor (all dimensions but the last flattened) into `out`, row after row.
    ///
    /// # Errors
    /// If the source can't be read, or its elements are no weights.
    pub fn rows(&self, index: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (source, tensor) = (self.checkpoint.source(), &self.tensors[index]);
        Ok(rows::decode(
            source,
            &self.scales,
            tensor,
            rows.start as u64..rows.end as u64,
            Isa::detect(),
            out,
        )?)
    }

    /// The form in which a device may get the rows of a tensor, if they have one.
    pub fn stored(&self, index: usize) -> Option<Stored> {
        Stored::of(self.checkpoint.source(), &self.scales, &self.tensors[index])
    }

    /// Appends rows of a tensor, as [`stored`](Self::stored) says, to `planes`.
    ///
    /// # Errors
    /// If the source can't be read.
    pub fn stored_rows(&self, index: usize, rows: Range<usize>, planes: &mut [Vec<u8>]) -> Result<()> {
        let Some(stored) = self.stored(index) else { return Ok(()) };
        let (source, tensor) = (self.checkpoint.source(), &self.tensors[index]);
        Ok(stored.read(source, &self.scales, tensor, rows.start as u64..rows.end as u64, planes)?)
    }

    /// How a tensor is stored: the format's name and its bits per weight, block scales left out.
    pub fn stored_as(&self, index: usize) -> (String, f64) {
        let source = self.checkpoint.source();
        let Content::Parts(parts) = &self.tensors[index].content else { return ("f32".to_owned(), 32.0) };
        let Some(part) = parts.first() else { return ("f32".to_owned(), 32.0) };
        let meta = source.meta(part.source);
        if let Some((name, bytes)) = source.decoded_from(part.source) {
            return (name.to_owned(), bytes as f64 * 8.0 / meta.elements() as f64);
        }
        let dtype = meta.dtype;
        let bits = match dtype {
            Dtype::Block(format) => {
                format.planes.iter().sum::<usize>() as f64 * 8.0 / format.block.max(1) as f64
            }
            Dtype::F8E4M3 | Dtype::F8E8M0 => 8.0,
            Dtype::Other { bytes, .. } => bytes as f64 * 8.0,
        };
        (dtype.to_string(), bits)
    }
}

//! What tests of packed folders share: making them, and the weights that are read.

use std::fs;

use halfbyte_formats::checkpoint::{Checkpoint, Weights};
use halfbyte_formats::joined::Joined;
use halfbyte_formats::output::{Class, Content, Map, OutputTensor, Part};
use halfbyte_formats::scales::{DEFAULT_BLOCK, Scales};
use halfbyte_formats::{Error, TensorSource, rows};
use kernels::Isa;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{names, safetensors_file};

/// A tensor: its name, type, shape and bytes.
pub type Entry = (&'static str, &'static str, &'static [u64], Vec<u8>);

/// A folder of one file with these tensors and this `config.json`.
pub fn folder<N: AsRef<str>, S: AsRef<[u64]>>(tensors: &[(N, &str, S, Vec<u8>)], config: &Value) -> TempDir {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let (name, shape) = (name.as_ref().to_owned(), shape.as_ref());
        header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend(bytes);
    }
    let folder = TempDir::new().unwrap();
    let file = safetensors_file(&Value::from(header).to_string(), &data);
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// The same, opened.
pub fn open(tensors: &[Entry], config: &Value) -> Result<Joined, Error> {
    match Checkpoint::open(&folder(tensors, config).path().into())?.weights {
        Weights::Packed(folder) => Ok(folder),
        other => panic!("not packed: {other:?}"),
    }
}

/// A tensor's weights.
pub fn try_values(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>, Error> {
    let id = source.find(name).unwrap();
    let meta = source.meta(id);
    let part = Part { source: id, columns: meta.columns(), rows: 0..meta.rows(), map: Map::Identity };
    let (shape, content) = (meta.shape.clone(), Content::Parts(vec![part]));
    let (name, class) = (name.to_owned(), Class::Other);
    let tensor = OutputTensor { name, shape, class, layer: None, quantizable: true, content };
    let scales = Scales::find(source, DEFAULT_BLOCK)?;
    let mut out = vec![f32::NAN; tensor.elements() as usize];
    rows::decode(source, &scales, &tensor, 0..tensor.rows(), Isa::detect(), &mut out)?;
    Ok(out)
}

/// The same where they can be read.
pub fn values(source: &dyn TensorSource, name: &str) -> Vec<f32> {
    try_values(source, name).unwrap()
}

pub fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A float that BF16 holds.
pub fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

/// A weight [16, columns] in groups of 32 columns, from formulas.
pub struct Weight {
    pub columns: usize,
    /// The group of each column.
    pub index: Vec<u32>,
}

impl Weight {
    pub const ROWS: usize = 16;
    pub const GROUP: usize = 32;

    pub fn new(columns: usize) -> Weight {
        Weight { columns, index: (0..columns).map(|column| (column / Weight::GROUP) as u32).collect() }
    }

    pub fn groups(&self) -> usize {
        self.columns / Weight::GROUP
    }

    pub fn code(&self, row: usize, column: usize) -> u32 {
        (row * 7 + column * 5 + row * column) as u32 % 16
    }

    /// From 1 on, for not all formats have a zero point of 0.
    pub fn zero(&self, row: usize, group: usize) -> u32 {
        1 + (row + 3 * group) as u32 % 15
    }

    /// A power of two, which all types hold.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        [0.5, 0.125, 2.0, -1.0][(row + group) % 4]
    }

    /// What comes of it.
    pub fn values(&self) -> Vec<f32> {
        let value = |row: usize, column: usize| {
            let group = self.index[column] as usize;
            self.scale(row, group) * (self.code(row, column) as f32 - self.zero(row, group) as f32)
        };
        (0..Weight::ROWS * self.columns).map(|i| value(i / self.columns, i % self.columns)).collect()
    }

    /// [groups, rows] in BF16.
    pub fn scales(&self) -> Vec<u8> {
        let at = |i: usize| bf16(self.scale(i % Weight::ROWS, i / Weight::ROWS));
        (0..self.groups() * Weight::ROWS).flat_map(at).collect()
    }
}

#[test]
fn methods_that_are_not_read_are_named() {
    let codes = ("a.qweight", "I32", &[8, 16][..], vec![0; 512]);
    let refused = |quantization: Value, parts: &[&str]| {
        let config = json!({ "quantization_config": quantization });
        names(&open(std::slice::from_ref(&codes), &config).unwrap_err(), parts);
    };
    refused(json!({ "quant_method": "gptq", "bits": 8 }), &["config.json", "bits is 8", "read are 4"]);
    refused(json!({ "quant_method": "gptq" }), &["bits is missing"]);
    refused(json!({ "quant_method": "awq", "bits": 3 }), &["bits is 3"]);
    refused(
        json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" }),
        &["checkpoint_format is \"marlin\"", "gptq_v2"],
    );
    refused(json!({ "quant_method": "awq", "bits": 4, "version": "gemv" }), &["version is \"gemv\"", "gemm"]);
    refused(json!({ "quant_method": 4 }), &["quant_method is 4"]);
    let packing = "auto_round:fp8_static";
    refused(
        json!({ "quant_method": "auto-round", "bits": 4, "packing_format": packing }),
        &["packing_format", packing, "auto_gptq"],
    );
    refused(
        json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" }),
        &["quant_algo", "NVFP4", "full-precision"],
    );
}

//! A model's hyper-parameters, as GGUF's metadata states them: of a GGUF file what it says, of any other checkpoint what it
//! would say once converted. So one parser serves every container, and what it reads is what llama.cpp reads.

use formats::gguf::{Array, Metadata, Value};

use crate::error::{Error, Result};

/// Hyper-parameters under the architecture's prefix (`llama.block_count` is asked for as `block_count`).
#[derive(Clone, Debug)]
pub struct Hyper {
    /// `general.architecture`.
    pub arch: String,
    metadata: Metadata,
    /// The file or folder, for messages.
    place: String,
}

impl Hyper {
    /// Takes over a file's metadata; `place` names it in messages.
    ///
    /// # Errors
    /// [`Error::Hyper`] if no architecture is stated.
    pub fn new(metadata: Metadata, place: &str) -> Result<Hyper> {
        let arch = metadata.get("general.architecture").and_then(Value::as_str).map(str::to_owned);
        let hyper = Hyper { arch: arch.unwrap_or_default(), metadata, place: place.to_owned() };
        if hyper.arch.is_empty() {
            return Err(hyper.error("general.architecture", "is missing"));
        }
        Ok(hyper)
    }

    /// An error about a key.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Hyper { place: self.place.clone(), key: key.to_owned(), problem: problem.into() }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&format!("{}.{key}", self.arch))
    }

    /// Whether anything is stated under a key.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A count, if it is stated. Counts are below 2³².
    ///
    /// # Errors
    /// [`Error::Hyper`] if it is no such integer.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().filter(|&count| count <= u32::MAX.into());
        count.map(|count| Some(count as usize)).ok_or_else(|| self.error(key, "is no count"))
    }

    /// A positive count.
    ///
    /// # Errors
    /// [`Error::Hyper`] if it is missing or zero.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.optional_count(key)? {
            Some(0) => Err(self.error(key, "is zero")),
            Some(count) => Ok(count),
            None => Err(self.error(key, "is missing")),
        }
    }

    /// A count for each of `layers` layers: stated for each, or once for all.
    ///
    /// # Errors
    /// [`Error::Hyper`] if it is missing, or there are fewer than layers.
    pub fn counts(&self, key: &str, layers: usize) -> Result<Vec<usize>> {
        let Some(Value::Array(array)) = self.value(key) else { return Ok(vec![self.count(key)?; layers]) };
        let all: Option<Vec<usize>> = match array {
            Array::U32(all) => Some(all.iter().map(|&n| n as usize).collect()),
            Array::I32(all) => all.iter().map(|&n| usize::try_from(n).ok()).collect(),
            _ => None,
        };
        let mut all = all.ok_or_else(|| self.error(key, "is no list of counts"))?;
        if all.len() < layers {
            return Err(self.error(key, format!("has {} values for {layers} layers", all.len())));
        }
        all.truncate(layers);
        Ok(all)
    }

    /// A yes or no for each of `layers` layers, if it is stated so.
    ///
    /// # Errors
    /// [`Error::Hyper`] if there are fewer than layers.
    pub fn flags(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(Value::Array(array)) = self.value(key) else { return Ok(None) };
        let mut all: Vec<bool> = match array {
            Array::Bool(all) => all.clone(),
            Array::I32(all) => all.iter().map(|&n| n != 0).collect(),
            Array::U32(all) => all.iter().map(|&n| n != 0).collect(),
            _ => return Err(self.error(key, "is no list of flags")),
        };
        if all.len() < layers {
            return Err(self.error(key, format!("has {} values for {layers} layers", all.len())));
        }
        all.truncate(layers);
        Ok(Some(all))
    }

    /// Size of the vocabulary: stated, or that of the tokenizer.
    ///
    /// # Errors
    /// [`Error::Hyper`] if there is neither.
    pub fn vocabulary(&self) -> Result<usize> {
        match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array(Array::String(tokens))) if !self.has("vocab_size") => Ok(tokens.len()),
            _ => self.count("vocab_size"),
        }
    }

    /// A finite number, if it is stated.
    ///
    /// # Errors
    /// [`Error::Hyper`] if it is none.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(&Value::F32(number)) => f64::from(number),
            Some(&Value::F64(number)) => number,
            Some(other) => other.as_u64().map_or(f64::NAN, |n| n as f64),
        };
        if number.is_finite() { Ok(Some(number)) } else { Err(self.error(key, "is no finite number")) }
    }

    /// A finite number.
    ///
    /// # Errors
    /// [`Error::Hyper`] if it is missing or none.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.optional_number(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A flag, if it is stated.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key) {
            Some(&Value::Bool(flag)) => Some(flag),
            _ => None,
        }
    }

    /// A text, if it is stated.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }
}

//! The keys of a JSON object with errors that name the file and the key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Typed access to the keys of `config.json`, for what only one family has. `null` counts as absent.
#[derive(Clone, Debug)]
pub struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Keys {
    /// The keys of an object; those of a nested `text_config` come before its own.
    pub(crate) fn new(path: &Path, mut map: Map<String, Value>) -> Keys {
        if let Some(Value::Object(inner)) = map.remove("text_config") {
            map.extend(inner.into_iter().filter(|(_, value)| !value.is_null()));
        }
        Keys { path: path.to_owned(), map }
    }

    /// Adds those that are absent.
    pub(crate) fn fill(&mut self, defaults: &[(&str, u64)]) {
        for &(key, value) in defaults {
            if self.get(key).is_none() {
                self.map.insert(key.to_owned(), value.into());
            }
        }
    }

    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), key: key.to_owned(), problem: problem.into() }
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        self.error(key, "is missing")
    }

    /// The value, whatever it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An integer from `low` to 2³² − 1.
    pub(crate) fn integer(&self, key: &str, low: u64) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (low..=u32::MAX.into()).contains(&n) => Ok(Some(n)),
            _ => Err(self.error(key, format!("is {value}, not an integer from {low} to {}", u32::MAX))),
        }
    }

    /// A positive integer below 2³², if it is there.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<u64>> {
        self.integer(key, 1)
    }

    /// A positive integer below 2³².
    pub(crate) fn size(&self, key: &str) -> Result<u64> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// The first of several names that is there.
    pub(crate) fn first_size(&self, keys: &[&str]) -> Result<Option<u64>> {
        keys.iter().find_map(|key| self.optional_size(key).transpose()).transpose()
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.error(key, format!("is {value}, not a number")))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(key, format!("is {value}, not true or false")))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, format!("is {value}, not a string")))
    }

    /// A list of texts, such as `layer_types`.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = serde_json::from_value(value.clone());
        list.map(Some).map_err(|_| self.error(key, format!("is {value}, not a list of strings")))
    }

    /// A list of integers from 0 to 2³² − 1.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = serde_json::from_value(value.clone());
        list.map(Some).map_err(|_| self.error(key, format!("is {value}, not a list of integers")))
    }

    /// A nested object.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.error(key, format!("is {value}, not an object")))?;
        Ok(Some(Keys { path: self.path.clone(), map: map.clone() }))
    }
}

//! `--tensor REGEX=TYPE`: the user's word on single tensors.

use formats::{OutputTensor, linears::Packing};
use kernels::{Format, table};
use regex::Regex;

use crate::error::{Choice, Error, Result};

/// `REGEX=TYPE` overrides: the first expression that is found in a tensor's name decides, before any rule of a mix. Tensors
/// that can't be quantized (norms, GGUF's routers) are left alone.
#[derive(Debug, Default)]
pub struct Overrides(Vec<Override>);

#[derive(Debug)]
struct Override {
    text: String,
    pattern: Regex,
    format: &'static Format,
}

impl Overrides {
    /// Reads them; `lookup` finds the container's type of a name among `known`.
    fn parse(texts: &[String], known: &[&'static Format]) -> Result<Overrides> {
        let parse = |(index, text): (usize, &String)| {
            let wrong = |detail: String| rule_error(index, text, detail);
            let (pattern, name) =
                text.rsplit_once('=').ok_or_else(|| wrong("has no `=`: write REGEX=TYPE".to_owned()))?;
            let pattern = Regex::new(pattern).map_err(|error| wrong(error.to_string()))?;
            let format = writable(known, name).map_err(wrong)?;
            Ok(Override { text: text.clone(), pattern, format })
        };
        texts.iter().enumerate().map(parse).collect::<Result<_>>().map(Overrides)
    }

    /// For GGUF: `TYPE` is one of its types.
    ///
    /// # Errors
    /// If one is malformed or names an unknown type.
    pub fn gguf(texts: &[String]) -> Result<Overrides> {
        Overrides::parse(texts, table::GGUF)
    }

    /// For MLX: `TYPE` is one of its modes (`4bit-g64`, `mxfp8`, …) or a float type.
    ///
    /// # Errors
    /// As [`gguf`](Self::gguf).
    pub fn mlx(texts: &[String]) -> Result<Overrides> {
        Overrides::parse(texts, table::MLX)
    }

    /// For a container that keeps the checkpoint's own names: `TYPE` is one of its schemes (`w4a16-g128`) or a float type.
    ///
    /// # Errors
    /// As [`gguf`](Self::gguf).
    pub fn packed(texts: &[String], packing: &Packing) -> Result<Overrides> {
        Overrides::parse(texts, &packing.named())
    }

    /// The type of a tensor that an override is for.
    pub(crate) fn of(&self, tensor: &OutputTensor) -> Option<&'static Format> {
        self.0.iter().find(|o| o.pattern.is_match(&tensor.name)).map(|o| o.format)
    }

    /// An override that changes nothing is a mistake of whoever wrote it.
    ///
    /// # Errors
    /// If there is one.
    pub(crate) fn check_used(&self, tensors: &[OutputTensor]) -> Result<()> {
        let is_idle = |o: &Override| !tensors.iter().any(|t| t.quantizable && o.pattern.is_match(&t.name));
        match self.0.iter().position(is_idle) {
            None => Ok(()),
            Some(index) => {
                let detail =
                    "is found in the name of no tensor that can be quantized; `--dry-run` lists the names";
                Err(rule_error(index, &self.0[index].text, detail.to_owned()))
            }
        }
    }
}

fn rule_error(index: usize, text: &str, detail: String) -> Error {
    Error::Choice { choice: Choice::Rule { index, text: text.to_owned() }, detail }
}

/// The format of that name, of those that can be encoded; if there is none, a message that lists them.
pub(crate) fn writable(formats: &[&'static Format], name: &str) -> Result<&'static Format, String> {
    let mut known = formats.iter().filter(|format| format.encode.is_some());
    known.clone().find(|format| format.name.eq_ignore_ascii_case(name)).copied().ok_or_else(|| {
        let names: Vec<_> = known.by_ref().map(|format| format.name).collect();
        format!("unknown type `{name}`; known are {}", names.join(", "))
    })
}

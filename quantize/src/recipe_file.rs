//! A recipe that a person may have edited: read, planned and checked, with messages that point at its lines.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use formats::Source;
use toml::de::{DeTable, DeValue};

use crate::{
    calibrate::Calibration,
    error::{Error, Result},
    job::Job,
    recipe::Recipe,
};

/// A recipe and the text it was read from.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    path: PathBuf,
    text: String,
    recipe: Recipe,
}

/// What the user adds to a recipe.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Whether NaN and infinite weights are let through even if the recipe does not say so.
    pub allow_nonfinite: bool,
    /// What is calibrated on: if the recipe says so itself, it must be the same.
    pub calibration: Option<Calibration>,
    /// The place of the importance matrix: if the recipe has one, the file must be the same.
    pub imatrix: Option<PathBuf>,
}

impl RecipeFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Recipe`] if it is no TOML, has unknown or missing keys or values of wrong types.
    pub fn read(path: &Path) -> Result<RecipeFile> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        RecipeFile::parse(path, text)
    }

    /// The same of a text; `path` is for messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(path: &Path, text: String) -> Result<RecipeFile> {
        match toml::from_str(&text) {
            Ok(recipe) => Ok(RecipeFile { path: path.to_owned(), text, recipe }),
            Err(error) => {
                let line = line(&text, error.span().map_or(0, |span| span.start));
                Err(Error::Recipe { path: path.to_owned(), line, detail: error.message().to_owned() })
            }
        }
    }

    /// Plans what the recipe says for `source`, and checks that what comes of its rules is what it lists. Sizes are not
    /// compared: they follow from the types.
    ///
    /// # Errors
    /// [`Error::Recipe`] if a value or a rule is wrong, the source, the calibration or the importance matrix is another, or a
    /// listed tensor is not there or gets another type; else as [`Job::plan`].
    pub fn plan(&self, source: &Source, out: &Path, given: Given) -> Result<Job> {
        self.check_calibration(given.calibration.as_ref())?;
        let mut options = self.recipe.options();
        options.allow_nonfinite |= given.allow_nonfinite;
        options.calibration = given.calibration;
        options.imatrix = given.imatrix;
        let mut job = Job::plan(source, out, &options).map_err(|error| match error {
            Error::Choice { choice, detail } => self.wrong(&choice.place(), detail),
            other => other,
        })?;
        self.check_source(&job.recipe, source)?;
        self.check_imatrix(&job.recipe)?;
        self.check_tensors(&job.recipe)?;
        if !self.recipe.tool.is_empty() && self.recipe.tool != job.recipe.tool {
            job.warnings.push(format!(
                "the recipe was written by {}, this is {}: another version may round otherwise",
                self.recipe.tool, job.recipe.tool
            ));
        }
        Ok(job)
    }

    fn check_source(&self, found: &Recipe, source: &Source) -> Result<()> {
        if self.recipe.source.is_empty() {
            return Ok(());
        }
        let wrong = |place: &[Key], what: String| {
            let hint = "give the checkpoint that the recipe was made for, or delete the list `source` to take this one";
            self.wrong(place, format!("{}: {what}; {hint}", source))
        };
        let files: HashMap<_, _> = found.source.iter().map(|file| (&file.name, file)).collect();
        for (at, due) in self.recipe.source.iter().enumerate() {
            let place = [Key::Name("source"), Key::Index(at)];
            let Some(file) = files.get(&due.name) else {
                return Err(wrong(&place, format!("has no file {}", due.name)));
            };
            if file.bytes != due.bytes {
                let what = format!("its {} has {} bytes, not {}", due.name, file.bytes, due.bytes);
                return Err(wrong(&place, what));
            }
            if file.index_sha256 != due.index_sha256 {
                let what =
                    format!("the tensors of its {} have other names, types, shapes or places", due.name);
                return Err(wrong(&place, what));
            }
        }
        let is_listed = |name: &String| self.recipe.source.iter().any(|due| due.name == *name);
        match found.source.iter().find(|file| !is_listed(&file.name)) {
            Some(more) => Err(wrong(&[Key::Name("source")], format!("has a file more, {}", more.name))),
            None => Ok(()),
        }
    }

    fn check_calibration(&self, given: Option<&Calibration>) -> Result<()> {
        let Some(due) = &self.recipe.calibration else { return Ok(()) };
        let detail = match given {
            Some(given) if given == due => return Ok(()),
            Some(given) => format!("it is calibrated by {}, not by {}", due.to_toml(), given.to_toml()),
            None => "it is calibrated: give the text (--calibrate)".to_owned(),
        };
        Err(self.wrong(&[Key::Name("calibration")], detail))
    }

    fn check_imatrix(&self, found: &Recipe) -> Result<()> {
        let Some(due) = &self.recipe.imatrix else { return Ok(()) };
        let what = match &found.imatrix {
            Some(given) if given.sha256 == due.sha256 => return Ok(()),
            Some(given) => {
                format!("--imatrix {} is another file: its SHA-256 is {}", given.name, given.sha256)
            }
            None => {
                format!("the recipe was made with the importance matrix {}: give it with --imatrix", due.name)
            }
        };
        let hint = "delete the line to do without";
        Err(self.wrong(&[Key::Name("imatrix")], format!("{what}; {hint} it")))
    }

    fn check_tensors(&self, found: &Recipe) -> Result<()> {
        let formats: HashMap<_, _> =
            found.tensor.iter().map(|tensor| (&tensor.name, &tensor.format)).collect();
        for (at, due) in self.recipe.tensor.iter().enumerate() {
            let place = [Key::Name("tensor"), Key::Index(at)];
            let what = match formats.get(&due.name) {
                None => {
                    format!("the model has no tensor {}: delete the line, or the list `tensor`", due.name)
                }
                Some(format) if !format.eq_ignore_ascii_case(&due.format) => format!(
                    "{} is listed as {}, but the rules make it {format}: change the rule or delete the list `tensor`",
                    due.name, due.format
                ),
                Some(_) => continue,
            };
            return Err(self.wrong(&place, what));
        }
        Ok(())
    }

    /// An error at a place of the file: at its first line if the place is not written there.
    fn wrong(&self, place: &[Key], detail: String) -> Error {
        let at = offset(&self.text, place).unwrap_or(0);
        Error::Recipe { path: self.path.clone(), line: line(&self.text, at), detail }
    }
}

/// A step on the way to a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Key {
    /// Into a table.
    Name(&'static str),
    /// Into an array.
    Index(usize),
}

/// Where a value's text begins.
fn offset(text: &str, place: &[Key]) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let (Key::Name(first), rest) = place.split_first()? else { return None };
    let mut value = table.get_ref().get(*first)?;
    for key in rest {
        value = match (value.get_ref(), key) {
            (DeValue::Array(array), Key::Index(at)) => array.get(*at)?,
            (DeValue::Table(table), Key::Name(name)) => table.get(*name)?,
            _ => return None,
        };
    }
    Some(value.span().start)
}

/// The line of an offset, counted from 1.
fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

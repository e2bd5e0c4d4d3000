//! What the environment says, by the names that all of Hugging Face's tools know (`huggingface_hub`, `constants.py`): `HF_ENDPOINT`,
//! `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A secret. It shows its value to nobody but who asks for it by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, unless it is empty or could not stand in a header.
    pub fn new(text: &str) -> Option<Token> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Token(text.to_owned()))
    }

    /// The secret itself, for a request to the Hub.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Which Hub, as whom, and where its files are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who one is there.
    pub token: Option<Token>,
    /// The folder for all of Hugging Face's state.
    pub home: PathBuf,
    /// The folder with repositories' files.
    pub cache: PathBuf,
    /// Whether only that folder may be used, not the network.
    pub offline: bool,
}

/// The Hub, unless `HF_ENDPOINT` names another one.
const ENDPOINT: &str = "https://huggingface.co";

impl Settings {
    /// As the environment says.
    ///
    /// # Errors
    /// [`Error::Usage`] if `HF_ENDPOINT` is no http address, or nothing tells where to keep files.
    pub fn from_env() -> Result<Settings> {
        Settings::by(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// As `variable` says.
    fn by(variable: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(Error::Usage(format!(
                "HF_ENDPOINT is {endpoint}, which is no http or https address"
            )));
        }
        let home = match (variable("HF_HOME"), variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(home), _, _) => PathBuf::from(home),
            (None, Some(caches), _) => PathBuf::from(caches).join("huggingface"),
            (None, None, Some(user)) => PathBuf::from(user).join(".cache/huggingface"),
            (None, None, None) => {
                return Err(Error::Usage("set HF_HOME to the folder that fetched files are kept in".into()));
            }
        };
        let token = match variable("HF_TOKEN") {
            Some(text) => Some(Token::new(&text).ok_or_else(|| {
                Error::Usage("HF_TOKEN has characters that no token has: is it quoted, or cut?".into())
            })?),
            None => {
                let path = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
                fs::read_to_string(path).ok().and_then(|text| Token::new(&text))
            }
        };
        Ok(Settings {
            endpoint,
            token,
            cache: variable("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            home,
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        })
    }
}

/// What `huggingface_hub` takes for yes.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &'static [(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Settings::by(find)
    }

    #[test]
    fn the_usual_names_are_understood() {
        let plain = with(&[("HOME", "/u")]).expect("settings");
        assert_eq!(plain.endpoint, ENDPOINT);
        assert_eq!(plain.cache, PathBuf::from("/u/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());
        let set = with(&[
            ("HF_HOME", "/h"),
            ("HF_HUB_CACHE", "/c"),
            ("HF_HUB_OFFLINE", "true"),
            ("HF_TOKEN", " hf_a \n"),
            ("HF_ENDPOINT", "http://localhost:1/"),
        ])
        .expect("settings");
        assert_eq!((set.home, set.cache), (PathBuf::from("/h"), PathBuf::from("/c")));
        assert!(set.offline);
        assert_eq!(set.endpoint, "http://localhost:1");
        assert_eq!(set.token.as_ref().map(Token::reveal), Some("hf_a"));
        assert_eq!(format!("{:?}", set.token), "Some(Token(…))");
    }

    #[test]
    fn what_can_not_be_used_is_refused() {
        assert!(with(&[]).is_err());
        assert!(with(&[("HOME", "/u"), ("HF_ENDPOINT", "hub.example")]).is_err());
        let error = with(&[("HOME", "/u"), ("HF_TOKEN", "hf_a b")]).expect_err("a blank").to_string();
        assert!(!error.contains("hf_a"), "{error}");
    }
}

//! Requests to a Hub and to the hosts that it sends one to.
//!
//! The token goes to the Hub's own address alone: a redirect to another host, port or scheme is followed without it. Redirects are
//! followed here and not by the HTTP library, for what the Hub says of a file stands in the redirect itself (`X-Linked-ETag`,
//! `X-Linked-Size`: huggingface_hub, `file_download.py`, `get_hf_file_metadata`).

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method, Request};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::{Error, Result};
use crate::repo::RepoId;
use crate::settings::Settings;

/// How long to wait for a connection, for the answer's beginning, and for the next bytes.
const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(60);
const NEXT_BYTES: Duration = Duration::from_secs(30);
/// Attempts in a row that bring nothing before it is given up: with the waits between them, some two minutes.
pub(crate) const ATTEMPTS: u32 = 10;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A server that wants more patience than this is asked again before.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
const REDIRECTS: usize = 5;
/// The largest answer that is held in memory: a tree's page, a small file.
const MOST_TEXT: u64 = 64 << 20;

/// Talks to a Hub.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    settings: Settings,
    cancel: Arc<AtomicBool>,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// Where it came from, after redirects.
    pub url: String,
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.trim().parse().ok()
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub method: Method,
    pub url: &'a str,
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    /// A JSON body.
    pub json: Option<&'a serde_json::Value>,
    /// The body's and the answer's media type, if it is not JSON's own.
    pub media: Option<&'a str>,
    /// Whether a redirect to another host is an answer by itself.
    pub stay: bool,
}

impl<'a> Ask<'a> {
    pub fn get(url: &'a str) -> Ask<'a> {
        Ask { method: Method::GET, url, range: None, json: None, media: None, stay: false }
    }
}

/// Why an attempt brought nothing.
#[derive(Debug)]
pub(crate) struct Failed {
    pub problem: String,
    /// How long the server wants one to wait.
    pub retry_after: Option<Duration>,
}

impl Failed {
    pub fn new(problem: impl Into<String>) -> Failed {
        Failed { problem: problem.into(), retry_after: None }
    }
}

/// Attempts in a row at one thing.
#[derive(Debug, Default)]
pub(crate) struct Attempts(u32);

impl Client {
    /// For a Hub. Once `cancel` is set, whatever waits gives up.
    pub fn new(settings: Settings, cancel: Arc<AtomicBool>) -> Client {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("halfbyte/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(NEXT_BYTES))
            .input_buffer_size(256 << 10)
            .max_idle_connections_per_host(16)
            .build();
        Client { agent: config.into(), settings, cancel }
    }

    /// Which Hub, and as whom.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The Hub's address with `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.settings.endpoint)
    }

    /// Whether the user wants to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// One attempt. Redirects are followed; any status is an answer, but for those that ask for another attempt.
    pub(crate) fn attempt(&self, ask: &Ask<'_>) -> std::result::Result<Answer, Failed> {
        let mut url = ask.url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = Request::builder().method(ask.method.clone()).uri(&url);
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header("authorization", format!("Bearer {}", token.reveal()));
            }
            if let Some((first, last)) = ask.range {
                request = request.header("range", format!("bytes={first}-{last}"));
            }
            let failed = |error: ureq::Error| Failed::new(without_query(&error.to_string(), &url));
            let wrong = |error: ureq::http::Error| Failed::new(error.to_string());
            let answer = match ask.json {
                Some(json) => {
                    let mut request = request.header("content-type", ask.media.unwrap_or("application/json"));
                    if let Some(media) = ask.media {
                        request = request.header("accept", media);
                    }
                    self.agent.run(request.body(json.to_string()).map_err(wrong)?)
                }
                None => self.agent.run(request.body(()).map_err(wrong)?),
            };
            let (parts, body) = answer.map_err(failed)?.into_parts();
            let answer =
                Answer { status: parts.status.as_u16(), headers: parts.headers, body, url: url.clone() };
            match answer.status {
                301 | 302 | 303 | 307 | 308 => {
                    let location = answer.header("location").unwrap_or_default();
                    let Some(next) = joined(&url, location) else {
                        return Err(Failed::new("a redirect that leads nowhere"));
                    };
                    if ask.stay && origin(&next) != origin(&url) {
                        return Ok(answer);
                    }
                    if url.starts_with("https:") && !next.starts_with("https:") {
                        return Err(Failed::new("a redirect from https to http, which is not followed"));
                    }
                    url = next;
                }
                408 | 429 | 500..=599 => {
                    let retry_after = answer.number("retry-after").map(Duration::from_secs);
                    let status = answer.status;
                    return Err(Failed { problem: format!("the server answered {status}"), retry_after });
                }
                _ => return Ok(answer),
            }
        }
        Err(Failed::new(format!("more than {REDIRECTS} redirects")))
    }

    /// The Hub's answer, after as many attempts as it takes.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Interrupted`].
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut attempts = Attempts::default();
        loop {
            match self.attempt(ask) {
                Ok(answer) => return Ok(answer),
                Err(failed) => self.wait(&mut attempts, &place(ask.url), failed)?,
            }
        }
    }

    /// A JSON answer of the Hub's about a repository, and where the next page of it is.
    ///
    /// # Errors
    /// What the Hub says of the repository and the revision; [`Error::Answer`] if it is not what was asked for.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        ask: &Ask<'_>,
        about: &About<'_>,
    ) -> Result<(T, Option<String>)> {
        let mut attempts = Attempts::default();
        let (text, next) = loop {
            let mut answer = self.ok(self.ask(ask)?, about)?;
            let next = answer.header("link").and_then(next_page);
            match self.text(&mut answer)? {
                Ok(text) => break (text, next),
                Err(failed) => self.wait(&mut attempts, &place(ask.url), failed)?,
            }
        };
        let problem = |error: serde_json::Error| Error::Answer {
            place: place(ask.url),
            problem: format!("the answer is not what the Hub's API gives: {error}"),
        };
        Ok((serde_json::from_slice(&text).map_err(problem)?, next))
    }

    /// A body that is small enough to be held, or why it did not come.
    fn text(&self, answer: &mut Answer) -> Result<std::result::Result<Vec<u8>, Failed>> {
        let mut text = Vec::new();
        let mut reader = answer.body.as_reader().take(MOST_TEXT + 1);
        if let Err(error) = reader.read_to_end(&mut text) {
            return Ok(Err(Failed::new(error.to_string())));
        }
        if text.len() as u64 > MOST_TEXT {
            let problem = format!("an answer of more than {MOST_TEXT} bytes");
            return Err(Error::Answer { place: place(&answer.url), problem });
        }
        Ok(Ok(text))
    }

    /// Passes an answer on if it says that all is well, or says what is not.
    ///
    /// # Errors
    /// [`Error::NoRepo`], [`Error::Gated`], [`Error::NoRevision`], [`Error::NoFile`], [`Error::Token`], [`Error::Status`].
    pub(crate) fn ok(&self, mut answer: Answer, about: &About<'_>) -> Result<Answer> {
        if matches!(answer.status, 200..=399) {
            return Ok(answer);
        }
        let code = answer.header("x-error-code").unwrap_or_default().to_owned();
        let message = self.message(&mut answer);
        let (repo, endpoint) = (about.repo.to_string(), self.settings.endpoint.clone());
        let has_token = self.settings.token.is_some();
        Err(match (code.as_str(), answer.status) {
            ("GatedRepo", _) => Error::Gated { repo, endpoint, has_token },
            ("RevisionNotFound", _) => {
                Error::NoRevision { repo, revision: about.revision.unwrap_or("main").to_owned() }
            }
            ("EntryNotFound", _) => Error::NoFile { repo, file: about.file.unwrap_or_default().to_owned() },
            ("RepoNotFound", _) => Error::NoRepo { repo, endpoint, has_token },
            (_, 401 | 403) if has_token => Error::Token { endpoint, what: about.what(), message },
            // The Hub does not tell a stranger whether a private repository exists.
            (_, 401 | 404) => Error::NoRepo { repo, endpoint, has_token },
            (_, status) => Error::Status { place: place(&answer.url), status, message },
        })
    }

    /// What the server says of an error, in one line without secrets.
    fn message(&self, answer: &mut Answer) -> String {
        let header = answer.header("x-error-message").map(str::to_owned);
        let text = header.unwrap_or_else(|| {
            let mut start = Vec::new();
            // What can't be read says nothing.
            let _ = answer.body.as_reader().take(4096).read_to_end(&mut start);
            let json: Option<serde_json::Value> = serde_json::from_slice(&start).ok();
            json.and_then(|json| Some(json.get("error")?.as_str()?.to_owned())).unwrap_or_default()
        });
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        match &self.settings.token {
            Some(token) => line.replace(token.reveal(), "…"),
            None => line,
        }
    }

    /// Waits before the next attempt, longer each time.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if there were enough; [`Error::Interrupted`].
    pub(crate) fn wait(&self, attempts: &mut Attempts, place: &str, failed: Failed) -> Result<()> {
        attempts.0 += 1;
        if attempts.0 >= ATTEMPTS {
            let (place, problem) = (place.to_owned(), failed.problem);
            return Err(Error::Unreachable { place, problem, attempts: attempts.0 });
        }
        let longer = FIRST_WAIT.saturating_mul(1 << (attempts.0 - 1)).min(LONGEST_WAIT);
        // Not all at the same moment: up to a quarter less.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let wait = longer - longer / 4 * (clock % 1024) / 1024;
        let wait = failed.retry_after.map_or(wait, |asked| asked.min(LONGEST_RETRY_AFTER).max(wait));
        self.sleep(wait)
    }

    /// Waits, but not longer than the user does.
    fn sleep(&self, mut left: Duration) -> Result<()> {
        const STEP: Duration = Duration::from_millis(50);
        loop {
            if self.is_cancelled() {
                return Err(Error::Interrupted);
            }
            if left.is_zero() {
                return Ok(());
            }
            let step = left.min(STEP);
            thread::sleep(step);
            left -= step;
        }
    }

    /// Whether an address is the Hub's own.
    fn is_hub(&self, url: &str) -> bool {
        origin(url) == origin(&self.settings.endpoint)
    }
}

/// What a request is about, for what is said when it fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub repo: &'a RepoId,
    pub revision: Option<&'a str>,
    pub file: Option<&'a str>,
}

impl About<'_> {
    fn what(&self) -> String {
        match self.file {
            Some(file) => format!("{file} of {}", self.repo),
            None => self.repo.to_string(),
        }
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    let end = url[from..].find(['/', '?', '#']).map_or(url.len(), |at| from + at);
    &url[..end]
}

/// An address as it may be shown: without the query, in which signatures stand.
pub(crate) fn place(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// A message of the HTTP library's without the query of the address that it may quote.
fn without_query(message: &str, url: &str) -> String {
    match url.split_once('?') {
        Some((_, query)) if !query.is_empty() => message.replace(query, "…"),
        _ => message.to_owned(),
    }
}

/// Where a redirect leads.
fn joined(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{}:{location}", url.split(':').next()?));
    }
    location.starts_with('/').then(|| format!("{}{location}", origin(url)))
}

/// The address of the next page in a `Link` header (RFC 8288).
fn next_page(header: &str) -> Option<String> {
    let link = header.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(link.split_once('<')?.1.split_once('>')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        assert_eq!(origin("https://a.b:8/c?d=/e"), "https://a.b:8");
        assert_eq!(origin("http://a.b?x"), "http://a.b");
        // Neither another port nor a host that begins alike nor a name before an @ is the Hub.
        for other in ["http://h:2/", "http://h.evil/", "http://h@evil/", "https://h/", "http://h:1@evil/"] {
            assert_ne!(origin(other), origin("http://h:1"), "{other}");
        }
        assert_eq!(place("http://a/b?X-Signature=1"), "http://a/b");
        assert_eq!(joined("http://a/b/c", "/d").as_deref(), Some("http://a/d"));
        assert_eq!(joined("http://a/b", "//c/d").as_deref(), Some("http://c/d"));
        assert_eq!(joined("http://a/b", "ftp://c"), None);
    }

    #[test]
    fn the_next_page_is_found() {
        let header = "<http://a/1>; rel=\"prev\", <http://a/2?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(header).as_deref(), Some("http://a/2?cursor=x"));
        assert_eq!(next_page("<http://a/1>; rel=\"prev\""), None);
    }
}

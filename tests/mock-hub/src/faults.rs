//! Faults to order: what goes wrong, where, how often.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::http::{Body, Delivery, Request, Response, decode};

/// Which of the two servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// The Hub itself.
    Hub,
    /// Where it redirects downloads of large files to.
    Cdn,
    /// Either.
    #[default]
    Any,
}

/// Something that shall go wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// What the request's path contains, as it is sent or decoded. The empty string is in every path.
    #[serde(default)]
    pub path: String,
    /// Only requests of this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Which server.
    #[serde(default)]
    pub host: Host,
    /// How many requests it hits; [`u64::MAX`] for all.
    #[serde(default = "once")]
    pub times: u64,
    /// How many it lets pass before.
    #[serde(default)]
    pub skip: u64,
    /// What goes wrong.
    pub kind: Kind,
}

fn once() -> u64 {
    1
}

impl Fault {
    /// A fault that hits the next request to either server whose path contains this.
    pub fn new(path: &str, kind: Kind) -> Fault {
        Fault { path: path.to_owned(), method: None, host: Host::Any, times: 1, skip: 0, kind }
    }

    /// At one server only.
    pub fn at(mut self, host: Host) -> Fault {
        self.host = host;
        self
    }

    /// For requests of one method only.
    pub fn method(mut self, method: &str) -> Fault {
        self.method = Some(method.to_owned());
        self
    }

    /// So many times.
    pub fn times(mut self, times: u64) -> Fault {
        self.times = times;
        self
    }

    /// Every time.
    pub fn always(self) -> Fault {
        self.times(u64::MAX)
    }

    /// After so many requests that go well.
    pub fn skip(mut self, skip: u64) -> Fault {
        self.skip = skip;
        self
    }
}

/// What goes wrong. Those marked *late* act on an answer that would have gone well and has a body, and are used up by
/// nothing else: a redirection or a `HEAD` passes them by (but not [`Kind::Forbidden403`] and [`Kind::LoseAnswer`]). What a
/// `POST` does has been done by then. The others come before the request is looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Late: the full `Content-Length` is promised, and the connection closed after so many bytes of the body.
    CutAfter(u64),
    /// Late: a consistent answer that is too short, `Content-Length` and the end of `Content-Range` included.
    ShortBody(u64),
    /// Late: one bit in the middle of the body is another.
    WrongBytes,
    /// Late: 403 with a page of HTML, as long as what was asked for.
    Forbidden403,
    /// Late: all headers as they should be but for the type, and a page of HTML as the body.
    Html200,
    /// 429, with `Retry-After` if it is told.
    TooManyRequests {
        /// Seconds.
        retry_after: Option<u64>,
    },
    /// 503.
    ServerError,
    /// The connection is reset without an answer, and nothing was done.
    Reset,
    /// Late: what was asked for is done, then the connection is reset without an answer.
    LoseAnswer,
    /// Late: a slow body.
    Trickle {
        /// How slow.
        bytes_per_second: u64,
    },
    /// Late: half the body, then nothing until the client goes away.
    Stall,
    /// Late, for ranges: 200 and the whole file.
    IgnoreRange,
    /// Late, for ranges: `Content-Range` speaks of another offset.
    WrongRange,
    /// `main` gets a new commit, with this file changed, before the request is answered as usual.
    ChangeRevision {
        /// Which repository.
        repo: String,
        /// Which file.
        path: String,
        /// What is in it from now on; in JSON as base64.
        #[serde(with = "base64_bytes")]
        bytes: Vec<u8>,
    },
    /// 302 to somewhere else.
    RedirectTo(String),
}

impl Kind {
    fn is_late(&self) -> bool {
        use Kind::*;
        match self {
            CutAfter(_) | ShortBody(_) | WrongBytes | Forbidden403 | Html200 | Trickle { .. } | Stall => true,
            IgnoreRange | WrongRange | LoseAnswer => true,
            TooManyRequests { .. } | ServerError | Reset | ChangeRevision { .. } | RedirectTo(_) => false,
        }
    }

    fn takes(&self, request: &Request, response: &Response) -> bool {
        let body = !request.is_head() && response.body.len > 0;
        match self {
            Kind::Forbidden403 | Kind::LoseAnswer => response.status < 400,
            Kind::IgnoreRange | Kind::WrongRange => response.status == 206,
            _ => body && response.status < 300,
        }
    }
}

/// The fault that hits a request before it is looked at.
pub(crate) fn early(faults: &mut [Fault], request: &Request, host: Host) -> Option<Kind> {
    draw(faults, request, host, |kind| !kind.is_late())
}

/// The fault that hits an answer.
pub(crate) fn late(faults: &mut [Fault], request: &Request, host: Host, response: &Response) -> Option<Kind> {
    draw(faults, request, host, |kind| kind.is_late() && kind.takes(request, response))
}

fn draw(faults: &mut [Fault], request: &Request, host: Host, takes: impl Fn(&Kind) -> bool) -> Option<Kind> {
    for fault in faults {
        let here = fault.host == Host::Any || fault.host == host;
        let path = request.path.contains(&fault.path) || decode(&request.path).contains(&fault.path);
        let method = fault.method.as_ref().is_none_or(|method| method.eq_ignore_ascii_case(&request.method));
        if !here || !path || !method || fault.times == 0 || !takes(&fault.kind) {
            continue;
        }
        if fault.skip > 0 {
            fault.skip -= 1;
            continue;
        }
        if fault.times != u64::MAX {
            fault.times -= 1;
        }
        return Some(fault.kind.clone());
    }
    None
}

/// Makes a late fault out of an answer. [`Kind::IgnoreRange`] is not among them: it needs another answer.
pub(crate) fn spoil(kind: &Kind, response: &mut Response) -> Delivery {
    match *kind {
        Kind::CutAfter(bytes) => return Delivery::Cut(bytes),
        Kind::WrongBytes => return Delivery::Flipped,
        Kind::Trickle { bytes_per_second } => return Delivery::Trickle(bytes_per_second),
        Kind::Stall => return Delivery::Stalled,
        Kind::ShortBody(bytes) => {
            response.body.len = response.body.len.min(bytes);
            if let Some((start, _, total)) = response.header("content-range").and_then(content_range) {
                let end = (start + response.body.len).saturating_sub(1);
                response.set("Content-Range", format!("bytes {start}-{end}/{total}"));
            }
        }
        Kind::WrongRange => {
            if let Some((start, end, total)) = response.header("content-range").and_then(content_range) {
                let (start, end) =
                    if start > 0 && end + 1 >= total { (start - 1, end - 1) } else { (start + 1, end + 1) };
                response.set("Content-Range", format!("bytes {start}-{end}/{total}"));
            }
        }
        Kind::Html200 => {
            response.body = Body::all(Arc::new(Page(response.body.len)));
            response.set("Content-Type", "text/html; charset=utf-8");
        }
        Kind::Forbidden403 => {
            let page = Page(response.body.len.max(64));
            *response = Response::text(403, "text/html; charset=utf-8", []);
            response.body = Body::all(Arc::new(page));
        }
        _ => {}
    }
    Delivery::Whole
}

fn content_range(value: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    Some((start.parse().ok()?, end.parse().ok()?, total.parse().ok()?))
}

/// A page of HTML of any length.
struct Page(u64);

impl Content for Page {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        const TEXT: &[u8] = b"<!DOCTYPE html><html><body><h1>Not what was asked for</h1></body></html>\n";
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = TEXT[((offset + at as u64) % TEXT.len() as u64) as usize];
        }
        Ok(())
    }

    fn sha256(&self) -> String {
        String::new()
    }
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

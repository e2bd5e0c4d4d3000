//! HTTP/1.1 by hand: requests as they come, answers so that they can also be wrong.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::content::{Content, Memory};

/// The largest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// How much of a body is read and sent at a time.
const SLICE: usize = 1 << 20;

/// A request, its body included.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// As sent: still percent-encoded, without the query.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there and says yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|value| matches!(value, "1" | "true" | "True"))
    }

    /// The path's segments, each decoded by itself: an encoded slash does not separate.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.path.trim_start_matches('/').split('/').map(decode).collect()
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    fn wants_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// An answer, before it is sent.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

/// A part of a content.
pub(crate) struct Body {
    pub(crate) content: Arc<dyn Content>,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Body {
    pub(crate) fn all(content: Arc<dyn Content>) -> Body {
        let len = content.len();
        Body { content, start: 0, len }
    }

    pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> Body {
        Body::all(Arc::new(Memory::new(bytes)))
    }
}

impl Response {
    pub(crate) fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Body::bytes([]) }
    }

    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Response {
        Response::text(status, "application/json; charset=utf-8", value.to_string())
    }

    pub(crate) fn text(status: u16, kind: &str, text: impl Into<Vec<u8>>) -> Response {
        let body = Body::bytes(text);
        Response { status, headers: vec![("Content-Type".to_owned(), kind.to_owned())], body }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Response {
        self.set(name, value);
        self
    }

    /// Sets a header, in the place of one of the same name.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// How a body goes out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Delivery {
    /// As it should.
    Whole,
    /// So many bytes, then the connection is closed.
    Cut(u64),
    /// The byte in the middle with another value.
    Flipped,
    /// So many bytes in a second.
    Trickle(u64),
    /// Half, then nothing until the other side goes away.
    Stalled,
}

/// One side's bytes as they come.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    /// Bytes of the last answer's body that went out.
    pub(crate) sent: u64,
    pending: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Connection {
        Connection { stream, sent: 0, pending: Vec::new() }
    }

    /// The next request, or none if the other side is done.
    pub(crate) fn request(&mut self) -> io::Result<Option<Request>> {
        let (head, used) = loop {
            if let Some(found) = parse(&self.pending)? {
                break found;
            }
            if self.pending.len() > MAX_HEAD {
                return Err(io::Error::other("a head too long"));
            }
            if !self.fill()? {
                return Ok(None);
            }
        };
        self.pending.drain(..used);
        let mut request = head;
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let chunked =
            request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = request.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        request.body = if chunked { self.chunks()? } else { self.take(length)? };
        Ok(Some(request))
    }

    fn fill(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        let read = self.stream.read(&mut buffer)?;
        self.pending.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.pending.len() < length {
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let rest = self.pending.split_off(length);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2)?;
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size)?);
            self.line()?;
        }
    }

    /// Sends an answer: whether the connection can go on. `last` is told how long the body will have been before the
    /// last of it goes out.
    pub(crate) fn answer(
        &mut self,
        request: &Request,
        response: &Response,
        delivery: Delivery,
        last: &mut dyn FnMut(u64),
    ) -> io::Result<bool> {
        self.sent = 0;
        let close = request.wants_close();
        let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n", response.body.len));
        head.push_str(if close { "Connection: close\r\n\r\n" } else { "Connection: keep-alive\r\n\r\n" });
        if request.is_head() || response.body.len == 0 || delivery == Delivery::Cut(0) {
            last(0);
        }
        self.stream.write_all(head.as_bytes())?;
        if request.is_head() {
            return Ok(!close);
        }
        self.body(&response.body, delivery, last)?;
        if delivery == Delivery::Stalled {
            while self.fill()? {}
        }
        Ok(!close && self.sent == response.body.len)
    }

    fn body(&mut self, body: &Body, delivery: Delivery, last: &mut dyn FnMut(u64)) -> io::Result<()> {
        let (end, slice) = match delivery {
            Delivery::Whole | Delivery::Flipped => (body.len, SLICE),
            Delivery::Cut(bytes) => (body.len.min(bytes), SLICE),
            Delivery::Trickle(rate) => (body.len, ((rate / 10) as usize).clamp(1, SLICE)),
            Delivery::Stalled => (body.len / 2, SLICE),
        };
        let mut buffer = vec![0; slice.min(end as usize)];
        while self.sent < end {
            let sent = self.sent;
            let step = (end - sent).min(slice as u64) as usize;
            body.content.read_at(body.start + sent, &mut buffer[..step])?;
            if delivery == Delivery::Flipped
                && let Some(at) = (body.len / 2).checked_sub(sent)
                && at < step as u64
            {
                buffer[at as usize] ^= 0x10;
            }
            if let Delivery::Trickle(rate) = delivery {
                thread::sleep(Duration::from_secs_f64(step as f64 / rate.max(1) as f64));
            }
            if sent + step as u64 == end {
                last(end);
            }
            self.stream.write_all(&buffer[..step])?;
            self.sent += step as u64;
        }
        Ok(())
    }
}

/// A whole head at the front of the bytes, and how long it is.
fn parse(bytes: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 96];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Complete(used) => used,
        httparse::Status::Partial => return Ok(None),
    };
    let target = parsed.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = parsed
        .headers
        .iter()
        .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let request = Request {
        method: parsed.method.unwrap_or("GET").to_owned(),
        path: path.to_owned(),
        query: query.split('&').filter(|pair| !pair.is_empty()).map(param).collect(),
        headers,
        body: Vec::new(),
    };
    Ok(Some((request, used)))
}

fn param(pair: &str) -> (String, String) {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    (decode(key), decode(&value.replace('+', " ")))
}

/// Undoes percent-encoding. What is not UTF-8 is replaced.
pub(crate) fn decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|&byte| char::from(byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Percent-encodes all but unreserved characters, and slashes if they are to stay.
pub(crate) fn encode(text: &str, keep_slashes: bool) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

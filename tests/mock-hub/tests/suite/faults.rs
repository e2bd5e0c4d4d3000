//! Everything that can be ordered to go wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::{Answer, get, get_range, send};
use halfbyte_mock_hub::{Fault, Host, Kind, MockHub, Options, RepoSpec};
use serde_json::json;

fn bytes() -> Vec<u8> {
    (0..=255u8).cycle().take(4000).collect()
}

/// A mock with one large file, and the address of it at the CDN.
fn hub() -> (MockHub, String) {
    let hub = MockHub::start(Options::default()).expect("a mock");
    hub.add_repo(RepoSpec::new("o/m").file("model.gguf", bytes()).file("config.json", "{}"));
    let answer = get(&format!("{}/o/m/resolve/main/model.gguf", hub.endpoint()));
    let location = answer.header("Location").expect("a location").to_owned();
    (hub, location)
}

/// The answer for a range under a fault; after it, all is well again.
fn spoiled(kind: Kind, range: &str) -> Answer {
    let (hub, url) = hub();
    hub.fault(Fault::new("model.gguf", kind).at(Host::Cdn));
    let answer = get_range(&url, range);
    assert_eq!(get(&url).bytes(), bytes());
    answer
}

#[test]
fn cut() {
    let answer = spoiled(Kind::CutAfter(100), "bytes=0-999");
    assert_eq!((answer.status, answer.header("Content-Length")), (206, Some("1000")));
    assert!(answer.body.is_err());
}

#[test]
fn short() {
    let answer = spoiled(Kind::ShortBody(100), "bytes=50-999");
    assert_eq!(answer.header("Content-Range"), Some("bytes 50-149/4000"));
    assert_eq!(answer.bytes(), &bytes()[50..150]);
}

#[test]
fn wrong_bytes() {
    let answer = spoiled(Kind::WrongBytes, "bytes=0-999");
    let differ: Vec<_> = (0..1000).filter(|&at| answer.bytes()[at] != bytes()[at]).collect();
    assert_eq!((answer.status, answer.bytes().len(), differ), (206, 1000, vec![500]));
}

#[test]
fn pages_of_html() {
    let answer = spoiled(Kind::Forbidden403, "bytes=0-999");
    assert_eq!((answer.status, answer.bytes().len()), (403, 1000));
    assert!(answer.bytes().starts_with(b"<!DOCTYPE html>"));
    let answer = spoiled(Kind::Html200, "bytes=0-999");
    assert_eq!((answer.status, answer.header("Content-Range")), (206, Some("bytes 0-999/4000")));
    assert!(answer.bytes().len() == 1000 && answer.bytes().starts_with(b"<!DOCTYPE html>"));
}

#[test]
fn refusals() {
    let answer = spoiled(Kind::TooManyRequests { retry_after: Some(7) }, "bytes=0-9");
    assert_eq!((answer.status, answer.header("Retry-After")), (429, Some("7")));
    assert_eq!(spoiled(Kind::TooManyRequests { retry_after: None }, "bytes=0-9").header("Retry-After"), None);
    assert_eq!(spoiled(Kind::ServerError, "bytes=0-9").status, 503);
    let answer = spoiled(Kind::RedirectTo("http://example.com/x".to_owned()), "bytes=0-9");
    assert_eq!((answer.status, answer.header("Location")), (302, Some("http://example.com/x")));
}

#[test]
fn reset() {
    let (hub, url) = hub();
    hub.fault(Fault::new("model.gguf", Kind::Reset).at(Host::Cdn));
    let port = url.trim_start_matches("http://localhost:").split('/').next().expect("a port");
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("a connection");
    let path = &url[url.find("/xet").expect("a path")..];
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    let problem = stream.read(&mut [0; 16]).expect_err("a reset");
    assert_eq!(problem.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(hub.stats().log.last().map(|logged| logged.status), Some(0));
}

#[test]
fn slow() {
    let (hub, url) = hub();
    hub.fault(Fault::new("", Kind::Trickle { bytes_per_second: 20_000 }).at(Host::Cdn));
    let start = Instant::now();
    assert_eq!(get(&url).bytes(), bytes());
    assert!(start.elapsed() > Duration::from_millis(150));
}

#[test]
fn stalled() {
    let (hub, url) = hub();
    hub.fault(Fault::new("", Kind::Stall).at(Host::Cdn));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_recv_body(Some(Duration::from_millis(300))).build().into();
    let mut answer = agent.get(&url).call().expect("a head");
    let mut read = Vec::new();
    assert!(answer.body_mut().as_reader().read_to_end(&mut read).is_err());
    assert_eq!(read, &bytes()[..2000]);
}

#[test]
fn ranges() {
    let answer = spoiled(Kind::IgnoreRange, "bytes=100-199");
    assert_eq!((answer.status, answer.bytes()), (200, &bytes()[..]));
    assert_eq!(answer.header("Content-Range"), None);
    let answer = spoiled(Kind::WrongRange, "bytes=100-199");
    assert_eq!((answer.status, answer.header("Content-Range")), (206, Some("bytes 101-200/4000")));
    assert_eq!(answer.bytes().len(), 100);
}

#[test]
fn another_revision() {
    let (hub, _) = hub();
    let before = hub.head("o/m", "main").expect("a head");
    let kind = Kind::ChangeRevision {
        repo: "o/m".to_owned(),
        path: "config.json".to_owned(),
        bytes: b"new".to_vec(),
    };
    hub.fault(Fault::new("config.json", kind).skip(1));
    let url = format!("{}/o/m/resolve/main/config.json", hub.endpoint());
    assert_eq!(get(&url).bytes(), b"{}");
    assert_eq!(get(&url).bytes(), b"new");
    assert_ne!(hub.head("o/m", "main"), Some(before));
}

#[test]
fn where_and_how_often() {
    let (hub, url) = hub();
    // What spoils a body is not used up by a redirection or a HEAD.
    hub.fault(Fault::new("model.gguf", Kind::Html200).times(2).skip(1));
    let resolve = format!("{}/o/m/resolve/main/model.gguf", hub.endpoint());
    assert_eq!(get(&resolve).status, 302);
    send("HEAD", &url, &[], b"").expect("an answer");
    let html = |answer: Answer| answer.bytes().starts_with(b"<");
    assert_eq!([0; 4].map(|_| html(get(&url))), [false, true, true, false]);

    hub.fault(Fault::new("", Kind::ServerError).method("POST").always());
    assert_eq!(get(&url).status, 200);
    assert_eq!(send("POST", &resolve, &[], b"").expect("an answer").status, 503);
    hub.clear_faults();
    assert_eq!(send("POST", &resolve, &[], b"").expect("an answer").status, 404);
}

#[test]
fn faults_can_be_ordered_from_outside() {
    let (hub, url) = hub();
    let control = format!("{}/_mock/faults", hub.endpoint());
    let ordered = json!([
        { "path": "model", "host": "cdn", "times": 1, "skip": 0, "kind": { "short_body": 5 } },
        { "path": "model", "host": "cdn", "kind": { "too_many_requests": { "retry_after": 1 } } },
        { "path": "model", "host": "hub", "kind": "reset" },
        { "host": "any", "times": 0, "kind": { "change_revision": { "repo": "o/m", "path": "x", "bytes": "AAA=" } } },
    ]);
    let answer = send("POST", &control, &[], ordered.to_string().as_bytes()).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(get(&url).status, 429, "what comes before the answer comes first");
    assert_eq!(get(&url).bytes(), &bytes()[..5]);
    assert!(send("GET", &format!("{}/o/m/resolve/main/model.gguf", hub.endpoint()), &[], b"").is_err());
    assert_eq!(get(&control).json().as_array().map(Vec::len), Some(4));
    assert_eq!(send("DELETE", &control, &[], b"").expect("an answer").status, 200);
    assert_eq!(get(&control).json(), json!([]));
    assert_eq!(send("POST", &control, &[], b"{\"kind\":\"gremlins\"}").expect("an answer").status, 400);
}

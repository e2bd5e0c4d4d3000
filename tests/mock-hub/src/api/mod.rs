//! What the Hub answers.

mod access;
pub(crate) mod control;
mod discussions;
mod download;
mod listing;
mod upload;

use serde_json::json;

use crate::State;
use crate::faults::Host;
use crate::http::{Request, Response};

use access::Visitor;

/// An answer that is an error is an answer all the same.
type Answer = Result<Response, Response>;

/// An error as the Hub has it: a JSON object, and its text in a header.
pub(crate) fn error(status: u16, text: &str) -> Response {
    // A header can't hold what a hostile name can.
    let plain: String = text.chars().filter(|letter| (' '..='~').contains(letter)).collect();
    Response::json(status, &json!({ "error": text })).with("X-Error-Message", plain)
}

/// An error with a code.
fn coded(status: u16, code: &str, text: &str) -> Response {
    error(status, text).with("X-Error-Code", code)
}

/// The answer to a request.
pub(crate) fn answer(state: &State, request: &Request, host: Host) -> Response {
    let answer = match host {
        Host::Cdn => download::from_cdn(state, request),
        _ => from_hub(state, request),
    };
    answer.unwrap_or_else(|error| error)
}

fn from_hub(state: &State, request: &Request) -> Answer {
    let visitor = Visitor::of(state, request)?;
    let segments = request.segments();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["api", "whoami-v2"]) => access::whoami(&visitor),
        ("POST", ["api", "repos", "create"]) => upload::create(state, &visitor, request),
        ("DELETE", ["api", "repos", "delete"]) => upload::delete(state, &visitor, request),
        (method, ["api", "models", owner, name, rest @ ..]) => {
            let repo = format!("{owner}/{name}");
            access::see(state, &visitor, &repo)?;
            model(state, &visitor, request, method, &repo, rest)
        }
        ("POST", [owner, name, "info", "lfs", "objects", "batch"]) if name.ends_with(".git") => {
            let repo = format!("{owner}/{}", name.trim_end_matches(".git"));
            access::see(state, &visitor, &repo)?;
            upload::batch(state, &visitor, request, &repo)
        }
        ("GET" | "HEAD", [owner, name, "resolve", rest @ ..]) => {
            let repo = format!("{owner}/{name}");
            access::see(state, &visitor, &repo)?;
            let (revision, path) = split_revision(rest);
            download::resolve(state, &visitor, request, &repo, &revision, &path)
        }
        _ => Err(error(404, "Sorry, we can't find the page you are looking for.")),
    }
}

fn model(
    state: &State,
    visitor: &Visitor,
    request: &Request,
    method: &str,
    repo: &str,
    rest: &[&str],
) -> Answer {
    match (method, rest) {
        ("GET", []) => listing::info(state, repo, "main"),
        ("GET", ["revision", rest @ ..]) => listing::info(state, repo, &rest.join("/")),
        ("GET", ["refs"]) => listing::refs(state, request, repo),
        ("GET", ["commits", rest @ ..]) => listing::commits(state, repo, &rest.join("/")),
        ("GET", ["tree", rest @ ..]) => {
            let (revision, path) = split_revision(rest);
            listing::tree(state, request, repo, &revision, &path)
        }
        ("POST", ["paths-info", rest @ ..]) => listing::paths_info(state, request, repo, &rest.join("/")),
        ("POST", ["preupload", rest @ ..]) => {
            upload::preupload(state, visitor, request, repo, &rest.join("/"))
        }
        ("POST", ["commit", rest @ ..]) => upload::commit(state, visitor, request, repo, &rest.join("/")),
        ("GET", ["xet-write-token", rest @ ..]) => {
            upload::xet_token(state, visitor, request, repo, &rest.join("/"), true)
        }
        ("GET", ["xet-read-token", rest @ ..]) => {
            upload::xet_token(state, visitor, request, repo, &rest.join("/"), false)
        }
        ("GET", ["discussions"]) => discussions::list(state, repo),
        ("GET", ["discussions", num]) => discussions::one(state, repo, num),
        ("POST", ["discussions", num, "merge"]) => discussions::merge(state, visitor, request, repo, num),
        ("POST", ["discussions", num, "status"]) => discussions::status(state, visitor, request, repo, num),
        _ => Err(error(404, "Sorry, we can't find the page you are looking for.")),
    }
}

/// Where a revision ends and a path begins: after the first segment, or after three if they are `refs/…/…`.
fn split_revision(segments: &[&str]) -> (String, String) {
    let split = match segments {
        ["refs", _, _, ..] => 3,
        _ => segments.len().min(1),
    };
    (segments[..split].join("/"), segments[split..].join("/"))
}

fn no_revision(revision: &str) -> Response {
    coded(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))
}

fn no_entry(path: &str, revision: &str) -> Response {
    coded(404, "EntryNotFound", &format!("{path} does not exist on \"{revision}\""))
}

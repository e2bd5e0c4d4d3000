//! Files' bytes: from the Hub, or from the CDN that it redirects to.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::{Answer, access, access::Visitor, error, listing, no_entry};
use crate::State;
use crate::content::hex;
use crate::http::{Body, Request, Response, encode};
use crate::repo::Entry;

pub(super) fn resolve(
    state: &State,
    visitor: &Visitor,
    request: &Request,
    repo: &str,
    revision: &str,
    path: &str,
) -> Answer {
    access::enter(state, visitor, repo)?;
    let commit = listing::at(state, repo, revision)?;
    let Some(entry) = commit.tree.get(path) else {
        return Err(no_entry(path, revision).with("X-Repo-Commit", commit.id.clone()));
    };
    if !entry.lfs {
        let served = serve(request, entry, "text/plain; charset=utf-8", &entry.oid());
        return Ok(served.with("X-Repo-Commit", commit.id.clone()));
    }
    let (sha256, len) = (entry.content.sha256(), entry.content.len());
    let file = format!("/xet-bridge/{repo}/{}/{}", commit.id, encode(path, true));
    let expires = now() + state.options.signed_for.as_secs();
    let signature = sign(&file, expires);
    let location = format!("{}{file}?X-Signature={signature}&Expires={expires}", state.cdn);
    Ok(Response::text(302, "text/plain; charset=utf-8", format!("Found. Redirecting to {location}"))
        .with("Location", location)
        .with("X-Repo-Commit", commit.id.clone())
        .with("Accept-Ranges", "bytes")
        .with("X-Linked-Size", len.to_string())
        .with("X-Linked-ETag", format!("\"{sha256}\""))
        .with("ETag", format!("\"{sha256}\""))
        .with("X-Xet-Hash", entry.xet_hash()))
}

/// What the CDN answers.
pub(super) fn from_cdn(state: &State, request: &Request) -> Answer {
    let denied = || {
        let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AccessDenied</Code></Error>";
        Response::text(403, "application/xml", text)
    };
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Err(error(405, "Method Not Allowed"));
    }
    let expires = request.param("Expires").and_then(|time| time.parse().ok()).unwrap_or(0);
    let signed = request.param("X-Signature") == Some(&sign(&request.path, expires));
    if !signed || expires <= now() {
        return Err(denied());
    }
    let segments = request.segments();
    let [_, owner, name, commit, path @ ..] = segments.as_slice() else { return Err(denied()) };
    let commit = listing::at(state, &format!("{owner}/{name}"), commit).map_err(|_| denied())?;
    let entry = commit.tree.get(&path.join("/")).ok_or_else(denied)?;
    Ok(serve(request, entry, "application/octet-stream", &entry.content.sha256()))
}

/// The whole file, or the range that is asked for.
fn serve(request: &Request, entry: &Entry, kind: &str, etag: &str) -> Response {
    let len = entry.content.len();
    let mut response = Response::new(200)
        .with("Content-Type", kind)
        .with("Accept-Ranges", "bytes")
        .with("ETag", format!("\"{etag}\""));
    response.body = Body::all(entry.content.clone());
    match request.header("range").and_then(|range| parse_range(range, len)) {
        None => response,
        Some(Ok((start, end))) => {
            response.status = 206;
            response.body.start = start;
            response.body.len = end - start + 1;
            response.with("Content-Range", format!("bytes {start}-{end}/{len}"))
        }
        Some(Err(())) => error(416, "Range Not Satisfiable").with("Content-Range", format!("bytes */{len}")),
    }
}

/// First and last byte of a range, or that there is no such range; none if the header says nothing that is understood.
fn parse_range(header: &str, len: u64) -> Option<Result<(u64, u64), ()>> {
    let (start, end) = header.strip_prefix("bytes=")?.split_once('-')?;
    let last = len.checked_sub(1);
    let (start, end) = match (start, end) {
        ("", "") => return None,
        ("", suffix) => (len.saturating_sub(suffix.parse().ok()?), last),
        (start, "") => (start.parse().ok()?, last),
        (start, end) => (start.parse().ok()?, last.map(|last| last.min(end.parse().unwrap_or(0)))),
    };
    Some(end.filter(|&end| start <= end).map(|end| (start, end)).ok_or(()))
}

fn sign(path: &str, expires: u64) -> String {
    hex(&Sha256::digest(format!("mock {path} {expires}"))[..20])
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

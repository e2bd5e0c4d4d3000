//! What is in a repository.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Answer, error, no_entry, no_revision};
use crate::State;
use crate::http::{Request, Response, encode};
use crate::repo::{Commit, Entry, Repo};

/// The only date there is.
pub(super) const DATE: &str = "2025-01-01T00:00:00.000Z";

/// A revision's commit.
pub(super) fn at(state: &State, repo: &str, revision: &str) -> Result<Commit, Response> {
    let repos = state.repos();
    repos.get(repo).and_then(|repo| repo.revision(revision)).cloned().ok_or_else(|| no_revision(revision))
}

pub(super) fn info(state: &State, repo: &str, revision: &str) -> Answer {
    let commit = at(state, repo, revision)?;
    let (private, gated) =
        state.repos().get(repo).map_or((false, false), |repo: &Repo| (repo.private, repo.gated));
    let siblings: Vec<_> = commit.tree.keys().map(|path| json!({ "rfilename": path })).collect();
    let used: u64 = commit.tree.values().map(|entry| entry.content.len()).sum();
    Ok(Response::json(
        200,
        &json!({
            "_id": "000000000000000000000000",
            "id": repo,
            "modelId": repo,
            "author": repo.split('/').next(),
            "sha": commit.id,
            "private": private,
            "gated": if gated { json!("auto") } else { json!(false) },
            "disabled": false,
            "tags": ["region:us"],
            "downloads": 0,
            "likes": 0,
            "createdAt": DATE,
            "lastModified": DATE,
            "usedStorage": used,
            "siblings": siblings,
            "spaces": [],
        }),
    )
    .with("X-Repo-Commit", commit.id))
}

pub(super) fn refs(state: &State, request: &Request, repo: &str) -> Answer {
    let repos = state.repos();
    let Some(repo) = repos.get(repo) else { return Err(no_revision("main")) };
    let (prs, branches): (Vec<_>, Vec<_>) =
        repo.branches.iter().partition(|(name, _)| name.starts_with("refs/pr/"));
    let branches: Vec<_> = branches
        .iter()
        .map(|(name, id)| json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": id }))
        .collect();
    let mut refs = json!({ "branches": branches, "converts": [], "tags": [] });
    // Only who asks for them gets them.
    if request.flag("include_prs") {
        refs["pullRequests"] =
            prs.iter().map(|(name, id)| json!({ "name": name, "ref": name, "targetCommit": id })).collect();
    }
    Ok(Response::json(200, &refs))
}

pub(super) fn commits(state: &State, repo: &str, revision: &str) -> Answer {
    let repos = state.repos();
    let history = repos.get(repo).map(|repo| repo.history(revision)).unwrap_or_default();
    if history.is_empty() {
        return Err(no_revision(revision));
    }
    let commits: Vec<_> = history
        .iter()
        .map(|commit| {
            json!({
                "id": commit.id,
                "title": commit.title,
                "message": commit.message,
                "authors": [{ "user": "mock-user" }],
                "date": DATE,
                "parents": commit.parent.as_slice(),
            })
        })
        .collect();
    Ok(Response::json(200, &json!(commits)))
}

/// A line of a listing.
enum Line {
    File(String, Arc<Entry>),
    Folder(String),
}

pub(super) fn tree(state: &State, request: &Request, repo: &str, revision: &str, path: &str) -> Answer {
    let commit = at(state, repo, revision)?;
    let lines = lines(&commit, path, request.flag("recursive"));
    if lines.is_empty() && !path.is_empty() {
        return Err(no_entry(path, revision));
    }
    let start: usize = match request.param("cursor") {
        Some(cursor) => cursor.parse().map_err(|_| error(400, "Invalid cursor"))?,
        None => 0,
    };
    let limit = request.param("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let limit = limit.clamp(1, state.options.page_size.max(1));
    let end = start.saturating_add(limit).min(lines.len());
    let expand = request.flag("expand");
    let page: Vec<_> = lines[start.min(end)..end].iter().map(|line| shown(line, expand, &commit)).collect();
    let response = Response::json(200, &json!(page)).with("X-Repo-Commit", commit.id.clone());
    if end == lines.len() {
        return Ok(response);
    }
    let kept = request.query.iter().filter(|(key, _)| key != "cursor");
    let query: String =
        kept.map(|(key, value)| format!("{}={}&", encode(key, false), encode(value, false))).collect();
    let next = format!("<{}{}?{query}cursor={end}>; rel=\"next\"", state.endpoint, request.path);
    Ok(response.with("Link", next))
}

fn lines(commit: &Commit, path: &str, recursive: bool) -> Vec<Line> {
    let path = path.trim_end_matches('/');
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for (name, entry) in commit.tree.iter() {
        if name == path {
            lines.insert(name.clone(), Line::File(name.clone(), entry.clone()));
        }
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let mut folders = rest.match_indices('/').filter(|(at, _)| *at > 0);
        if recursive {
            for (at, _) in folders {
                let folder = format!("{prefix}{}", &rest[..at]);
                lines.insert(folder.clone(), Line::Folder(folder));
            }
        } else if let Some((at, _)) = folders.next() {
            let folder = format!("{prefix}{}", &rest[..at]);
            lines.insert(folder.clone(), Line::Folder(folder));
            continue;
        }
        lines.insert(name.clone(), Line::File(name.clone(), entry.clone()));
    }
    lines.into_values().collect()
}

fn shown(line: &Line, expand: bool, commit: &Commit) -> Value {
    let mut shown = match line {
        Line::Folder(path) => {
            let oid = Entry::new(Arc::new(crate::Memory::new(path.as_bytes())), false).oid();
            json!({ "type": "directory", "oid": oid, "size": 0, "path": path })
        }
        Line::File(path, entry) => {
            let len = entry.content.len();
            let mut file = json!({ "type": "file", "oid": entry.oid(), "size": len, "path": path });
            if entry.lfs {
                let pointer = entry.pointer().len();
                file["lfs"] = json!({ "oid": entry.content.sha256(), "size": len, "pointerSize": pointer });
                file["xetHash"] = json!(entry.xet_hash());
            }
            file
        }
    };
    if expand {
        shown["lastCommit"] = json!({ "id": commit.id, "title": commit.title, "date": DATE });
        shown["securityFileStatus"] = json!({ "status": "unscanned" });
    }
    shown
}

pub(super) fn paths_info(state: &State, request: &Request, repo: &str, revision: &str) -> Answer {
    let commit = at(state, repo, revision)?;
    let body: Value =
        serde_json::from_slice(&request.body).map_err(|_| error(400, "Expected a JSON object"))?;
    let paths = body["paths"].as_array().cloned().unwrap_or_default();
    let shown: Vec<_> = paths
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|path| {
            let entry = commit.tree.get(path);
            let folder = format!("{}/", path.trim_end_matches('/'));
            match entry {
                Some(entry) => Some(Line::File(path.to_owned(), entry.clone())),
                None => commit
                    .tree
                    .keys()
                    .any(|name| name.starts_with(&folder))
                    .then(|| Line::Folder(path.to_owned())),
            }
        })
        .map(|line| shown(&line, body["expand"].as_bool().unwrap_or(false), &commit))
        .collect();
    Ok(Response::json(200, &json!(shown)))
}

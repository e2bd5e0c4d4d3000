//! What makes and changes repositories.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::access::Visitor;
use super::{Answer, access, download, error, listing};
use crate::State;
use crate::content::Memory;
use crate::http::{Request, Response};
use crate::repo::{Entry, Repo, RepoSpec, Tree, pr_branch};

/// What a new repository has in it.
const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n\
    *.gguf filter=lfs diff=lfs merge=lfs -text\n\
    *.model filter=lfs diff=lfs merge=lfs -text\n\
    *.safetensors filter=lfs diff=lfs merge=lfs -text\n";

fn body(request: &Request) -> Result<Value, Response> {
    serde_json::from_slice(&request.body).map_err(|_| error(400, "Expected a JSON object"))
}

fn owner(repo: &str) -> &str {
    repo.split('/').next().unwrap_or_default()
}

/// The repository that a body names, which may leave the owner out.
fn named(visitor: &Visitor, body: &Value) -> Result<String, Response> {
    let name = body["name"].as_str().ok_or_else(|| error(400, "\"name\" is required"))?;
    Ok(match body["organization"].as_str() {
        Some(owner) => format!("{owner}/{name}"),
        None if name.contains('/') => name.to_owned(),
        None => format!("{}/{name}", visitor.name()),
    })
}

pub(super) fn create(state: &State, visitor: &Visitor, request: &Request) -> Answer {
    let body = body(request)?;
    let id = named(visitor, &body)?;
    visitor.writer()?;
    visitor.write(owner(&id)).map_err(|_| {
        let owner = owner(&id);
        error(403, &format!("You don't have the rights to create a model under the namespace \"{owner}\""))
    })?;
    if body["type"].as_str().is_some_and(|kind| kind != "model") {
        return Err(error(400, "This mock has models only"));
    }
    let url = format!("{}/{id}", state.endpoint);
    let mut repos = state.repos();
    if repos.contains_key(&id) {
        let text = "You already created this model repo";
        return Err(Response::json(409, &json!({ "error": text, "url": url })).with("X-Error-Message", text));
    }
    let mut spec = RepoSpec::new(&id).file(".gitattributes", ATTRIBUTES);
    spec.private = body["private"].as_bool().unwrap_or(false);
    repos.insert(id.clone(), Repo::new(spec));
    if let Some((token, _)) = &visitor.token
        && let Some(spec) = state.tokens().get_mut(token)
    {
        spec.may_access.push(id.clone());
    }
    Ok(Response::json(200, &json!({ "url": url, "name": id, "id": "000000000000000000000000" })))
}

pub(super) fn delete(state: &State, visitor: &Visitor, request: &Request) -> Answer {
    let id = named(visitor, &body(request)?)?;
    access::see(state, visitor, &id)?;
    visitor.write(owner(&id))?;
    state.repos().remove(&id);
    Ok(Response::text(200, "text/plain; charset=utf-8", "OK"))
}

pub(super) fn preupload(
    state: &State,
    visitor: &Visitor,
    request: &Request,
    repo: &str,
    revision: &str,
) -> Answer {
    may_commit(visitor, request, repo)?;
    let commit = listing::at(state, repo, revision)?;
    let body = body(request)?;
    let repos = state.repos();
    let Some(repo) = repos.get(repo) else { return Err(error(404, "Repository not found")) };
    let files = body["files"].as_array().ok_or_else(|| error(400, "\"files\" is required"))?;
    let files: Vec<_> = files
        .iter()
        .map(|file| {
            let path = file["path"].as_str().unwrap_or_default();
            let lfs = (repo.lfs)(path, file["size"].as_u64().unwrap_or(0));
            let mode = if lfs { "lfs" } else { "regular" };
            let oid = commit.tree.get(path).map(|entry| entry.oid());
            json!({ "path": path, "uploadMode": mode, "shouldIgnore": false, "oid": oid })
        })
        .collect();
    Ok(Response::json(200, &json!({ "files": files, "commitOid": commit.id })))
}

pub(super) fn batch(state: &State, visitor: &Visitor, request: &Request, repo: &str) -> Answer {
    visitor.writer()?;
    let body = body(request)?;
    let offered = body["transfers"].as_array().cloned().unwrap_or_default();
    let transfer = &state.options.transfer;
    if !offered.is_empty() && !offered.iter().any(|one| one.as_str() == Some(transfer)) {
        return Err(error(422, &format!("This mock wants {transfer}")));
    }
    let objects: Vec<_> = body["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let href = format!("{}/{repo}.git/info/lfs/not-here", state.endpoint);
            json!({
                "oid": object["oid"],
                "size": object["size"],
                "authenticated": true,
                "actions": { "upload": { "href": href } },
            })
        })
        .collect();
    let kind = "application/vnd.git-lfs+json; charset=utf-8";
    let answer = json!({ "transfer": transfer, "hash_algo": "sha256", "objects": objects });
    Ok(Response::text(200, kind, answer.to_string()))
}

pub(super) fn xet_token(
    state: &State,
    visitor: &Visitor,
    request: &Request,
    repo: &str,
    revision: &str,
    write: bool,
) -> Answer {
    if write {
        may_commit(visitor, request, repo)?;
    }
    access::enter(state, visitor, repo)?;
    listing::at(state, repo, revision)?;
    let (url, exp) = (state.store.cas_url(), download::now() + 3600);
    let token = if write { "mock-xet-write" } else { "mock-xet-read" };
    Ok(Response::json(200, &json!({ "casUrl": url, "accessToken": token, "exp": exp }))
        .with("X-Xet-Cas-Url", url.clone())
        .with("X-Xet-Access-Token", token)
        .with("X-Xet-Token-Expiration", exp.to_string()))
}

/// # Errors
/// Without a token that may write here; for a pull request, or what leads up to one, any that may write will do.
fn may_commit(visitor: &Visitor, request: &Request, repo: &str) -> Result<(), Response> {
    visitor.writer()?;
    if request.flag("create_pr") { Ok(()) } else { visitor.write(owner(repo)) }
}

/// One operation of a commit.
enum Change {
    Put(String, Entry),
    Gone(String),
}

pub(super) fn commit(
    state: &State,
    visitor: &Visitor,
    request: &Request,
    repo: &str,
    revision: &str,
) -> Answer {
    may_commit(visitor, request, repo)?;
    let mut header = Value::Null;
    let mut changes = Vec::new();
    for line in request.body.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).map_err(|_| error(400, "Expected lines of JSON"))?;
        let value = &line["value"];
        match line["key"].as_str() {
            Some("header") => header = value.clone(),
            Some("file") => changes.push(file(state, repo, value)?),
            Some("lfsFile") => changes.push(lfs_file(state, repo, value)?),
            Some("deletedFile") => changes.push(Change::Gone(path(value)?)),
            Some("deletedFolder") => changes.push(Change::Gone(format!("{}/", path(value)?))),
            _ => return Err(error(400, "\"key\" is none of those known")),
        }
    }
    let title = header["summary"].as_str().filter(|title| !title.is_empty());
    let title = title.ok_or_else(|| error(400, "\"summary\" is required"))?;
    let description = header["description"].as_str().unwrap_or_default();
    let mut repos = state.repos();
    let Some(found) = repos.get_mut(repo) else { return Err(error(404, "Repository not found")) };
    let head = found.revision(revision).cloned().ok_or_else(|| super::no_revision(revision))?;
    if let Some(parent) = header["parentCommit"].as_str()
        && parent != head.id
    {
        return Err(error(412, "A commit has happened since. Please refresh and try again."));
    }
    let tree = changed((*head.tree).clone(), changes)?;
    let create_pr = request.flag("create_pr");
    let pr = create_pr.then(|| found.open(&head.id, title, description, visitor.name()));
    let branch = pr.map_or_else(|| revision.trim_start_matches("refs/heads/").to_owned(), pr_branch);
    if !found.branches.contains_key(&branch) {
        return Err(error(400, "A commit needs a branch to go to"));
    }
    let oid = found.commit(&branch, title, description, tree);
    let url = format!("{}/{repo}/commit/{oid}", state.endpoint);
    let mut answer = json!({ "success": true, "commitOid": oid, "commitUrl": url, "hookOutput": "" });
    if let Some(num) = pr {
        answer["pullRequestUrl"] = json!(format!("{}/{repo}/discussions/{num}", state.endpoint));
        if state.options.pr_fields {
            answer["prUrl"] = answer["pullRequestUrl"].clone();
            answer["prNum"] = json!(num);
        }
    }
    Ok(Response::json(200, &answer))
}

fn changed(mut tree: Tree, changes: Vec<Change>) -> Result<Tree, Response> {
    for change in changes {
        match change {
            Change::Put(path, entry) => {
                tree.insert(path, Arc::new(entry));
            }
            Change::Gone(folder) if folder.ends_with('/') => {
                tree.retain(|path, _| !path.starts_with(&folder))
            }
            Change::Gone(path) => {
                tree.remove(&path)
                    .ok_or_else(|| error(400, &format!("A file with the name \"{path}\" does not exist")))?;
            }
        }
    }
    Ok(tree)
}

/// A path that the Hub takes.
fn path(value: &Value) -> Result<String, Response> {
    let path = value["path"].as_str().unwrap_or_default();
    let fine = |part: &str| !part.is_empty() && !matches!(part, "." | ".." | ".git");
    if path.split('/').all(fine) {
        return Ok(path.to_owned());
    }
    Err(error(400, "\"path\" must be a path in the repository"))
}

fn file(state: &State, repo: &str, value: &Value) -> Result<Change, Response> {
    let content = value["content"].as_str().unwrap_or_default();
    let bytes = match value["encoding"].as_str() {
        Some("base64") => STANDARD.decode(content).map_err(|_| error(400, "\"content\" is no base64"))?,
        _ => content.as_bytes().to_vec(),
    };
    let path = path(value)?;
    let repos = state.repos();
    let large = repos.get(repo).is_some_and(|repo| (repo.lfs)(&path, bytes.len() as u64));
    if large {
        // So that a client which falls back to this for weights is found out.
        let text = format!(
            "Your push was rejected because it contains files larger than 10 MiB or binary files. Please use LFS to \
             store them. Offending files: {path}"
        );
        return Err(error(400, &text));
    }
    Ok(Change::Put(path, Entry::new(Arc::new(Memory::new(bytes)), false)))
}

fn lfs_file(state: &State, repo: &str, value: &Value) -> Result<Change, Response> {
    let path = path(value)?;
    let oid = value["oid"].as_str().unwrap_or_default();
    let known = state.repos().get(repo).and_then(|repo| {
        let trees = repo.commits.values().flat_map(|commit| commit.tree.values());
        trees.filter(|entry| entry.lfs).find(|entry| entry.content.identity() == oid).cloned()
    });
    let entry = match known {
        Some(entry) => Entry::new(entry.content.clone(), true).with_xet_hash(entry.xet_hash()),
        None => {
            let found = state.store.find(oid).map_err(|problem| error(500, &problem.to_string()))?;
            let (content, hash) = found.ok_or_else(|| {
                let text = "Your push was rejected because an LFS pointer pointed to a file that does not exist. \
                            Offending file: ";
                error(400, &format!("{text}{path}"))
            })?;
            Entry::new(content, true).with_xet_hash(hash)
        }
    };
    if value["size"].as_u64() != Some(entry.content.len()) {
        return Err(error(400, &format!("The size of {path} is another")));
    }
    Ok(Change::Put(path, entry))
}

//! Pull requests. Discussions that are none do not exist here.

use serde_json::{Value, json};

use super::access::Visitor;
use super::listing::DATE;
use super::{Answer, error};
use crate::State;
use crate::http::{Request, Response};
use crate::repo::{Discussion, Repo, pr_branch};

pub(super) fn list(state: &State, repo: &str) -> Answer {
    let repos = state.repos();
    let discussions: Vec<_> = repos
        .get(repo)
        .map(|repo| repo.discussions.iter().rev().map(|discussion| shown(repo, discussion)).collect())
        .unwrap_or_default();
    let count = discussions.len();
    Ok(Response::json(200, &json!({ "discussions": discussions, "count": count, "start": 0 })))
}

pub(super) fn one(state: &State, repo: &str, num: &str) -> Answer {
    let mut repos = state.repos();
    let (repo, num) = find(repos.get_mut(repo), num)?;
    let discussion = &repo.discussions[num as usize - 1];
    let mut value = shown(repo, discussion);
    value["changes"] = json!({ "base": "refs/heads/main" });
    value["filesWithConflicts"] = json!([]);
    value["events"] = json!([{
        "id": "000000000000000000000000",
        "type": "comment",
        "author": { "name": discussion.author },
        "createdAt": DATE,
        "data": { "latest": { "raw": discussion.description } },
    }]);
    Ok(Response::json(200, &value))
}

pub(super) fn merge(state: &State, visitor: &Visitor, request: &Request, repo: &str, num: &str) -> Answer {
    visitor.write(repo.split('/').next().unwrap_or_default())?;
    let mut repos = state.repos();
    let (repo, num) = find(repos.get_mut(repo), num)?;
    if repo.discussions[num as usize - 1].status != "open" {
        return Err(error(403, "This pull request is not open"));
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let message = body["comment"].as_str().unwrap_or_default();
    let merged = repo
        .merge(num, message)
        .map_err(|paths| error(409, &format!("Conflicts have to be resolved first: {}", paths.join(", "))))?;
    Ok(Response::json(200, &json!({ "newStatus": event(visitor, "merged"), "commitOid": merged })))
}

pub(super) fn status(state: &State, visitor: &Visitor, request: &Request, repo: &str, num: &str) -> Answer {
    visitor.writer()?;
    let mut repos = state.repos();
    let (repo, num) = find(repos.get_mut(repo), num)?;
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let status = match body["status"].as_str() {
        Some("closed") => "closed",
        Some("open") => "open",
        _ => return Err(error(400, "\"status\" must be one of [open, closed]")),
    };
    let discussion = &mut repo.discussions[num as usize - 1];
    if discussion.status == "merged" {
        return Err(error(400, "This pull request is merged"));
    }
    discussion.status = status;
    Ok(Response::json(200, &json!({ "newStatus": event(visitor, status) })))
}

fn find<'a>(repo: Option<&'a mut Repo>, num: &str) -> Result<(&'a mut Repo, u64), Response> {
    let repo = repo.ok_or_else(|| error(404, "Repository not found"))?;
    let num = num.parse().ok().filter(|num| (1..=repo.discussions.len() as u64).contains(num));
    let num = num.ok_or_else(|| error(404, "Discussion not found"))?;
    Ok((repo, num))
}

fn shown(repo: &Repo, discussion: &Discussion) -> Value {
    json!({
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": true,
        "author": { "name": discussion.author, "type": "user" },
        "repo": { "name": repo.id, "type": "model" },
        "createdAt": DATE,
        "numComments": 1,
        "pinned": false,
        "diffUrl": format!("/{}/discussions/{}/files.diff", repo.id, discussion.num),
        "ref": pr_branch(discussion.num),
    })
}

fn event(visitor: &Visitor, status: &str) -> Value {
    json!({
        "id": "000000000000000000000000",
        "type": "status-change",
        "author": { "name": visitor.name() },
        "createdAt": DATE,
        "data": { "status": status },
    })
}

//! Who asks, and what they may see and do.

use serde_json::json;

use super::{Answer, coded, error};
use crate::http::{Request, Response};
use crate::{State, TokenSpec};

/// Who asks: with a token that is known, or without one.
pub(super) struct Visitor {
    pub(super) token: Option<(String, TokenSpec)>,
}

impl Visitor {
    /// # Errors
    /// If there is a token that is not known: then nothing works, not even what is public.
    pub(super) fn of(state: &State, request: &Request) -> Result<Visitor, Response> {
        let Some(header) = request.header("authorization") else { return Ok(Visitor { token: None }) };
        let token = header.strip_prefix("Bearer ").unwrap_or_default().trim();
        match state.tokens().get(token) {
            Some(spec) => Ok(Visitor { token: Some((token.to_owned(), spec.clone())) }),
            None => Err(error(401, "Invalid credentials in Authorization header")),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.token.as_ref().map_or("anonymous", |(_, spec)| &spec.user)
    }

    fn may_access(&self, repo: &str) -> bool {
        self.token.as_ref().is_some_and(|(_, spec)| spec.may_access.iter().any(|other| other == repo))
    }

    /// A token that may write, if not everywhere.
    pub(super) fn writer(&self) -> Result<&TokenSpec, Response> {
        match &self.token {
            Some((_, spec)) if spec.can_write => Ok(spec),
            Some(_) => Err(error(403, "Forbidden: you must use a write token to upload to a repository.")),
            None => Err(error(401, "Invalid username or password.")),
        }
    }

    /// # Errors
    /// Without a token that may write for this owner.
    pub(super) fn write(&self, owner: &str) -> Result<(), Response> {
        let spec = self.writer()?;
        if spec.namespaces.is_empty() || spec.namespaces.iter().any(|namespace| namespace == owner) {
            return Ok(());
        }
        let text = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request";
        Err(error(403, text))
    }
}

/// # Errors
/// If there is no such repository, or none for them: that is the same answer.
pub(super) fn see(state: &State, visitor: &Visitor, repo: &str) -> Result<(), Response> {
    let found = state.repos().get(repo).map(|repo| repo.private);
    match (found, &visitor.token) {
        (Some(false), _) => Ok(()),
        (Some(true), _) if visitor.may_access(repo) => Ok(()),
        (_, None) => Err(coded(401, "RepoNotFound", "Invalid username or password.")),
        (_, Some(_)) => Err(coded(404, "RepoNotFound", "Repository not found")),
    }
}

/// # Errors
/// If the repository is gated and they were not let in.
pub(super) fn enter(state: &State, visitor: &Visitor, repo: &str) -> Result<(), Response> {
    let gated = state.repos().get(repo).is_some_and(|repo| repo.gated);
    if !gated || visitor.may_access(repo) {
        return Ok(());
    }
    if visitor.token.is_none() {
        let text = format!(
            "Access to model {repo} is restricted. You must have access to it and be authenticated to access it. \
             Please log in."
        );
        return Err(coded(401, "GatedRepo", &text));
    }
    let text = format!(
        "Access to model {repo} is restricted and you are not in the authorized list. Visit {}/{repo} to ask for \
         access.",
        state.endpoint
    );
    Err(coded(403, "GatedRepo", &text))
}

pub(super) fn whoami(visitor: &Visitor) -> Answer {
    let Some((_, spec)) = &visitor.token else { return Err(error(401, "Invalid username or password.")) };
    let orgs: Vec<_> = spec
        .namespaces
        .iter()
        .filter(|name| **name != spec.user)
        .map(|name| json!({ "type": "org", "name": name, "fullname": name, "isEnterprise": false }))
        .collect();
    let role = if spec.can_write { "write" } else { "read" };
    Ok(Response::json(
        200,
        &json!({
            "type": "user",
            "id": "000000000000000000000000",
            "name": spec.user,
            "fullname": spec.user,
            "email": format!("{}@example.com", spec.user),
            "emailVerified": true,
            "canPay": false,
            "isPro": false,
            "periodEnd": null,
            "avatarUrl": "",
            "orgs": orgs,
            "auth": {
                "type": "access_token",
                "accessToken": { "displayName": "mock", "role": role, "createdAt": "2025-01-01T00:00:00.000Z" },
            },
        }),
    ))
}

//! What the mock is told from outside: `/_mock/…`, for tests that run it as a process.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error;
use crate::faults::Fault;
use crate::http::{Request, Response};
use crate::{Memory, State, Stats};

/// One fault, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ordered {
    Several(Vec<Fault>),
    One(Fault),
}

pub(crate) fn answer(state: &State, request: &Request) -> Response {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/_mock/stats") => Response::json(200, &json!(*state.stats())),
        ("POST", "/_mock/reset-stats") => {
            *state.stats() = Stats::default();
            Response::json(200, &json!({}))
        }
        ("GET", "/_mock/faults") => Response::json(200, &json!(*state.faults())),
        ("POST", "/_mock/faults") => match serde_json::from_slice(&request.body) {
            Ok(Ordered::Several(faults)) => {
                state.faults().extend(faults);
                Response::json(200, &json!({}))
            }
            Ok(Ordered::One(fault)) => {
                state.faults().push(fault);
                Response::json(200, &json!({}))
            }
            Err(problem) => error(400, &problem.to_string()),
        },
        ("DELETE", "/_mock/faults") => {
            state.faults().clear();
            Response::json(200, &json!({}))
        }
        ("POST", "/_mock/replace-file") => replace(state, &request.body),
        _ => error(404, "The mock does not know that"),
    }
}

/// `{"repo": …, "path": …, "bytes": base64}`: a new commit on `main`.
fn replace(state: &State, body: &[u8]) -> Response {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    let Ok(bytes) = STANDARD.decode(text("bytes")) else { return error(400, "\"bytes\" is no base64") };
    match state.replace(text("repo"), text("path"), std::sync::Arc::new(Memory::new(bytes))) {
        Some(commit) => Response::json(200, &json!({ "commit": commit })),
        None => error(404, "There is no such repository"),
    }
}

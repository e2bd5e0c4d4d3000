//! What was asked of the mock, and what it sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::faults::Host;

/// One request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logged {
    /// Which server it came to.
    pub host: Host,
    /// `GET`, `HEAD`, `POST`.
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Of the answer; 0 if there was none.
    pub status: u16,
    /// Bytes of the answer's body that went out.
    pub bytes: u64,
}

/// What one path saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStats {
    /// Requests.
    pub requests: u64,
    /// Of them with a `Range`.
    pub ranged: u64,
    /// Bytes of bodies sent.
    pub bytes: u64,
}

/// All that happened since the start or the last reset; what goes to `/_mock` is left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Requests.
    pub requests: u64,
    /// Of them with a `Range`.
    pub ranged: u64,
    /// Bytes of bodies sent.
    pub bytes: u64,
    /// By path, as sent, without the query.
    pub paths: BTreeMap<String, PathStats>,
    /// Requests to the CDN that had an `Authorization` header: a token that went to another host.
    pub leaked: Vec<Logged>,
    /// All requests, in the order in which their answers ended.
    pub log: Vec<Logged>,
}

impl Stats {
    pub(crate) fn add(&mut self, logged: Logged, authorized: bool) {
        let ranged = u64::from(logged.range.is_some());
        let path = self.paths.entry(logged.path.clone()).or_default();
        path.requests += 1;
        path.ranged += ranged;
        path.bytes += logged.bytes;
        self.requests += 1;
        self.ranged += ranged;
        self.bytes += logged.bytes;
        if authorized && logged.host == Host::Cdn {
            self.leaked.push(logged.clone());
        }
        self.log.push(logged);
    }

    /// Requests of a method whose path contains this.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.log.iter().filter(|logged| logged.method == method && logged.path.contains(path)).count()
    }

    /// Bytes of bodies sent for paths that contain this.
    pub fn bytes_of(&self, path: &str) -> u64 {
        self.paths.iter().filter(|(key, _)| key.contains(path)).map(|(_, stats)| stats.bytes).sum()
    }
}

//! A client without manners of its own: no redirection is followed, no error is one.

use std::io::{self, Read};

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: io::Result<Vec<u8>>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn bytes(&self) -> &[u8] {
        self.body.as_ref().expect("a whole body")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(self.bytes()).expect("JSON")
    }

    pub fn code(&self) -> Option<&str> {
        self.header("X-Error-Code")
    }
}

/// Sends a request: an error if there is no answer at all.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, ureq::Error> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(body).expect("a request");
    let mut response = agent.run(request)?;
    let mut bytes = Vec::new();
    let body = response.body_mut().as_reader().read_to_end(&mut bytes).map(|_| bytes);
    Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
}

pub fn get(url: &str) -> Answer {
    send("GET", url, &[], b"").expect("an answer")
}

pub fn get_range(url: &str, range: &str) -> Answer {
    send("GET", url, &[("Range", range)], b"").expect("an answer")
}

pub fn get_as(token: &str, url: &str) -> Answer {
    send("GET", url, &[("Authorization", &format!("Bearer {token}"))], b"").expect("an answer")
}

pub fn post_as(token: &str, url: &str, body: &str) -> Answer {
    send("POST", url, &[("Authorization", &format!("Bearer {token}"))], body.as_bytes()).expect("an answer")
}

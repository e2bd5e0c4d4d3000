//! Creating repositories, commits and pull requests, by hand.

use crate::client::{get, get_as, post_as};
use halfbyte_mock_hub::{Fault, Kind, MockHub, Options, TokenSpec};
use serde_json::{Value, json};

fn hub() -> MockHub {
    let hub = MockHub::start(Options::default()).expect("a mock");
    hub.add_token("hf_w", TokenSpec::write());
    hub.add_token("hf_r", TokenSpec::read());
    hub.add_token("hf_other", TokenSpec::write().namespace("other"));
    let body = json!({ "name": "m", "organization": "o", "private": false, "type": "model" }).to_string();
    assert_eq!(post_as("hf_w", &format!("{}/api/repos/create", hub.endpoint()), &body).status, 200);
    hub
}

fn lines(summary: &str, parent: Option<&str>, changes: &[Value]) -> String {
    let mut header = json!({ "summary": summary, "description": "" });
    if let Some(parent) = parent {
        header["parentCommit"] = json!(parent);
    }
    let header = json!({ "key": "header", "value": header });
    [&header].into_iter().chain(changes).map(|line| format!("{line}\n")).collect()
}

fn file(path: &str, base64: &str) -> Value {
    json!({ "key": "file", "value": { "path": path, "content": base64, "encoding": "base64" } })
}

#[test]
fn repositories_are_made_once_and_by_those_who_may() {
    let hub = hub();
    let url = format!("{}/api/repos/create", hub.endpoint());
    let body = json!({ "name": "m", "organization": "o" }).to_string();
    assert_eq!(post_as("hf_w", &url, &body).status, 409);
    assert_eq!(post_as("hf_r", &url, &body).status, 403);
    assert_eq!(post_as("hf_other", &url, &body).status, 403);
    assert_eq!(crate::client::send("POST", &url, &[], body.as_bytes()).expect("an answer").status, 401);
    let private = json!({ "name": "p", "private": true }).to_string();
    assert_eq!(post_as("hf_w", &url, &private).status, 200);
    let info = get_as("hf_w", &format!("{}/api/models/mock-user/p", hub.endpoint())).json();
    assert_eq!(info["siblings"], json!([{ "rfilename": ".gitattributes" }]));
}

#[test]
fn commits_change_files_and_want_the_parent_they_name() {
    let hub = hub();
    let url = format!("{}/api/models/o/m/commit/main", hub.endpoint());
    let first = hub.head("o/m", "main").expect("a head");
    let answer = post_as("hf_w", &url, &lines("one", Some(&first), &[file("a/b.txt", "aGk=")])).json();
    assert_eq!(answer["commitOid"].as_str(), hub.head("o/m", "main").as_deref());
    assert_eq!(get(&format!("{}/o/m/resolve/main/a/b.txt", hub.endpoint())).bytes(), b"hi");
    assert_eq!(post_as("hf_w", &url, &lines("two", Some(&first), &[])).status, 412);
    let gone = json!({ "key": "deletedFile", "value": { "path": "a/b.txt" } });
    assert_eq!(post_as("hf_w", &url, &lines("three", None, std::slice::from_ref(&gone))).status, 200);
    assert_eq!(post_as("hf_w", &url, &lines("four", None, &[gone])).status, 400);
    assert_eq!(hub.paths("o/m", "main"), Some(vec![".gitattributes".to_owned()]));

    let never = json!({ "key": "lfsFile", "value": { "path": "m.gguf", "algo": "sha256", "oid": "0".repeat(64), "size": 9 } });
    let answer = post_as("hf_w", &url, &lines("five", None, &[never]));
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().is_some_and(|text| text.contains("does not exist")));
    assert_eq!(post_as("hf_w", &url, &lines("six", None, &[file("../x", "aGk=")])).status, 400);
    assert_eq!(post_as("hf_w", &url, &lines("six", None, &[file("m.gguf", "MDEyMzQ1Njc4OQ==")])).status, 400);
    assert_eq!(post_as("hf_other", &url, &lines("six", None, &[])).status, 403);
    let history = get(&format!("{}/api/models/o/m/commits/main", hub.endpoint())).json();
    assert_eq!((history.as_array().map(Vec::len), &history[0]["title"]), (Some(3), &json!("three")));
}

#[test]
fn what_is_to_be_uploaded_how() {
    let hub = hub();
    let files = json!({ "files": [
        { "path": "m.gguf", "size": 100, "sample": "" },
        { "path": "README.md", "size": 100, "sample": "" },
        { "path": "long.json", "size": 2_000_000, "sample": "" },
    ] });
    let answer =
        post_as("hf_w", &format!("{}/api/models/o/m/preupload/main", hub.endpoint()), &files.to_string());
    let modes: Vec<_> = answer.json()["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|one| one["uploadMode"].clone())
        .collect();
    assert_eq!(modes, ["lfs", "regular", "lfs"]);
    let batch = json!({ "operation": "upload", "transfers": ["basic", "multipart", "xet"], "objects": [] })
        .to_string();
    let path = "o/m.git/info/lfs/objects/batch";
    assert_eq!(post_as("hf_w", &format!("{}/{path}", hub.endpoint()), &batch).json()["transfer"], "xet");
    let token = get_as("hf_w", &format!("{}/api/models/o/m/xet-write-token/main", hub.endpoint())).json();
    assert!(token["casUrl"].as_str().is_some_and(|url| url.starts_with("local:///")));
    assert!(get(&format!("{}/api/models/o/m/xet-write-token/main", hub.endpoint())).status == 401);
    assert!(get(&format!("{}/api/models/o/m/xet-read-token/main", hub.endpoint())).status == 200);

    let basic =
        MockHub::start(Options { transfer: "basic".to_owned(), ..Options::default() }).expect("a mock");
    basic.add_token("hf_w", TokenSpec::write());
    basic.add_repo(halfbyte_mock_hub::RepoSpec::new("o/m"));
    assert_eq!(post_as("hf_w", &format!("{}/{path}", basic.endpoint()), &batch).json()["transfer"], "basic");
}

#[test]
fn pull_requests_are_opened_listed_merged_and_closed() {
    let hub = hub();
    let url = format!("{}/api/models/o/m", hub.endpoint());
    let commit = |token, suffix: &str, change| {
        post_as(token, &format!("{url}/commit/{suffix}"), &lines("t", None, &[change])).json()
    };
    let before = hub.head("o/m", "main");
    let opened = commit("hf_other", "main?create_pr=1", file("a", "YQ=="));
    assert_eq!(opened["pullRequestUrl"], format!("{}/o/m/discussions/1", hub.endpoint()));
    assert_eq!(hub.head("o/m", "main"), before);
    commit("hf_w", "refs%2Fpr%2F1", file("b", "Yg=="));
    commit("hf_w", "main?create_pr=1", file("a", "eA=="));
    commit("hf_w", "main?create_pr=1", file("c", "Yw=="));
    let listed = get(&format!("{url}/discussions")).json();
    assert_eq!((&listed["count"], &listed["discussions"][2]["num"]), (&json!(3), &json!(1)));
    assert_eq!(listed["discussions"][0]["isPullRequest"], true);

    let refs = get(&format!("{url}/refs?include_prs=1")).json();
    assert_eq!(refs["pullRequests"][0]["ref"], "refs/pr/1");
    assert_eq!(get(&format!("{url}/refs")).json()["pullRequests"], Value::Null);
    assert_eq!(
        get(&format!("{url}/revision/refs%2Fpr%2F1")).json()["siblings"].as_array().map(Vec::len),
        Some(3)
    );

    let merge = |num: u64| post_as("hf_w", &format!("{url}/discussions/{num}/merge"), "{}").status;
    assert_eq!(post_as("hf_r", &format!("{url}/discussions/1/merge"), "{}").status, 403);
    assert_eq!(merge(1), 200);
    assert_eq!(hub.head("o/m", "main"), hub.head("o/m", "refs/pr/1"));
    assert_eq!(merge(1), 403);
    assert_eq!(merge(2), 409, "both have a new file of the same name");
    assert_eq!(merge(3), 200, "what does not collide can be merged all the same");
    assert_eq!(
        hub.paths("o/m", "main").map(|paths| paths.join(" ")),
        Some(".gitattributes a b c".to_owned())
    );
    let closed = post_as("hf_w", &format!("{url}/discussions/2/status"), "{\"status\":\"closed\"}").json();
    assert_eq!(closed["newStatus"]["data"]["status"], "closed");
    let states: Vec<_> =
        (1..=3).map(|num| get(&format!("{url}/discussions/{num}")).json()["status"].clone()).collect();
    assert_eq!(states, ["merged", "closed", "merged"]);
    assert_eq!(get(&format!("{url}/discussions/4")).status, 404);
}

#[test]
fn a_commit_can_be_made_and_its_answer_lost() {
    let hub = hub();
    let before = hub.head("o/m", "main");
    hub.fault(Fault::new("/commit/", Kind::LoseAnswer).method("POST"));
    let url = format!("{}/api/models/o/m/commit/main", hub.endpoint());
    let body = lines("one", None, &[file("a", "YQ==")]);
    let headers = [("Authorization", "Bearer hf_w")];
    assert!(crate::client::send("POST", &url, &headers, body.as_bytes()).is_err());
    assert_ne!(hub.head("o/m", "main"), before);
}

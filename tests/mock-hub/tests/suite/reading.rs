//! Listing and downloading, and what is answered when that is not to be.

use std::time::Duration;

use crate::client::{Answer, get, get_as, get_range, send};
use halfbyte_mock_hub::{MockHub, Options, RepoSpec, TokenSpec};
use serde_json::json;

const WEIGHTS: &[u8] = b"0123456789abcdef";

fn hub(options: Options) -> MockHub {
    let hub = MockHub::start(options).expect("a mock");
    let files = |id| RepoSpec::new(id).file("config.json", "{}\n").file("sub/dir/model.safetensors", WEIGHTS);
    hub.add_repo(files("owner/open"));
    hub.add_repo(files("owner/secret").private());
    hub.add_repo(files("owner/gated").gated());
    hub.add_token("hf_in", TokenSpec::read().access("owner/secret").access("owner/gated"));
    hub.add_token("hf_out", TokenSpec::read());
    hub
}

fn follow(answer: &Answer) -> String {
    assert_eq!(answer.status, 302);
    answer.header("Location").expect("a location").to_owned()
}

#[test]
fn information_by_branch_and_commit() {
    let hub = hub(Options::default());
    let api = format!("{}/api/models/owner/open", hub.endpoint());
    let info = get(&api).json();
    let head = hub.head("owner/open", "main").expect("a head");
    assert_eq!((&info["id"], &info["sha"]), (&json!("owner/open"), &json!(head)));
    assert_eq!(
        info["siblings"],
        json!([{ "rfilename": "config.json" }, { "rfilename": "sub/dir/model.safetensors" }])
    );
    for revision in ["main", &head, "refs%2Fheads%2Fmain"] {
        assert_eq!(get(&format!("{api}/revision/{revision}")).json()["sha"], json!(head), "{revision}");
    }
    let missing = get(&format!("{api}/revision/nowhere"));
    assert_eq!((missing.status, missing.code()), (404, Some("RevisionNotFound")));

    let changed = hub.replace_file("owner/open", "config.json", "{ }").expect("a commit");
    assert_ne!(changed, head);
    assert_eq!(get(&api).json()["sha"], json!(changed));
    assert_eq!(get(&format!("{}/owner/open/resolve/{head}/config.json", hub.endpoint())).bytes(), b"{}\n");
}

#[test]
fn trees_have_what_git_has_and_come_in_pages() {
    let hub = hub(Options { page_size: 3, ..Options::default() });
    let api = format!("{}/api/models/owner/open/tree/main", hub.endpoint());
    let tree = get(&format!("{api}?recursive=true"));
    assert_eq!(
        tree.json()[0],
        json!({
            "type": "file",
            "oid": "0967ef424bce6791893e9a57bb952f80fd536e93",
            "size": 3,
            "path": "config.json",
        })
    );
    assert_eq!(tree.json()[1]["type"], "directory");
    let next =
        tree.header("Link").and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a next page");
    let rest = get(next.trim_start_matches('<'));
    assert_eq!(rest.header("Link"), None);
    let file = &rest.json()[0];
    assert_eq!(file["path"], "sub/dir/model.safetensors");
    // `printf … | git hash-object --stdin` of the pointer.
    assert_eq!(file["lfs"]["oid"], "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f");
    assert_eq!((&file["size"], &file["lfs"]["size"]), (&json!(16), &json!(16)));
    assert_eq!(file["lfs"]["pointerSize"], 127);
    assert_eq!(file["xetHash"].as_str().map(str::len), Some(64));

    let flat = get(&api).json();
    assert_eq!((flat.as_array().map(Vec::len), &flat[1]["path"]), (Some(2), &json!("sub")));
    assert_eq!(get(&format!("{api}/sub/dir")).json()[0]["path"], "sub/dir/model.safetensors");
    assert_eq!(get(&format!("{api}?limit=1")).json().as_array().map(Vec::len), Some(1));
    assert_eq!(get(&format!("{api}/nowhere")).code(), Some("EntryNotFound"));
}

#[test]
fn small_files_come_from_the_hub() {
    let hub = hub(Options::default());
    let url = format!("{}/owner/open/resolve/main/config.json", hub.endpoint());
    let whole = get(&url);
    assert_eq!((whole.status, whole.bytes()), (200, &b"{}\n"[..]));
    assert_eq!(whole.header("ETag"), Some("\"0967ef424bce6791893e9a57bb952f80fd536e93\""));
    assert_eq!(whole.header("X-Repo-Commit"), hub.head("owner/open", "main").as_deref());
    assert_eq!(whole.header("Accept-Ranges"), Some("bytes"));
    let part = get_range(&url, "bytes=1-");
    assert_eq!((part.status, part.bytes()), (206, &b"}\n"[..]));
    assert_eq!(part.header("Content-Range"), Some("bytes 1-2/3"));
    assert_eq!(get_range(&url, "bytes=0-0").bytes(), b"{");
    assert_eq!(get_range(&url, "bytes=-1").bytes(), b"\n");
    let past = get_range(&url, "bytes=3-");
    assert_eq!((past.status, past.header("Content-Range")), (416, Some("bytes */3")));
    let head = send("HEAD", &url, &[], b"").expect("an answer");
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("3")));
}

#[test]
fn large_files_come_from_another_host_that_wants_a_signature() {
    let hub = hub(Options::default());
    let url = format!("{}/owner/open/resolve/main/sub/dir/model.safetensors", hub.endpoint());
    for method in ["HEAD", "GET"] {
        let answer = send(method, &url, &[], b"").expect("an answer");
        assert_eq!(answer.header("X-Linked-Size"), Some("16"));
        let etag = "\"9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f\"";
        assert_eq!(answer.header("X-Linked-ETag"), Some(etag));
        assert!(answer.header("X-Xet-Hash").is_some());
    }
    let location = follow(&get(&url));
    assert!(location.starts_with("http://localhost:"), "{location}");
    assert_eq!(get(&location).bytes(), WEIGHTS);
    let part = get_range(&location, "bytes=10-12");
    assert_eq!((part.status, part.bytes()), (206, &b"abc"[..]));
    assert_eq!(part.header("Content-Range"), Some("bytes 10-12/16"));
    assert_eq!(get_range(&location, "bytes=16-").status, 416);
    assert_eq!(send("HEAD", &location, &[], b"").expect("an answer").header("Content-Length"), Some("16"));
    assert_eq!(get(&location.replace("Signature=", "Signature=0")).status, 403);
    assert_eq!(get(location.split('?').next().expect("a path")).status, 403);

    assert!(hub.stats().leaked.is_empty());
    get_as("hf_in", &location);
    let stats = get(&format!("{}/_mock/stats", hub.endpoint())).json();
    assert_eq!(stats["leaked"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        hub.stats().bytes_of("/xet-bridge/"),
        16 + 3
            + 16
            + hub
                .stats()
                .log
                .iter()
                .filter(|one| one.status >= 400 && one.path.contains("/xet-bridge/"))
                .map(|one| one.bytes)
                .sum::<u64>()
    );
    hub.reset_stats();
    assert_eq!(hub.stats().requests, 0);
}

#[test]
fn signed_addresses_expire() {
    let hub = hub(Options { signed_for: Duration::ZERO, ..Options::default() });
    let url = format!("{}/owner/open/resolve/main/sub/dir/model.safetensors", hub.endpoint());
    assert_eq!(get(&follow(&get(&url))).status, 403);
}

#[test]
fn who_may_not_see_is_told_as_the_hub_tells() {
    let hub = hub(Options::default());
    let told = |answer: Answer| (answer.status, answer.code().map(str::to_owned));
    let coded = |status, code: &str| (status, Some(code.to_owned()));
    let api = |repo: &str| format!("{}/api/models/{repo}", hub.endpoint());
    for repo in ["owner/secret", "owner/none"] {
        assert_eq!(told(get(&api(repo))), coded(401, "RepoNotFound"));
        assert_eq!(told(get_as("hf_out", &api(repo))), coded(404, "RepoNotFound"));
    }
    assert_eq!(get(&api("owner/none")).json()["error"], "Invalid username or password.");
    assert_eq!(get_as("hf_in", &api("owner/secret")).json()["private"], true);
    let wrong = get_as("hf_wrong", &api("owner/open"));
    assert_eq!((wrong.status, wrong.code()), (401, None));
    assert_eq!(wrong.json()["error"], "Invalid credentials in Authorization header");

    let file = format!("{}/owner/gated/resolve/main/config.json", hub.endpoint());
    assert_eq!(get(&api("owner/gated")).json()["gated"], "auto");
    assert_eq!(told(get(&file)), coded(401, "GatedRepo"));
    assert_eq!(told(get_as("hf_out", &file)), coded(403, "GatedRepo"));
    assert!(get_as("hf_out", &file).header("X-Error-Message").is_some());
    assert_eq!(get_as("hf_in", &file).bytes(), b"{}\n");

    let open = format!("{}/owner/open/resolve", hub.endpoint());
    assert_eq!(told(get(&format!("{open}/main/none"))), coded(404, "EntryNotFound"));
    assert_eq!(told(get(&format!("{open}/none/config.json"))), coded(404, "RevisionNotFound"));

    let who = format!("{}/api/whoami-v2", hub.endpoint());
    assert_eq!(get(&who).status, 401);
    assert_eq!(get_as("hf_in", &who).json()["name"], "mock-user");
    assert_eq!(get_as("hf_in", &who).json()["auth"]["accessToken"]["role"], "read");
}

#[test]
fn hostile_names_are_listed_and_served() {
    let hub = hub(Options::default());
    let names =
        ["../../evil", "/etc/evil", "a/../../b", ".git/config", "nul\0", "back\\slash", "line\nbreak"];
    hub.add_repo(names.iter().fold(RepoSpec::new("owner/evil"), |spec, name| spec.file(name, *name)));
    let api = format!("{}/api/models/owner/evil", hub.endpoint());
    let info = get(&api).json();
    let listed: Vec<_> =
        info["siblings"].as_array().expect("siblings").iter().map(|one| one["rfilename"].as_str()).collect();
    assert!(names.iter().all(|name| listed.contains(&Some(name))), "{listed:?}");
    let tree = get(&format!("{api}/tree/main?recursive=1")).json();
    assert!(names.iter().all(|name| tree.as_array().expect("a tree").iter().any(|one| one["path"] == *name)));
    let file = format!("{}/owner/evil/resolve/main/%2Fetc%2Fevil", hub.endpoint());
    assert_eq!(get(&file).bytes(), b"/etc/evil");
    assert_eq!(get(&format!("{}/owner/evil/resolve/main/nul%00", hub.endpoint())).bytes(), b"nul\0");
}

#[test]
fn folders_are_served_with_what_is_in_them() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("sub")).expect("a folder");
    std::fs::write(folder.path().join("sub/model.gguf"), WEIGHTS).expect("a file");
    let hub = hub(Options::default());
    hub.add_repo(RepoSpec::new("owner/folder").folder(folder.path()).expect("the folder"));
    let url = format!("{}/owner/folder/resolve/main/sub/model.gguf", hub.endpoint());
    assert_eq!(get(&follow(&get(&url))).bytes(), WEIGHTS);
    hub.add_repo(
        RepoSpec::new("owner/own").file("weights.dat", "tiny").lfs(|path, _| path.ends_with(".dat")),
    );
    assert_eq!(get(&format!("{}/owner/own/resolve/main/weights.dat", hub.endpoint())).status, 302);
}

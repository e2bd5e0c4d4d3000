//! `halfbyte publish` to a mock of the Hub, and `halfbyte check` of what is there then.

use std::{fs, path::Path, process::Command};

use mock_hub::{MockHub, Options, TokenSpec};
use serde_json::Value;

use crate::{
    check::{MODEL, check, flip, keys, shrunk},
    tool::{fails, halfbyte, model, on_hub, run},
};

const TOKEN: &str = "hf_publisher0123456789";
const REPO: &str = "owner/tiny-llama-gguf";

/// A mock, and where its clients keep things.
struct Place {
    mock: MockHub,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let mock = MockHub::start(Options::default()).expect("a mock");
        mock.add_token(TOKEN, TokenSpec::write());
        Place { mock, dir: tempfile::tempdir().expect("dir") }
    }

    fn with_hub(&self, mut command: Command) -> Command {
        on_hub(&mut command, &self.mock.endpoint(), &self.dir.path().join("hf"))
            .env("HF_TOKEN", TOKEN)
            .env_remove("HALFBYTE_KEY_PASSWORD");
        command
    }

    fn publish(&self, folder: &Path, options: &[&str]) -> Command {
        let mut command = halfbyte(&["publish", "--repo", REPO]);
        command.arg(folder).args(options);
        self.with_hub(command)
    }

    fn check(&self, options: &[&str]) -> Command {
        self.with_hub(check(Path::new(REPO), options))
    }
}

fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&run(command).stdout).expect("JSON")
}

#[test]
fn what_is_published_can_be_checked_by_a_stranger() {
    let place = Place::new();
    let folder = shrunk(place.dir.path());
    let (secret, public) = keys(place.dir.path(), "mine");
    let secret = secret.to_str().expect("UTF-8");
    let plan = json(&mut place.publish(&folder, &["--dry-run", "--sign-key", secret, "--json"]));
    assert_eq!(plan["exists"], false);
    assert!(!folder.join("halfbyte.json.minisig").exists(), "a dry run writes nothing");

    let done = json(&mut place.publish(&folder, &["--sign-key", secret, "--json"]));
    assert_eq!((&done["merged"], done["uploaded"][0].as_str()), (&true.into(), Some(MODEL)));
    assert_eq!(done["commit"].as_str().map(str::to_owned), place.mock.head(REPO, "main"));

    place.mock.reset_stats();
    let mut checking = place.check(&["--json", "--key"]);
    let report = json(checking.env_remove("HF_TOKEN").arg(&public));
    assert_eq!((&report["holds"], &report["signature"]["state"]), (&true.into(), &"holds".into()));
    assert_eq!(report["commit"], done["commit"]);
    let comment = report["signature"]["comment"].as_str().expect("comment");
    assert!(comment.starts_with(&format!("halfbyte {REPO} recipe ")), "{comment}");
    assert_eq!(place.mock.stats().count("GET", MODEL), 0, "the weights are not fetched");

    // Again: it is there, signature included.
    let mut again = place.publish(&folder, &["--sign-key", secret]);
    let said = String::from_utf8(run(&mut again).stdout).expect("text");
    assert!(said.contains("nothing to do") && said.contains("halfbyte check owner/"), "{said}");
    let plan = String::from_utf8(run(&mut place.publish(&folder, &["--dry-run"])).stdout).expect("text");
    assert_eq!(plan.matches("is there already").count(), plan.matches("commit").count(), "{plan}");

    // What somebody changes on the Hub is found without a download.
    let mut bytes = fs::read(folder.join(MODEL)).expect("file");
    bytes[5000] ^= 1;
    place.mock.replace_file(REPO, MODEL, bytes).expect("replaced");
    place.mock.replace_file(REPO, "README.md", "another card").expect("replaced");
    place.mock.replace_file(REPO, "extra.txt", "more").expect("added");
    let output = place.check(&["--json"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let files: Vec<_> = report["problems"].as_array().expect("problems").iter().map(|p| &p["file"]).collect();
    assert_eq!(files, ["README.md", MODEL]);
    assert!(report["warnings"][0].as_str().expect("warning").starts_with("extra.txt"), "{report}");
    let mut pinned = halfbyte(&["check", "--json"]);
    pinned.arg(format!("hf:{REPO}@{}", done["commit"].as_str().expect("commit")));
    assert_eq!(json(&mut place.with_hub(pinned))["holds"], true, "the commit is what it was");
}

#[test]
fn what_is_damaged_or_unverified_is_not_published() {
    let place = Place::new();
    let folder = shrunk(place.dir.path());
    flip(&folder.join(MODEL), 3000);
    let said = fails(&mut place.publish(&folder, &[]), 1);
    assert!(said.contains("nothing is uploaded") && said.contains("does not hold"), "{said}");
    flip(&folder.join(MODEL), 3000);
    let mut without = place.publish(&folder, &[]);
    let said = fails(without.env_remove("HF_TOKEN"), 2);
    assert!(said.contains("set HF_TOKEN"), "{said}");
    let said = fails(place.publish(&folder, &[]).env("HF_HUB_OFFLINE", "1"), 2);
    assert!(said.contains("HF_HUB_OFFLINE"), "{said}");
    assert_eq!(place.mock.stats().count("POST", ""), 0);

    let bare = place.dir.path().join("bare");
    let mut shrink = halfbyte(&["shrink", "--max-size", "3MB", "--no-verify", "--json"]);
    run(shrink.arg(model("tiny-llama")).arg("--out").arg(&bare));
    let said = fails(&mut place.publish(&bare, &[]), 1);
    assert!(said.contains("--unverified"), "{said}");
    let done = json(&mut place.publish(&bare, &["--unverified", "--pr", "--private", "--json"]));
    assert_eq!((&done["merged"], done["pull_request"].as_u64()), (&false.into(), Some(1)));
    assert!(done["url"].as_str().is_some_and(|url| url.ends_with("/discussions/1")), "{done}");
    assert!(!place.mock.paths(REPO, "main").expect("main").iter().any(|path| path == MODEL));
}

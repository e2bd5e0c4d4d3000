//! `halfbyte targets`: the list, one target, a user's file, and what is wrong.

use std::fs;

use crate::tool::{fails, halfbyte, run};

fn targets(args: &[&str]) -> String {
    let output = run(halfbyte(&["targets"]).args(args));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn they_are_listed_and_shown_with_sources() {
    let list = targets(&[]);
    assert!(list.contains("mac-studio-512") && list.contains("2 × 48 GiB"), "{list}");
    let one = targets(&["mac-studio-512"]);
    for words in ["464 GiB", "475,136 MiB in three reports", "819 GB/s", "llama.cpp/metal"] {
        assert!(one.contains(words), "{one}");
    }
}

#[test]
fn json_is_exact() {
    let json: serde_json::Value =
        serde_json::from_str(&targets(&["vram-48+384GiB", "--json"])).expect("JSON");
    assert_eq!(json["devices"][0]["usable"], (48_508_u64 - 1024) << 20);
    assert_eq!(json["host"]["memory"], 384_u64 << 30);
    assert!(json["devices"][0]["bandwidth"].is_null());
    let list: serde_json::Value = serde_json::from_str(&targets(&["--json"])).expect("JSON");
    assert_eq!(list[0]["name"], "mac-studio-512");
}

#[test]
fn this_machine_is_a_target() {
    let json: serde_json::Value = serde_json::from_str(&targets(&["auto", "--json"])).expect("JSON");
    assert!(json["devices"][0]["memory"].as_u64().is_some_and(|bytes| bytes > 1 << 27), "{json}");
}

#[test]
fn a_users_file_and_errors() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("mine.toml");
    let entry = "[[target]]\nname = \"rack\"\ndescription = \"mine\"\npage = \"4 KiB\"\nengines = [\"llama.cpp/cuda\"]\n\
                 [[target.device]]\nname = \"card\"\nkind = \"card\"\nmemory = \"80 GiB\"\n";
    fs::write(&file, entry).expect("file");
    let path = file.to_str().expect("UTF-8");
    assert!(targets(&["--target-file", path]).contains("rack"));
    assert!(targets(&["rack", "--target-file", path]).contains("79 GiB"));

    fs::write(&file, entry.replace("80 GiB", "80")).expect("file");
    let message = fails(&mut halfbyte(&["targets", "--target-file", path]), 2);
    assert!(message.contains("mine.toml, line 9: `memory = \"80\"`"), "{message}");
    let message = fails(&mut halfbyte(&["targets", "rtx-5080"]), 2);
    assert!(message.contains("did you mean rtx-5090"), "{message}");
}

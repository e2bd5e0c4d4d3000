//! Names from a Hub that lead out of the cache.

use halfbyte_hub as hub;
use hub::Error;
use mock_hub::RepoSpec;

use crate::setting::{REPO, Setting};

#[test]
fn nothing_is_fetched_from_a_repository_with_a_hostile_name() {
    for name in ["../../evil", "/etc/evil", "a/../../b", ".git/config", "a\\..\\b", "a/./b"] {
        let spec = RepoSpec::new(REPO)
            .file("config.json", "{}")
            .file("model.safetensors", vec![0; 64])
            .file(name, "x");
        let setting = Setting::new(spec);
        let error = setting.find().expect_err(name);
        assert!(matches!(&error, Error::UnsafeName { name: found, .. } if found == name), "{name}: {error}");
        assert!(!setting.home.path().join("hub").exists(), "{name}");
    }
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let index = r#"{"weight_map":{"a":"../../../evil.safetensors"}}"#;
    let spec = RepoSpec::new(REPO).file("config.json", "{}").file("model.safetensors.index.json", index);
    let error = Setting::new(spec).find().expect_err("an index");
    assert!(matches!(&error, Error::NoModel { reason, .. } if reason.contains("evil")), "{error}");
}

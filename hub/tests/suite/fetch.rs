//! Fetching into the cache: what is fetched, and what comes of each fault.

use std::fs;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use halfbyte_hub as hub;
use hub::Error;
use mock_hub::{Fault, Host, Kind, RepoSpec, TokenSpec};

use crate::setting::{REPO, SHARD, Setting, find, shard, spec};

const FIRST: &str = "model-00001-of-00002.safetensors";

fn expected() -> Vec<Vec<u8>> {
    vec![shard("a", 1, SHARD), shard("b", 2, 3 << 20)]
}

#[test]
fn only_what_a_model_needs_is_fetched_once_and_lies_where_others_find_it() {
    let setting = Setting::new(spec());
    assert!(setting.fetch().expect("fetched") == expected());
    let stats = setting.mock.stats();
    for unneeded in ["pytorch_model.bin", "original"] {
        assert_eq!(stats.bytes_of(unneeded), 0, "{unneeded}");
    }
    let commit = setting.mock.head(REPO, "main").expect("commit");
    let folder = setting.home.path().join("hub/models--some-owner--Some-Model");
    assert_eq!(fs::read_to_string(folder.join("refs/main")).expect("reference"), commit);
    let link = fs::read_link(folder.join("snapshots").join(&commit).join("config.json")).expect("a link");
    assert!(link.starts_with("../../blobs"), "{link:?}");
    assert!(
        !fs::read_dir(folder.join("blobs"))
            .expect("blobs")
            .any(|blob| { blob.expect("entry").file_name().to_string_lossy().contains("incomplete") })
    );

    setting.mock.reset_stats();
    assert!(setting.fetch().expect("again") == expected());
    assert_eq!(setting.mock.stats().bytes_of("resolve") + setting.mock.stats().bytes_of("safetensors"), 0);
}

#[test]
fn without_the_network_the_cache_is_all_there_is() {
    let setting = Setting::new(spec());
    let mut settings = setting.client.settings().clone();
    settings.offline = true;
    let offline = hub::Client::new(settings, setting.cancel.clone());
    assert!(matches!(find(&offline, REPO), Err(Error::Offline { .. })));
    setting.fetch().expect("fetched");
    let before = setting.mock.stats().requests;
    let snapshot = find(&offline, REPO).expect("cached");
    assert_eq!((snapshot.missing(), snapshot.weights.len()), (0, 2));
    assert_eq!(snapshot.commit, setting.mock.head(REPO, "main").expect("commit"));
    assert_eq!(setting.mock.stats().requests, before);
    // Of a branch that was never fetched it knows nothing.
    assert!(matches!(find(&offline, &format!("{REPO}@dev")), Err(Error::Offline { .. })));
}

#[test]
fn faults_that_pass_cost_another_attempt() {
    let kinds = [
        Kind::CutAfter(700_000),
        Kind::ShortBody(1000),
        Kind::Forbidden403,
        Kind::TooManyRequests { retry_after: Some(1) },
        Kind::ServerError,
        Kind::Reset,
        Kind::IgnoreRange,
        Kind::WrongRange,
        // These have the right length: only the hash tells, and all is fetched again.
        Kind::WrongBytes,
        Kind::Html200,
    ];
    thread::scope(|scope| {
        for kind in kinds {
            scope.spawn(move || {
                let setting = Setting::new(spec());
                setting.mock.fault(Fault::new(FIRST, kind.clone()).at(Host::Cdn).skip(1));
                let fetched = setting.fetch().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
                assert!(fetched == expected(), "{kind:?}");
                assert!(setting.mock.stats().leaked.is_empty());
            });
        }
    });
}

#[test]
fn the_hub_itself_may_fail_for_a_while() {
    let setting = Setting::new(spec());
    for path in ["/revision/", "/tree/", "/resolve/"] {
        setting.mock.fault(Fault::new(path, Kind::ServerError).at(Host::Hub));
        setting.mock.fault(Fault::new(path, Kind::Reset).at(Host::Hub));
    }
    assert!(setting.fetch().expect("fetched") == expected());
}

#[test]
fn what_is_wrong_every_time_is_an_error_and_no_file() {
    for kind in [Kind::WrongBytes, Kind::Html200] {
        let setting = Setting::new(spec());
        setting.mock.fault(Fault::new(FIRST, kind.clone()).at(Host::Cdn).always());
        let error = setting.fetch().expect_err("wrong bytes");
        assert!(matches!(&error, Error::WrongHash { file, .. } if file == FIRST), "{kind:?}: {error}");
        assert!(setting.holds_only_what_it_says());
        // Nothing of it is left to be taken for something.
        setting.mock.clear_faults();
        assert!(setting.fetch().expect("fetched") == expected());
    }
}

#[test]
fn a_small_file_is_checked_too() {
    let setting = Setting::new(spec());
    setting.mock.fault(Fault::new("resolve/", Kind::WrongBytes).at(Host::Hub).always());
    let error = setting.fetch().expect_err("wrong bytes");
    assert!(matches!(&error, Error::WrongHash { algorithm: "SHA-1 as git counts it", .. }), "{error}");
    assert!(setting.holds_only_what_it_says());
}

#[test]
fn a_slow_server_is_waited_for_and_one_that_stops_is_asked_again() {
    let setting = Setting::new(spec());
    setting.mock.fault(Fault::new(FIRST, Kind::Trickle { bytes_per_second: 8 << 20 }).at(Host::Cdn));
    assert!(setting.fetch().expect("fetched") == expected());
}

#[test]
fn a_revision_that_changes_midway_changes_nothing() {
    let setting = Setting::new(spec());
    let commit = setting.mock.head(REPO, "main").expect("commit");
    let changed = Kind::ChangeRevision { repo: REPO.into(), path: FIRST.into(), bytes: vec![0; 64] };
    setting.mock.fault(Fault::new(FIRST, changed).at(Host::Cdn));
    assert!(setting.fetch().expect("fetched") == expected());
    assert_ne!(setting.mock.head(REPO, "main").expect("commit"), commit);
    // Asked for again, the branch is what it is now.
    assert_ne!(setting.find().expect("found").commit, commit);
    assert_eq!(find(&setting.client, &format!("{REPO}@{commit}")).expect("found").commit, commit);
}

#[test]
fn ctrl_c_leaves_what_there_is_for_the_next_time() {
    let setting = Setting::new(spec());
    setting
        .mock
        .fault(Fault::new(FIRST, Kind::Trickle { bytes_per_second: 4 << 20 }).at(Host::Cdn).skip(1).always());
    let fetched = thread::scope(|scope| {
        let fetched = scope.spawn(|| setting.fetch());
        thread::sleep(Duration::from_millis(1500));
        setting.cancel.store(true, Ordering::Relaxed);
        fetched.join().expect("no panic")
    });
    assert!(matches!(fetched, Err(Error::Interrupted)));
    let had = setting.mock.stats().bytes_of(FIRST);
    setting.mock.clear_faults();
    setting.mock.reset_stats();
    setting.again(None);
    assert!(setting.fetch().expect("fetched") == expected());
    let again = (setting.mock.stats().bytes_of(FIRST) + had).saturating_sub(expected()[0].len() as u64);
    // Of each connection, what had not made a piece.
    assert!(again <= 5 << 20, "{again} bytes of {had} came again");
}

#[test]
fn what_is_not_for_everybody_says_so() {
    let setting = Setting::with(spec().private(), None);
    let error = setting.find().expect_err("private").to_string();
    assert!(error.contains("set HF_TOKEN"), "{error}");
    let wrong = setting.again(Some("hf_wrong"));
    let error = find(&wrong, REPO).expect_err("wrong token").to_string();
    assert!(error.contains("HF_TOKEN") && !error.contains("hf_wrong"), "{error}");
    setting.mock.add_token("hf_right", TokenSpec::read().access(REPO));
    setting.mock.add_token("hf_other", TokenSpec::read());
    let error = find(&setting.again(Some("hf_other")), REPO).expect_err("no access");
    assert!(matches!(error, Error::NoRepo { has_token: true, .. }), "{error}");
    assert!(find(&setting.again(Some("hf_right")), REPO).is_ok());
    assert!(setting.mock.stats().leaked.is_empty());

    let gated = Setting::with(spec().gated(), None);
    let error = gated.find().map(|_| ()).expect_err("gated");
    assert!(matches!(error, Error::Gated { has_token: false, .. }), "{error}");
    gated.mock.add_token("hf_right", TokenSpec::read().access(REPO));
    let client = gated.again(Some("hf_right"));
    let snapshot = find(&client, REPO).expect("found");
    snapshot.fetched(&client, &hub::progress::Silent).expect("fetched");
    // The weights came from another host, which never saw the token.
    let stats = gated.mock.stats();
    assert!(stats.bytes_of(FIRST) > 0 && stats.leaked.is_empty());
}

#[test]
fn files_with_the_same_bytes_are_fetched_once() {
    let spec =
        spec().file("LICENSE", "free").file("LICENSE.txt", "free").file("special_tokens_map.json", "free");
    let setting = Setting::new(spec);
    let snapshot = setting.find().expect("found");
    for name in ["LICENSE", "LICENSE.txt", "special_tokens_map.json"] {
        assert_eq!(fs::read_to_string(snapshot.folder().join(name)).expect("file"), "free");
    }
}

#[test]
fn a_list_that_is_cut_short_is_asked_for_again() {
    let setting = Setting::new(spec());
    setting.mock.fault(Fault::new("/tree/", Kind::CutAfter(100)).at(Host::Hub));
    setting.find().expect("found");
}

#[test]
fn what_is_not_there_is_named() {
    let setting = Setting::new(spec());
    assert!(matches!(find(&setting.client, "some-owner/None"), Err(Error::NoRepo { .. })));
    let error = find(&setting.client, &format!("{REPO}@v9")).expect_err("no revision");
    assert!(matches!(&error, Error::NoRevision { revision, .. } if revision == "v9"), "{error}");
    let error = find(&setting.client, &format!("{REPO}/m.gguf")).expect_err("no file");
    assert!(matches!(&error, Error::NoFile { file, .. } if file == "m.gguf"), "{error}");

    let empty = Setting::new(RepoSpec::new(REPO).file("a.txt", "a"));
    assert!(matches!(empty.find(), Err(Error::NoModel { .. })));
}

#[test]
fn of_several_ggufs_one_must_be_named() {
    let gguf = |size: usize| crate::setting::noise(size as u64, size);
    let spec = RepoSpec::new(REPO)
        .file("m-Q4_K_M.gguf", gguf(100))
        .file("Q8_0/m-Q8_0-00001-of-00002.gguf", gguf(200))
        .file("Q8_0/m-Q8_0-00002-of-00002.gguf", gguf(300));
    let setting = Setting::new(spec);
    let error = setting.find().expect_err("two models").to_string();
    assert!(error.contains("hf:some-owner/Some-Model/Q8_0/m-Q8_0-00001-of-00002.gguf"), "{error}");
    let one = find(&setting.client, &format!("{REPO}/m-Q4_K_M.gguf")).expect("named");
    assert_eq!(one.weights.len(), 1);
    for named in ["Q8_0", "Q8_0/m-Q8_0-00002-of-00002.gguf"] {
        let split = find(&setting.client, &format!("{REPO}/{named}")).expect("named");
        assert_eq!(split.weights.len(), 2, "{named}");
    }
}

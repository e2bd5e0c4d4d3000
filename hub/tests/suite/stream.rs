//! Weights that pass through a bounded part of the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use formats::safetensors::Safetensors;
use formats::source::Source;
use formats::{TensorId, TensorSource};
use halfbyte_hub as hub;
use hub::progress::Silent;
use hub::scratch;
use mock_hub::{Fault, Host, Kind, RepoSpec};

use crate::setting::{REPO, Setting, noise, shard};

const SHARDS: usize = 5;
const BYTES: usize = 5 << 20;

fn name(index: usize) -> String {
    format!("model-{:05}-of-{SHARDS:05}.safetensors", index + 1)
}

fn many() -> RepoSpec {
    let map: Vec<String> = (0..SHARDS).map(|index| format!("\"t{index}\":\"{}\"", name(index))).collect();
    let index = format!("{{\"weight_map\":{{{}}}}}", map.join(","));
    let mut spec = RepoSpec::new(REPO).file("config.json", "{}").file("model.safetensors.index.json", index);
    for index in 0..SHARDS {
        spec = spec.file(&name(index), shard(&format!("t{index}"), index as u64, BYTES));
    }
    spec
}

fn open(setting: &Setting, budget: u64) -> hub::Result<Source> {
    let snapshot = setting.find()?;
    let silent: Arc<dyn hub::progress::Progress> = Arc::new(Silent);
    scratch::stream(&setting.client, &snapshot, budget, &silent)
}

/// The same once nobody holds it any more: a moment after it was dropped.
fn reopen(setting: &Setting, budget: u64) -> Source {
    for _ in 0..500 {
        match open(setting, budget) {
            Err(hub::Error::Busy { .. }) => std::thread::sleep(Duration::from_millis(20)),
            opened => return opened.expect("opened"),
        }
    }
    panic!("somebody holds the scratch")
}

fn weights(source: &Source) -> Safetensors {
    Safetensors::open_folder_in(source.path(), source.storage().clone()).expect("headers")
}

fn read(weights: &Safetensors, index: usize) -> formats::Result<Vec<u8>> {
    let id = weights.find(&format!("t{index}")).expect("tensor");
    let mut bytes = vec![0; BYTES];
    weights.read_at(id, 0, &mut bytes)?;
    Ok(bytes)
}

/// Bytes that lie in the scratch.
fn held(setting: &Setting) -> u64 {
    fn sum(folder: &Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
        let entries: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
        let blocks = |path: &PathBuf| {
            use std::os::unix::fs::MetadataExt;
            path.metadata().map_or(0, |metadata| metadata.blocks() * 512)
        };
        entries.iter().map(|path| if path.is_dir() { sum(path) } else { blocks(path) }).sum()
    }
    sum(&setting.home.path().join("halfbyte"))
}

#[test]
fn headers_are_read_by_range() {
    let setting = Setting::new(many());
    let source = open(&setting, 0).expect("opened");
    assert_eq!(source.origin().expect("origin").repo, REPO);
    assert_eq!(weights(&source).tensors().len(), SHARDS);
    let stats = setting.mock.stats();
    assert!(stats.bytes_of("model-0") < (SHARDS * (100 << 10)) as u64, "{}", stats.bytes_of("model-0"));
    let error = read(&weights(&source), 0).expect_err("no room").to_string();
    assert!(error.contains("--disk allows 0"), "{error}");
}

#[test]
fn files_come_in_the_order_of_the_plan_and_go_when_it_is_settled() {
    let setting = Setting::new(many());
    let budget = 2 * BYTES as u64 + 4096;
    let source = open(&setting, budget).expect("opened");
    let weights = weights(&source);
    let file = |index: usize| weights.meta(weights.find(&format!("t{index}")).unwrap_or(TensorId(0))).file;
    let order = [2, 0, 1, 4, 3];
    weights.expect(order.iter().map(|&index| vec![file(index)]).collect()).expect("planned");
    for (step, &index) in order.iter().enumerate() {
        assert!(read(&weights, index).expect("read") == noise(index as u64, BYTES));
        assert!(held(&setting) <= budget + (1 << 20), "{} bytes at step {step}", held(&setting));
        weights.settled(step);
    }
    let stats = setting.mock.stats();
    for index in 0..SHARDS {
        // Once, and the header before.
        let bytes = stats.bytes_of(&name(index));
        assert!(bytes < BYTES as u64 + (200 << 10), "{bytes} of {}", name(index));
    }
    source.done();
    drop((weights, source));
    assert_eq!(held(&setting), 0);
}

#[test]
fn without_a_plan_what_was_read_longest_ago_goes() {
    let setting = Setting::new(many());
    let budget = 2 * BYTES as u64 + 4096;
    let source = open(&setting, budget).expect("opened");
    let weights = weights(&source);
    for index in [0, 1, 0, 2, 0, 3, 4, 1] {
        assert!(read(&weights, index).expect("read") == noise(index as u64, BYTES), "{index}");
        assert!(held(&setting) <= budget + (1 << 20));
    }
    // The first stayed until the fourth came.
    assert!(setting.mock.stats().bytes_of(&name(0)) < BYTES as u64 + (200 << 10));
}

#[test]
fn several_readers_share_what_there_is() {
    let setting = Setting::new(many());
    let source = open(&setting, BYTES as u64 + 4096).expect("opened");
    let weights = weights(&source);
    std::thread::scope(|scope| {
        for index in 0..SHARDS {
            let weights = &weights;
            scope.spawn(move || {
                for _ in 0..3 {
                    assert!(read(weights, index).expect("read") == noise(index as u64, BYTES));
                }
            });
        }
    });
}

#[test]
fn a_step_that_needs_more_than_may_be_held_is_refused() {
    let setting = Setting::new(many());
    let source = open(&setting, 2 * BYTES as u64 - 1).expect("opened");
    let weights = weights(&source);
    let error = weights.expect(vec![vec![0], vec![0, 1]]).expect_err("too much").to_string();
    let needed = 2 * (BYTES + shard("t0", 0, 0).len()) as u64;
    assert!(error.contains("give at least"), "{error}");
    assert!(error.contains(&name(0)) && error.contains(&name(1)), "{error} {needed}");
}

#[test]
fn a_plan_that_comes_back_to_files_gets_them_again() {
    let setting = Setting::new(many());
    let source = open(&setting, 2 * BYTES as u64 + 4096).expect("opened");
    let weights = weights(&source);
    let file = |index: usize| weights.meta(weights.find(&format!("t{index}")).unwrap_or(TensorId(0))).file;
    let order = [0, 1, 2, 0, 1];
    weights.expect(order.iter().map(|&index| vec![file(index)]).collect()).expect("planned");
    for (step, &index) in order.iter().enumerate() {
        assert!(read(&weights, index).expect("read") == noise(index as u64, BYTES), "{step}");
        weights.settled(step);
    }
}

#[test]
fn wrong_bytes_never_reach_the_reader() {
    let setting = Setting::new(many());
    let source = open(&setting, 4 * BYTES as u64).expect("opened");
    let weights = weights(&source);
    setting.mock.fault(Fault::new(&name(1), Kind::WrongBytes).at(Host::Cdn).always());
    let error = read(&weights, 1).expect_err("wrong").to_string();
    assert!(error.contains("SHA-256") && error.contains(&name(1)), "{error}");
}

#[test]
fn bytes_that_were_wrong_once_need_no_more_room() {
    let setting = Setting::new(many());
    let source = open(&setting, BYTES as u64 + 4096).expect("opened");
    let weights = weights(&source);
    setting.mock.fault(Fault::new(&name(1), Kind::WrongBytes).at(Host::Cdn));
    assert!(read(&weights, 1).expect("read") == noise(1, BYTES));
}

#[test]
fn what_is_asked_for_comes_before_what_was_planned() {
    let setting = Setting::new(many());
    let source = open(&setting, 2 * BYTES as u64 + 8192).expect("opened");
    let weights = weights(&source);
    let file = |index: usize| weights.meta(weights.find(&format!("t{index}")).unwrap_or(TensorId(0))).file;
    let steps = [vec![0, 4], vec![1], vec![2], vec![0], vec![4], vec![1]];
    let files = steps.iter().map(|step| step.iter().map(|&index| file(index)).collect());
    weights.expect(files.collect()).expect("planned");
    // Nothing is settled before the end.
    for index in steps.into_iter().flatten() {
        assert!(read(&weights, index).expect("read") == noise(index as u64, BYTES), "{index}");
    }
}

#[test]
fn a_smaller_scratch_takes_up_no_more_than_it_may() {
    let setting = Setting::new(many());
    let source = open(&setting, 4 * BYTES as u64).expect("opened");
    for index in 0..3 {
        read(&weights(&source), index).expect("read");
    }
    drop(source);
    let budget = BYTES as u64 + 4096;
    let source = reopen(&setting, budget);
    assert!(held(&setting) <= budget + (1 << 20), "{}", held(&setting));
    assert!(read(&weights(&source), 4).expect("read") == noise(4, BYTES));
}

#[test]
fn repositories_of_like_names_do_not_lock_each_other_out() {
    let setting = Setting::new(many().named("owner/Model-2.5-7B"));
    setting.mock.add_repo(many().named("owner/Model-2.5-7B-Instruct"));
    let silent: Arc<dyn hub::progress::Progress> = Arc::new(Silent);
    let open = |repo: &str| {
        let snapshot = crate::setting::find(&setting.client, repo).expect("found");
        scratch::stream(&setting.client, &snapshot, 1 << 30, &silent)
    };
    let _first = open("owner/Model-2.5-7B").expect("opened");
    open("owner/Model-2.5-7B-Instruct").expect("opened too");
}

#[test]
fn a_header_that_was_wrong_is_found_out() {
    let setting = Setting::new(many());
    // The request for the header alone: a bit of what is read as one is another.
    setting.mock.fault(Fault::new(&name(1), Kind::WrongBytes).at(Host::Cdn));
    let Ok(source) = open(&setting, 4 * BYTES as u64) else { return };
    let Ok(weights) = Safetensors::open_folder_in(source.path(), source.storage().clone()) else { return };
    let error = read(&weights, 1).expect_err("another header").to_string();
    assert!(error.contains("header"), "{error}");
}

#[test]
fn a_later_run_goes_on_with_what_is_there() {
    let setting = Setting::new(many());
    let budget = 3 * BYTES as u64;
    let first = open(&setting, budget).expect("opened");
    let weights_of_first = weights(&first);
    read(&weights_of_first, 0).expect("read");
    let busy = open(&setting, budget).expect_err("in use");
    assert!(matches!(busy, hub::Error::Busy { .. }), "{busy}");
    drop((weights_of_first, first));
    setting.mock.reset_stats();
    let second = reopen(&setting, budget);
    read(&weights(&second), 0).expect("read");
    assert!(setting.mock.stats().bytes_of(&name(0)) < 200 << 10);
    // What is damaged meanwhile is noticed.
    drop(second);
    damage(&setting.home.path().join("halfbyte"));
    let third = reopen(&setting, budget);
    assert!(read(&weights(&third), 0).expect("read") == noise(0, BYTES));
}

/// Flips a bit of every whole file below.
fn damage(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            damage(&path);
        } else if path.metadata().expect("metadata").len() > 1000 {
            let mut bytes = std::fs::read(&path).expect("file");
            bytes[999] ^= 1;
            std::fs::write(&path, bytes).expect("file");
        }
    }
}

#[test]
fn what_the_cache_has_is_not_fetched_again() {
    let setting = Setting::new(many());
    setting.fetch().expect("fetched");
    std::fs::remove_file(blob(&setting, 3)).expect("one is missing");
    setting.mock.reset_stats();
    let source = open(&setting, BYTES as u64 * 2).expect("opened");
    let weights = weights(&source);
    for index in 0..SHARDS {
        assert!(read(&weights, index).expect("read") == noise(index as u64, BYTES));
    }
    let stats = setting.mock.stats();
    assert_eq!(stats.bytes_of(&name(0)), 0);
    assert!(stats.bytes_of(&name(3)) > BYTES as u64);
}

fn blob(setting: &Setting, index: usize) -> PathBuf {
    let snapshot = setting.find().expect("found");
    let folder = snapshot.folder().join(&snapshot.weights[index].path);
    folder.canonicalize().expect("a blob")
}

/// The storage is asked for what lies beside the weights too.
#[test]
fn small_files_lie_on_the_disk() {
    let setting = Setting::new(many());
    let source = open(&setting, 0).expect("opened");
    assert!(source.path().join("config.json").is_file());
    assert!(source.storage().is_file(&source.path().join(name(0))));
    assert_eq!(source.storage().list(source.path()).expect("listed").len(), SHARDS + 2);
}

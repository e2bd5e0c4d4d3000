//! Uploads by hf-hub itself, through Xet into the local store, and what the mock makes of them.

use std::io::Read;
use std::time::{Duration, Instant};

use halfbyte_mock_hub::{MockHub, Options, TokenSpec};
use hf_hub::HFClientSync;
use hf_hub::repository::{AddSource, CommitOperation, RepoTypeModel};

const TOKEN: &str = "hf_writer";

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn client(hub: &MockHub) -> HFClientSync {
    hf_hub::HFClient::builder()
        .endpoint(hub.endpoint())
        .token(TOKEN)
        .cache_enabled(false)
        .build_sync()
        .expect("a client")
}

fn get(url: &str, range: Option<&str>) -> (u16, Vec<u8>) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = agent.get(url);
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let mut response = request.call().expect("an answer");
    let mut bytes = Vec::new();
    response.body_mut().as_reader().read_to_end(&mut bytes).expect("a body");
    (response.status().as_u16(), bytes)
}

#[test]
fn hf_hub_uploads_and_the_mock_has_the_bytes() {
    let hub = MockHub::start(Options::default()).expect("a mock");
    hub.add_token(TOKEN, TokenSpec::write());
    let client = client(&hub);
    let made = client
        .create_repository()
        .repo_id("owner/up")
        .repo_type(RepoTypeModel)
        .private(false)
        .send()
        .expect("a repository");
    assert_eq!(made.url, format!("{}/owner/up", hub.endpoint()));

    let weights = noise(3 << 20, 7);
    let repo = client.model("owner", "up");
    let commit = |create_pr, weights: &[u8], text: &str| {
        repo.create_commit()
            .operations(vec![
                CommitOperation::Add {
                    path_in_repo: "model.gguf".to_owned(),
                    source: AddSource::bytes(weights.to_vec()),
                },
                CommitOperation::Add {
                    path_in_repo: "README.md".to_owned(),
                    source: AddSource::bytes(text.as_bytes().to_vec()),
                },
            ])
            .commit_message("Weights")
            .create_pr(create_pr)
            .send()
    };
    let first = commit(false, &weights, "# one\n").expect("a commit");
    assert_eq!(first.commit_oid, hub.head("owner/up", "main"));
    let url = format!("{}/owner/up/resolve/main", hub.endpoint());
    assert_eq!(get(&format!("{url}/README.md"), None), (200, b"# one\n".to_vec()));
    assert_eq!(get(&format!("{url}/model.gguf"), None), (200, weights.clone()));
    for (start, end) in [(0, 0), (5, 1_000_004), (2_000_000, (3 << 20) - 1)] {
        let range = format!("bytes={start}-{end}");
        let found = get(&format!("{url}/model.gguf"), Some(&range));
        assert_eq!(found, (206, weights[start..=end].to_vec()), "{range}");
    }

    // Most of the second file is in the store already: it is put together from old and new xorbs.
    let mut changed = weights.clone();
    changed[1_500_000..1_500_100].fill(0);
    let second = commit(true, &changed, "# two\n").expect("a pull request");
    assert_eq!(second.commit_oid, hub.head("owner/up", "refs/pr/1"));
    assert_eq!(second.pr_num, None, "hf-hub reads fields that the real Hub does not send");
    let pr = format!("{}/owner/up/resolve/refs%2Fpr%2F1", hub.endpoint());
    assert_eq!(get(&format!("{pr}/model.gguf"), None), (200, changed));
    assert_eq!(get(&format!("{url}/model.gguf"), None), (200, weights));
    assert!(hub.stats().leaked.is_empty());

    // And what hf-hub reads of it.
    let info = repo.info().send().expect("information");
    assert_eq!(info.sha, first.commit_oid);
    let tree = repo.list_tree().recursive(true).send().expect("a tree");
    assert_eq!(tree.len(), 3);
}

#[test]
fn what_is_discarded_is_still_listed() {
    let store = tempfile::tempdir().expect("a folder");
    let folder = Some(store.path().to_owned());
    let hub = MockHub::start(Options { store: folder, discard_uploads: true, ..Options::default() });
    let hub = hub.expect("a mock");
    hub.add_token(TOKEN, TokenSpec::write());
    let client = client(&hub);
    let id = "owner/gone";
    client.create_repository().repo_id(id).repo_type(RepoTypeModel).send().expect("a repository");
    let repo = client.model("owner", "gone");
    let source = AddSource::bytes(noise(2 << 20, 9));
    repo.upload_file().source(source).path_in_repo("model.gguf").send().expect("an upload");
    let content = hub.content(id, "main", "model.gguf").expect("a file");
    assert_eq!(content.len(), 2 << 20);
    assert!(content.read_at(0, &mut [0]).is_err());
    assert!(std::fs::read_dir(store.path().join("lfs")).expect("a folder").next().is_none());
    let xorbs = store.path().join("cas/xet/xorbs/xorbs");
    let start = Instant::now();
    while std::fs::read_dir(&xorbs).expect("a folder").next().is_some() {
        assert!(start.elapsed() < Duration::from_secs(10), "xorbs are deleted");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_hub_without_xet_makes_hf_hub_send_weights_inline_which_is_refused() {
    let hub = MockHub::start(Options { transfer: "basic".to_owned(), ..Options::default() }).expect("a mock");
    hub.add_token(TOKEN, TokenSpec::write());
    let client = client(&hub);
    client.create_repository().repo_id("owner/basic").repo_type(RepoTypeModel).send().expect("a repository");
    let source = AddSource::bytes(noise(1 << 16, 9));
    let upload = client.model("owner", "basic").upload_file().source(source).path_in_repo("m.gguf").send();
    assert!(format!("{upload:?}").contains("Please use LFS"), "{upload:?}");
}

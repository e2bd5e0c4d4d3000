//! Publishing to a mock of the Hub through hf-hub and Xet, whole and interrupted, and what is refused.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use halfbyte_hub as hub;
use hub::progress::{Progress, Silent};
use hub::publish::{Publisher, Wish};
use hub::settings::{Settings, Token};
use hub::{Client, RepoId, digest};
use mock_hub::{Fault, Kind, MockHub, Options, RepoSpec, TokenSpec};

use crate::setting::noise;

const TOKEN: &str = "hf_publisher0123456789";
const REPO: &str = "owner/Model-gguf";

/// A mock, a client that may write, and files to publish.
struct Desk {
    mock: MockHub,
    home: tempfile::TempDir,
    cancel: Arc<AtomicBool>,
}

impl Desk {
    fn new() -> Desk {
        Desk::with(Options::default())
    }

    fn with(options: Options) -> Desk {
        let mock = MockHub::start(options).expect("a mock");
        mock.add_token(TOKEN, TokenSpec { user: "me".to_owned(), ..TokenSpec::write() });
        Desk { mock, home: tempfile::tempdir().expect("a home"), cancel: Arc::default() }
    }

    fn client(&self, token: Option<&str>) -> Arc<Client> {
        let settings = Settings {
            endpoint: self.mock.endpoint(),
            token: token.and_then(Token::new),
            home: self.home.path().to_owned(),
            cache: self.home.path().join("hub"),
            offline: false,
        };
        Arc::new(Client::new(settings, Arc::clone(&self.cancel)))
    }

    fn wish() -> Wish {
        Wish { private: false, job: "ab".repeat(32), title: "Model in 4 bits".to_owned() }
    }

    fn open(&self) -> hub::Result<Publisher> {
        self.open_as(Some(TOKEN), Desk::wish())
    }

    fn open_as(&self, token: Option<&str>, wish: Wish) -> hub::Result<Publisher> {
        let silent: Arc<dyn Progress> = Arc::new(Silent);
        Publisher::open(&self.client(token), &RepoId::parse(REPO).expect("a name"), wish, &silent)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.home.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    }

    fn small(&self) -> Vec<(String, PathBuf)> {
        [("README.md", "# A card\n"), ("SHA256SUMS", "00  x\n")]
            .map(|(name, text)| (name.to_owned(), self.file(name, text.as_bytes())))
            .into()
    }

    fn bytes(&self, revision: &str, name: &str) -> Vec<u8> {
        let content = self.mock.content(REPO, revision, name).expect("a file");
        let mut bytes = vec![0; content.len() as usize];
        content.read_at(0, &mut bytes).expect("bytes");
        bytes
    }

    fn commits(&self) -> usize {
        self.mock.stats().count("POST", "/commit/")
    }
}

fn put(publisher: &mut Publisher, path: &Path, name: &str) -> hub::Result<bool> {
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).expect("a file");
    publisher.put(path, name, bytes.len() as u64, &digest::of_bytes(&bytes))
}

#[test]
fn main_has_all_or_nothing() {
    let desk = Desk::new();
    let (a, b) = (noise(1, 2 << 20), noise(2, 1 << 20));
    let paths = [("m-00001-of-00002.gguf", &a), ("m-00002-of-00002.gguf", &b)]
        .map(|(name, bytes)| (name, desk.file(name, bytes)));
    let mut publisher = desk.open().expect("a publisher");
    let before = desk.mock.head(REPO, "main").expect("main");
    for (name, path) in &paths {
        assert!(put(&mut publisher, path, name).expect("uploaded"));
        // What the Hub has may be dropped here.
        fs::remove_file(path).expect("a file");
    }
    assert!(publisher.put_all(&desk.small()).expect("uploaded"));
    assert_eq!(desk.mock.head(REPO, "main").as_ref(), Some(&before));
    let published = publisher.finish(true).expect("published");
    assert_eq!(Some(&published.commit), desk.mock.head(REPO, "main").as_ref());
    assert_eq!(
        (published.pull_request, published.url),
        (Some(1), format!("{}/{REPO}", desk.mock.endpoint()))
    );
    assert_eq!(desk.bytes("main", paths[0].0), a);
    assert_eq!(desk.bytes("main", paths[1].0), b);
    assert_eq!(desk.bytes("main", "README.md"), b"# A card\n");
    assert!(desk.mock.stats().leaked.is_empty());

    // Once more: there is nothing to do, and nothing is done.
    let commits = desk.commits();
    let mut publisher = desk.open().expect("a publisher");
    let path = desk.file(paths[0].0, &a);
    assert!(!put(&mut publisher, &path, paths[0].0).expect("there"));
    assert!(!publisher.put_all(&desk.small()).expect("there"));
    let again = publisher.finish(true).expect("nothing to do");
    assert_eq!((again.commit, again.pull_request, desk.commits()), (published.commit, None, commits));
}

#[test]
fn an_interrupted_run_is_gone_on_with() {
    let desk = Desk::new();
    let (a, b) = (desk.file("a.gguf", &noise(3, 1 << 20)), desk.file("b.gguf", &noise(4, 1 << 20)));
    let mut publisher = desk.open().expect("a publisher");
    put(&mut publisher, &a, "a.gguf").expect("uploaded");
    desk.cancel.store(true, Ordering::Relaxed);
    assert!(matches!(put(&mut publisher, &b, "b.gguf"), Err(hub::Error::Interrupted)));
    drop(publisher);
    desk.cancel.store(false, Ordering::Relaxed);

    let tokens = desk.mock.stats().count("GET", "xet-write-token");
    let mut publisher = desk.open().expect("a publisher");
    assert!(!put(&mut publisher, &a, "a.gguf").expect("there"));
    assert_eq!(desk.mock.stats().count("GET", "xet-write-token"), tokens, "nothing is uploaded twice");
    assert!(put(&mut publisher, &b, "b.gguf").expect("uploaded"));
    let published = publisher.finish(true).expect("published");
    assert_eq!(published.pull_request, Some(1));
    let paths = desk.mock.paths(REPO, "main").expect("main");
    assert!(paths.contains(&"a.gguf".to_owned()) && paths.contains(&"b.gguf".to_owned()), "{paths:?}");

    // Another job begins a pull request of its own.
    let wish = Wish { job: "cd".repeat(32), ..Desk::wish() };
    let mut other = desk.open_as(Some(TOKEN), wish).expect("a publisher");
    let changed = desk.file("a.gguf", &noise(5, 1 << 20));
    put(&mut other, &changed, "a.gguf").expect("uploaded");
    assert_eq!(other.finish(true).expect("published").pull_request, Some(2));
}

#[test]
fn a_pull_request_can_be_left_open() {
    let desk = Desk::new();
    let mut publisher = desk.open().expect("a publisher");
    publisher.put_all(&desk.small()).expect("uploaded");
    let before = desk.mock.head(REPO, "main");
    let published = publisher.finish(false).expect("uploaded");
    assert_eq!(published.url, format!("{}/{REPO}/discussions/1", desk.mock.endpoint()));
    assert_eq!(Some(published.commit), desk.mock.head(REPO, "refs/pr/1"));
    assert_eq!(desk.mock.head(REPO, "main"), before);
}

#[test]
fn lost_answers_and_passing_failures_cost_no_second_pull_request() {
    let desk = Desk::new();
    let a = desk.file("a.gguf", &noise(6, 1 << 20));
    let mut publisher = desk.open().expect("a publisher");
    desk.mock.fault(Fault::new("/preupload/", Kind::TooManyRequests { retry_after: Some(0) }));
    desk.mock.fault(Fault::new("xet-write-token", Kind::ServerError));
    desk.mock.fault(Fault::new("/commit/main", Kind::LoseAnswer).method("POST"));
    put(&mut publisher, &a, "a.gguf").expect("uploaded");
    desk.mock.fault(Fault::new("/merge", Kind::LoseAnswer).method("POST"));
    let published = publisher.finish(true).expect("published");
    assert_eq!((published.pull_request, desk.commits()), (Some(1), 1));
    assert_eq!(desk.bytes("main", "a.gguf").len(), 1 << 20);
}

#[test]
fn a_strangers_pull_request_is_left_alone() {
    let desk = Desk::new();
    desk.mock
        .add_repo(RepoSpec::new(REPO).file(".gitattributes", "*.gguf filter=lfs diff=lfs merge=lfs -text\n"));
    let stranger = "hf_stranger0123456789";
    desk.mock.add_token(stranger, TokenSpec { user: "stranger".to_owned(), ..TokenSpec::write() });
    let mut theirs = desk.open_as(Some(stranger), Desk::wish()).expect("a publisher");
    theirs.put_all(&[("evil.md".to_owned(), desk.file("evil.md", b"evil"))]).expect("uploaded");
    drop(theirs);
    let mut publisher = desk.open().expect("a publisher");
    publisher.put_all(&desk.small()).expect("uploaded");
    assert_eq!(publisher.finish(true).expect("published").pull_request, Some(2));
    assert!(!desk.mock.paths(REPO, "main").expect("main").contains(&"evil.md".to_owned()));
}

#[test]
fn without_xet_large_files_are_refused() {
    let desk = Desk::with(Options { transfer: "basic".to_owned(), ..Options::default() });
    let a = desk.file("a.gguf", &noise(7, 11 << 20));
    let mut publisher = desk.open().expect("a publisher");
    let error = put(&mut publisher, &a, "a.gguf").expect_err("no Xet").to_string();
    for words in ["a.gguf", "11534336 bytes", "basic", "Xet"] {
        assert!(error.contains(words), "{words} in {error}");
    }
    let error = publisher.put_all(&[("tokenizer.json".to_owned(), a)]).expect_err("no Xet").to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    assert_eq!(desk.commits(), 0);
}

#[test]
fn what_may_not_be_done_is_said_without_the_token() {
    let desk = Desk::new();
    let mut errors = Vec::new();
    let mut refused = |result: hub::Result<Publisher>, words: &str| {
        let error = result.err().expect(words).to_string();
        assert!(error.contains(words), "{words} in {error}");
        errors.push(error);
    };
    refused(desk.open_as(None, Desk::wish()), "set HF_TOKEN");
    refused(desk.open_as(Some("hf_unknown0123456789"), Desk::wish()), "does not accept the token");
    let reader = "hf_reader0123456789";
    desk.mock.add_token(reader, TokenSpec::read());
    refused(desk.open_as(Some(reader), Desk::wish()), "make one that may write");
    desk.mock.add_repo(RepoSpec::new(REPO));
    refused(desk.open_as(Some(TOKEN), Wish { private: true, ..Desk::wish() }), "is public");

    let mut publisher = desk.open_as(Some(reader), Desk::wish()).expect("it may look");
    let error = publisher.put_all(&desk.small()).expect_err("it may not write").to_string();
    assert!(error.contains("may write"), "{error}");
    errors.push(error);
    let a = desk.file("a.gguf", b"1234");
    let mut publisher = desk.open().expect("a publisher");
    for (name, bytes, words) in [("a.gguf", 5, "has 4 bytes, not 5"), ("../a.gguf", 4, "no name")] {
        let error = publisher.put(&a, name, bytes, &digest::of_bytes(b"1234")).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        errors.push(error);
    }
    assert!(errors.iter().all(|error| !error.contains("0123456789")), "{errors:?}");
}

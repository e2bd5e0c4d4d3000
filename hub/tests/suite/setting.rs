//! A mock Hub with a small model, a cache of its own, and a client for both.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use halfbyte_hub as hub;
use hub::settings::{Settings, Token};
use hub::snapshot::Snapshot;
use hub::{Client, Named};
use mock_hub::{MockHub, Options, RepoSpec};

/// The model's repository.
pub const REPO: &str = "some-owner/Some-Model";
/// Bytes of its first shard: some requests' worth, and a rest.
pub const SHARD: usize = (24 << 20) + 12345;

/// Bytes that are the same every time, and no run of them like another.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
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

/// A safetensors file with one tensor of `len` bytes.
pub fn shard(name: &str, seed: u64, len: usize) -> Vec<u8> {
    let header = format!("{{\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{len}],\"data_offsets\":[0,{len}]}}}}");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(noise(seed, len));
    bytes
}

/// Two shards, their index, a configuration, and things that no model needs.
pub fn spec() -> RepoSpec {
    let index =
        r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    RepoSpec::new(REPO)
        .file("config.json", r#"{"model_type":"llama"}"#)
        .file("model.safetensors.index.json", index)
        .file("model-00001-of-00002.safetensors", shard("a", 1, SHARD))
        .file("model-00002-of-00002.safetensors", shard("b", 2, 3 << 20))
        .file("README.md", "---\nlicense: mit\n---\n")
        .file("pytorch_model.bin", noise(3, 5 << 20))
        .file("original/consolidated.safetensors", shard("c", 4, 100))
}

/// All of it.
pub struct Setting {
    pub mock: MockHub,
    pub home: tempfile::TempDir,
    pub client: Arc<Client>,
    pub cancel: Arc<AtomicBool>,
}

impl Setting {
    pub fn new(spec: RepoSpec) -> Setting {
        Setting::with(spec, None)
    }

    pub fn with(spec: RepoSpec, token: Option<&str>) -> Setting {
        let mock = MockHub::start(Options::default()).expect("a mock");
        mock.add_repo(spec);
        let home = tempfile::tempdir().expect("a home");
        let cancel = Arc::new(AtomicBool::new(false));
        let client = client(&mock, &home, token, &cancel);
        Setting { mock, home, client, cancel }
    }

    /// The settings of another client for the same place.
    pub fn again(&self, token: Option<&str>) -> Arc<Client> {
        self.cancel.store(false, Ordering::Relaxed);
        client(&self.mock, &self.home, token, &self.cancel)
    }

    pub fn find(&self) -> hub::Result<Snapshot> {
        find(&self.client, REPO)
    }

    /// Fetches the model, and gives the bytes of its shards.
    pub fn fetch(&self) -> hub::Result<Vec<Vec<u8>>> {
        let snapshot = self.find()?;
        let source = snapshot.fetched(&self.client, &hub::progress::Silent)?;
        let read =
            |file: &hub::api::RemoteFile| std::fs::read(source.path().join(&file.path)).expect("a file");
        Ok(snapshot.weights.iter().map(read).collect())
    }

    /// Whether the cache has the wrong bytes anywhere under a final name.
    pub fn holds_only_what_it_says(&self) -> bool {
        let blobs =
            self.home.path().join("hub").join(format!("models--{}", REPO.replace('/', "--"))).join("blobs");
        let entries = std::fs::read_dir(blobs).expect("blobs").map(|entry| entry.expect("entry").path());
        entries.filter(|path| !path.to_string_lossy().contains("incomplete")).all(|path| {
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            let like = match name.len() {
                64 => hub::api::Hash::Sha256(name.clone()),
                _ => hub::api::Hash::GitBlob(name.clone()),
            };
            hub::transfer::hash_of(&self.client, &path, &like).expect("hash") == name
        })
    }
}

pub fn find(client: &Client, repo: &str) -> hub::Result<Snapshot> {
    Snapshot::find(client, &Named::parse(repo)?, &hub::progress::Silent)
}

fn client(
    mock: &MockHub,
    home: &tempfile::TempDir,
    token: Option<&str>,
    cancel: &Arc<AtomicBool>,
) -> Arc<Client> {
    let settings = Settings {
        endpoint: mock.endpoint(),
        token: token.and_then(Token::new),
        home: home.path().to_owned(),
        cache: home.path().join("hub"),
        offline: false,
    };
    Arc::new(Client::new(settings, Arc::clone(cancel)))
}

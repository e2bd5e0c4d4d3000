//! DeepSeek-R1 with weights of our own making: every tensor's name, type and shape, 163 shards, 689 GB, no disk.

mod layout;
mod oids;
mod shard;
mod tables;
mod tensors;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

use crate::content::Content;
use crate::repo::RepoSpec;

use oids::Oids;
use shard::Shard;
use tables::Tables;
use tensors::Tensor;

/// How many shards there are.
pub const SHARDS: usize = 163;

/// How many tensors.
pub const TENSORS: usize = 91_991;

/// Bytes of all tensors.
pub const DATA_BYTES: u64 = 688_574_839_360;

/// Bytes of all shards, as the published ones have them: 11,888,393 for headers.
pub const FILE_BYTES: u64 = 688_586_727_753;

/// The configuration of the published model.
const CONFIG: &str = include_str!("config.json");

const CARD: &str = "---\nlicense: mit\nlibrary_name: transformers\n---\n# Synthetic DeepSeek-R1\n\n\
    The shapes of DeepSeek-R1, filled with random numbers.\n";

/// DeepSeek-R1's files, their weights drawn from the seed. Needs half a second and 40 MB.
///
/// Shards' SHA-256 are computed when they are first asked for, three to six seconds each, and kept in
/// `cache/oids-SEED.json`: a listing needs them all, so compute them ahead with [`hash_deepseek_r1`].
///
/// # Errors
/// If the cache folder can't be made.
pub fn deepseek_r1(seed: u64, cache: &Path) -> io::Result<RepoSpec> {
    Ok(repo("deepseek-ai/DeepSeek-R1", CONFIG, shards(seed, cache)?))
}

/// A part of it as a model of its own: embedding, head and these layers, of which the first three must be the dense ones (0 to 2),
/// at their real shapes. Its shards are hashed when they are first listed.
///
/// # Errors
/// If the cache folder can't be made.
pub fn deepseek_r1_part(seed: u64, cache: &Path, layers: &[u64]) -> io::Result<RepoSpec> {
    let mut config: Map<String, Value> = serde_json::from_str(CONFIG)?;
    config["num_hidden_layers"] = layers.len().into();
    config["num_nextn_predict_layers"] = 0.into();
    let shards = shards_of(seed, cache, tensors::part(layers), 0)?;
    Ok(repo("deepseek-ai/DeepSeek-R1-part", &serde_json::to_string_pretty(&config)?, shards))
}

fn repo(id: &str, config: &str, shards: Vec<Shard>) -> RepoSpec {
    let mut spec = RepoSpec::new(id)
        // The published index has 9 MB and is no large file either.
        .lfs(|path, _| path.ends_with(".safetensors"))
        .file("README.md", CARD)
        .file("config.json", config)
        .file("model.safetensors.index.json", index(&shards))
        .file(
            "generation_config.json",
            *include_bytes!("../../../fixtures/models/tiny-deepseek/generation_config.json"),
        )
        .file("tokenizer.json", *include_bytes!("../../../fixtures/models/tiny-deepseek/tokenizer.json"))
        .file(
            "tokenizer_config.json",
            *include_bytes!("../../../fixtures/models/tiny-deepseek/tokenizer_config.json"),
        );
    for shard in shards {
        let name = shard.name().to_owned();
        spec = spec.content(&name, Arc::new(shard));
    }
    spec
}

/// Computes the SHA-256 of all shards that are not in the cache yet, on so many threads. `progress` hears how many
/// bytes of [`FILE_BYTES`] are done.
///
/// # Errors
/// If the cache can't be written.
pub fn hash_deepseek_r1(
    seed: u64,
    cache: &Path,
    threads: usize,
    progress: impl Fn(u64) + Sync,
) -> io::Result<()> {
    let shards = shards(seed, cache)?;
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || {
        while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut left = shard.len();
            let tell = |bytes: u64| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            shard.hash(&mut |bytes| {
                left -= bytes;
                tell(bytes);
            })?;
            // What was in the cache went by at once.
            tell(left);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("a thread that hashes"))
    })
}

fn shards(seed: u64, cache: &Path) -> io::Result<Vec<Shard>> {
    shards_of(seed, cache, tensors::all(), FILE_BYTES)
}

/// The shards of some tensors, filled up to a number of bytes in all.
fn shards_of(seed: u64, cache: &Path, groups: Vec<Vec<Tensor>>, bytes: u64) -> io::Result<Vec<Shard>> {
    let tables = Arc::new(Tables::new(seed));
    let oids = Arc::new(Oids::open(cache, seed)?);
    let shards = layout::shards(groups);
    let count = shards.len();
    let plain: u64 = shards.iter().map(|(header, data)| 8 + header.len() as u64 + data.bytes()).sum();
    // How the published shards are cut is not known here, so their headers can't be the same. They get spaces at the
    // end to be as long in all. The published sum is odd, so one header's length is no multiple of eight there either.
    let spare = bytes.saturating_sub(plain);
    let each = spare / count as u64 / 8 * 8;
    let last = spare - each * (count as u64 - 1);
    let shard = |(at, (mut header, data)): (usize, (String, layout::Data))| {
        let spaces = if at + 1 == count { last } else { each };
        header.extend(std::iter::repeat_n(' ', spaces as usize));
        let name = format!("model-{:05}-of-{count:06}.safetensors", at + 1);
        Shard::new(name, &header, data, tables.clone(), oids.clone())
    };
    Ok(shards.into_iter().enumerate().map(shard).collect())
}

/// Says in which file each tensor is.
fn index(shards: &[Shard]) -> String {
    let total: u64 = shards.iter().flat_map(Shard::tensors).map(Tensor::bytes).sum();
    let mut map = Map::new();
    for shard in shards {
        for tensor in shard.tensors() {
            map.insert(tensor.name.clone(), Value::from(shard.name()));
        }
    }
    map.sort_keys();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    serde_json::to_string_pretty(&index).expect("strings and a number")
}

/// Sixty-four bits that look random, for a number.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_totals_are_those_of_the_published_model() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(1, folder.path()).unwrap();
        assert_eq!(shards.len(), SHARDS);
        assert_eq!(shards.iter().map(|shard| shard.tensors().len()).sum::<usize>(), TENSORS);
        let data: u64 = shards.iter().flat_map(Shard::tensors).map(|tensor| tensor.bytes()).sum();
        assert_eq!(data, DATA_BYTES);
        assert_eq!(shards.iter().map(Shard::len).sum::<u64>(), FILE_BYTES);
        for shard in &shards {
            let names: Vec<&str> = shard.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
            for name in names.iter().filter_map(|name| name.strip_suffix("_scale_inv")) {
                assert!(names.contains(&name), "{name} is with its scales");
            }
        }
        let first = shards[0].tensors();
        let last = shards[SHARDS - 1].tensors();
        assert!(first.iter().any(|tensor| tensor.name == "model.embed_tokens.weight"));
        assert!(last.iter().any(|tensor| tensor.name == "model.layers.61.shared_head.head.weight"));
    }

    #[test]
    fn headers_are_as_the_library_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(1, folder.path()).unwrap();
        for shard in [&shards[0], &shards[80], &shards[SHARDS - 1]] {
            let mut length = [0; 8];
            shard.read_at(0, &mut length).unwrap();
            let mut header = vec![0; u64::from_le_bytes(length) as usize];
            shard.read_at(8, &mut header).unwrap();
            let header: Map<String, Value> = serde_json::from_slice(&header).unwrap();
            let mut end = 0;
            for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
                assert_eq!(tensor["data_offsets"][0], end, "{name}");
                end = tensor["data_offsets"][1].as_u64().unwrap();
            }
            assert_eq!(8 + u64::from_le_bytes(length) + end, shard.len());
            let types: Vec<&str> = header.values().filter_map(|tensor| tensor["dtype"].as_str()).collect();
            let order = |kind: &&str| ["F32", "BF16", "F8_E4M3"].iter().position(|other| other == kind);
            assert!(types.is_sorted_by_key(order));
        }
    }

    #[test]
    fn any_range_reads_the_same_bytes_and_tensors_differ() {
        let folder = tempfile::tempdir().unwrap();
        let shard = &shards(5, folder.path()).unwrap()[100];
        let mut whole = vec![0; 24 << 20];
        shard.read_at(0, &mut whole).unwrap();
        for (start, len) in
            [(0, 9), (7, 4096), (1_000_003, 5_000_001), (8_388_607, 2), (12_345_678, 8_000_000)]
        {
            let mut part = vec![0; len];
            shard.read_at(start, &mut part).unwrap();
            assert!(part == whole[start as usize..start as usize + len], "{start}");
        }
        let mut seen = std::collections::HashSet::new();
        for tensor in shard.tensors() {
            let mut bytes = vec![0; tensor.bytes().min(512) as usize];
            shard.read_at(shard.offset_of(tensor), &mut bytes).unwrap();
            if tensor.dtype == tensors::Dtype::F8 {
                assert!(bytes.iter().all(|byte| byte & 0x7f != 0x7f), "{} has no NaN", tensor.name);
            }
            assert!(seen.insert(bytes), "{}", tensor.name);
        }
        let other = &shards(6, folder.path()).unwrap()[100];
        let mut bytes = vec![0; 1 << 20];
        other.read_at(20 << 20, &mut bytes).unwrap();
        assert!(bytes != whole[20 << 20..21 << 20], "another seed");
        assert!(shard.read_at(shard.len() - 1, &mut [0; 2]).is_err());
    }

    #[test]
    fn scales_are_where_they_should_be() {
        let folder = tempfile::tempdir().unwrap();
        let shard = &shards(5, folder.path()).unwrap()[30];
        let values = |name: &str| -> Vec<f32> {
            let tensor = shard.tensors().iter().find(|tensor| tensor.name.contains(name)).unwrap();
            let mut bytes = vec![0; tensor.bytes() as usize];
            shard.read_at(shard.offset_of(tensor), &mut bytes).unwrap();
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        assert!(values("weight_scale_inv").iter().all(|scale| (1e-5..=1.1e-4).contains(scale)));
    }
}

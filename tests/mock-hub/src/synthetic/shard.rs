//! A shard's bytes: its header, then stretches of the tables.

use std::io;
use std::sync::Arc;

use crate::content::{Content, hex, sha256_of};
use sha2::{Digest, Sha256};

use super::layout::Data;
use super::oids::Oids;
use super::tables::Tables;
use super::tensors::Tensor;

/// To be counted up when the same seed gives other bytes: then hashes that were kept are not those of the shards.
const GENERATOR: u32 = 1;

/// A shard.
pub(super) struct Shard {
    name: String,
    /// The header's length and the header.
    head: Vec<u8>,
    data: Data,
    len: u64,
    identity: String,
    tables: Arc<Tables>,
    oids: Arc<Oids>,
}

impl Shard {
    pub(super) fn new(name: String, header: &str, data: Data, tables: Arc<Tables>, oids: Arc<Oids>) -> Shard {
        let mut head = (header.len() as u64).to_le_bytes().to_vec();
        head.extend(header.as_bytes());
        let len = head.len() as u64 + data.bytes();
        let (seed, layout) = (oids.seed(), hex(&Sha256::digest(&head)));
        let identity = hex(&Sha256::digest(format!("{GENERATOR} {seed} {name} {layout}")));
        Shard { name, head, data, len, identity, tables, oids }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn tensors(&self) -> &[Tensor] {
        &self.data.tensors
    }

    /// Where in the file a tensor begins.
    #[cfg(test)]
    pub(super) fn offset_of(&self, tensor: &Tensor) -> u64 {
        let at = self.data.tensors.iter().position(|other| other.number == tensor.number).unwrap();
        self.head.len() as u64 + self.data.offsets[at]
    }

    /// The SHA-256: from the cache, or computed and put there.
    pub(super) fn hash(&self, progress: &mut dyn FnMut(u64)) -> io::Result<String> {
        self.oids.get(&format!("{} {}", self.name, &self.identity[..16]), || sha256_of(self, progress))
    }
}

impl Content for Shard {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let head = self.head.len() as u64;
        let mut rest = buffer;
        if offset < head {
            let from = offset as usize;
            let step = rest.len().min(self.head.len() - from);
            rest[..step].copy_from_slice(&self.head[from..from + step]);
            rest = &mut rest[step..];
        }
        let mut place = offset.max(head) - head;
        // The last tensor that begins at or before the place.
        let mut at = self.data.offsets.partition_point(|&start| start <= place).saturating_sub(1);
        while !rest.is_empty() {
            let tensor = &self.data.tensors[at];
            let within = place - self.data.offsets[at];
            let step = rest.len().min((tensor.bytes() - within) as usize);
            let (table, first) = self.tables.of(tensor);
            let (now, later) = rest.split_at_mut(step);
            repeat(table, (first as u64 + within) % table.len() as u64, now);
            rest = later;
            place += step as u64;
            at += 1;
        }
        Ok(())
    }

    fn sha256(&self) -> String {
        self.hash(&mut |_| ()).expect("a shard's hash")
    }

    /// What is in a shard follows from its header, its name and the seed.
    fn identity(&self) -> String {
        self.identity.clone()
    }
}

/// Reads a table round and round.
fn repeat(table: &[u8], from: u64, mut buffer: &mut [u8]) {
    let mut from = from as usize;
    while !buffer.is_empty() {
        let step = buffer.len().min(table.len() - from);
        buffer[..step].copy_from_slice(&table[from..from + step]);
        buffer = &mut buffer[step..];
        from = 0;
    }
}

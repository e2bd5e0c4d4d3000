//! Which tensors share a shard, and where in it they lie.

use std::fmt::Write as _;

use super::tensors::Tensor;

/// A shard is closed when what comes next would make it longer. Anything from 4.244 to 4.272 GB gives as many as
/// were published.
const LIMIT: u64 = 4_258_000_000;

/// A shard's tensors in the order of their bytes, and where each begins.
pub(super) struct Data {
    pub(super) tensors: Vec<Tensor>,
    pub(super) offsets: Vec<u64>,
}

impl Data {
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }
}

/// Every shard's header, padded to a multiple of eight, and its tensors.
pub(super) fn shards(groups: Vec<Vec<Tensor>>) -> Vec<(String, Data)> {
    cut(groups, LIMIT).into_iter().map(lay_out).collect()
}

fn cut(groups: Vec<Vec<Tensor>>, limit: u64) -> Vec<Vec<Tensor>> {
    let mut shards: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut filled = 0;
    for group in groups {
        let bytes: u64 = group.iter().map(Tensor::bytes).sum();
        if filled > 0 && filled + bytes > limit {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.extend(group);
        }
    }
    shards
}

/// As the safetensors library does it: types of larger alignment first, then by name.
fn lay_out(mut tensors: Vec<Tensor>) -> (String, Data) {
    tensors.sort_by(|one, other| (one.dtype, &one.name).cmp(&(other.dtype, &other.name)));
    let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for tensor in &tensors {
        let start = end;
        end += tensor.bytes();
        offsets.push(start);
        let (name, dtype) = (&tensor.name, tensor.dtype.name());
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let shape = shape.join(",");
        let _ = write!(
            header,
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}"
        );
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    (header, Data { tensors, offsets })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{SHARDS, tensors};

    #[test]
    fn the_limit_gives_as_many_shards_as_were_published() {
        let shards = cut(tensors::all(), LIMIT);
        assert_eq!(shards.len(), SHARDS);
        let longest = shards.iter().map(|shard| shard.iter().map(Tensor::bytes).sum()).max();
        assert!(longest <= Some(LIMIT), "{longest:?}");
    }
}

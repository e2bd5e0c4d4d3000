//! GPTQ's `g_idx`: which group of columns each column belongs to.
//!
//! Without `desc_act` columns are in order: column k is in group k / g. With it they were quantized by importance, and the groups were
//! formed in that order: each has g columns from anywhere. (GPTQModel: `quantization/gptq.py`.)

use crate::error::Result;
use crate::joined::malformed;
use crate::safetensors::Safetensors;
use crate::tensor::{Dtype, TensorId, TensorSource};

/// The stored tensor, and what it must say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupIndex {
    /// I32 [columns].
    pub stored: TensorId,
    pub columns: u64,
    /// Of the same size each.
    pub groups: u64,
}

impl GroupIndex {
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if the tensor is none of one integer for each column.
    pub fn new(stored: &Safetensors, index: TensorId, columns: u64, groups: u64) -> Result<GroupIndex> {
        let meta = stored.meta(index);
        if matches!(meta.dtype, Dtype::Other { name: "I32", .. }) && meta.shape == [columns] {
            return Ok(GroupIndex { stored: index, columns, groups });
        }
        let reason = format!("{} is {} {:?}, not I32 [{columns}]", meta.name, meta.dtype, meta.shape);
        Err(malformed(stored, index, reason))
    }

    /// The group of every column.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if there is no such group, or groups have other sizes.
    pub fn read(&self, stored: &Safetensors) -> Result<Vec<u32>> {
        let mut bytes = vec![0; stored.meta(self.stored).len as usize];
        stored.read_at(self.stored, 0, &mut bytes)?;
        let wrong = |what: String| {
            let name = &stored.meta(self.stored).name;
            Err(malformed(stored, self.stored, format!("{name} is no permutation: {what}")))
        };
        let index: Vec<u32> = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let mut sizes = vec![0; self.groups as usize];
        for (column, &group) in index.iter().enumerate() {
            match sizes.get_mut(group as usize) {
                Some(size) => *size += 1,
                None => {
                    let (group, groups) = (group as i32, self.groups);
                    return wrong(format!("column {column} is in group {group} of {groups}"));
                }
            }
        }
        let size = self.columns / self.groups;
        match sizes.iter().position(|&found| found != size) {
            None => Ok(index),
            Some(group) => wrong(format!("group {group} has {} columns instead of {size}", sizes[group])),
        }
    }

    /// Holds the columns to be in order.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn check_order(&self, stored: &Safetensors) -> Result<()> {
        let size = self.columns / self.groups;
        let out_of_order = |(column, group): (usize, &u32)| column as u64 / size != u64::from(*group);
        let index = self.read(stored)?;
        let Some(column) = index.iter().enumerate().position(out_of_order) else { return Ok(()) };
        let reason = format!(
            "{} says that column {column} is in group {}, but config.json that groups are in order: desc_act should be true",
            stored.meta(self.stored).name,
            index[column]
        );
        Err(malformed(stored, self.stored, reason))
    }
}

//! What a pass has to do, in the order in which it does it: that of the source, so that each of its files is read in one go and
//! not needed any more. Output tensors that are stacks are written piece by piece, wherever their pieces come from.

use std::collections::{BTreeMap, HashMap, HashSet};

use formats::{Layout, TensorSource, layout::Placement, scales::Scales};

use crate::{
    encode::Stats,
    journal::{Entry, PartEntry},
    outlet::Shipped,
    segment::Segment,
    tile::Tile,
};

/// What of an output an earlier run has written, as far as its bytes are there or were taken away.
#[derive(Debug, Default)]
pub struct Kept {
    /// Tensors.
    pub entries: Vec<Entry>,
    /// Segments of tensors that are not whole.
    pub parts: Vec<PartEntry>,
    /// Files that were taken away.
    pub shipped: Vec<Shipped>,
    /// Of planes in files that were taken away: their hash, by tensor and plane.
    pub gone: HashMap<(usize, usize), String>,
}

/// The work of a pass.
#[derive(Debug, Default)]
pub struct Work {
    /// The segments that are to be written, in order: each is a step.
    pub segments: Vec<Segment>,
    /// Their tiles, in order.
    pub tiles: Vec<Tile>,
    /// For each tensor that is not whole: what was found in each of its segments, as far as they are written.
    pub tensors: BTreeMap<usize, Vec<Option<Stats>>>,
}

impl Work {
    /// Puts the segments in the order in which they are read: computed ones, then by the place of their first byte.
    pub(crate) fn sort(&mut self, source: &dyn TensorSource) {
        self.segments.sort_by_cached_key(|segment| (segment.place(source), segment.tensor, segment.index));
    }

    /// Whether a tensor has several segments.
    pub(crate) fn is_cut(&self, tensor: usize) -> bool {
        self.tensors.get(&tensor).is_some_and(|segments| segments.len() > 1)
    }

    /// For each step, the files of the source that it reads.
    pub fn expected(&self, source: &dyn TensorSource, scales: &Scales) -> Vec<Vec<usize>> {
        self.segments.iter().map(|segment| segment.files(source, scales)).collect()
    }

    /// For each output file, how many of its tensors are still to be written.
    pub(crate) fn left(&self, layout: &Layout) -> Vec<usize> {
        let mut left = vec![0; layout.files.len()];
        for &tensor in self.tensors.keys() {
            files_of(&layout.planes[tensor]).for_each(|file| left[file] += 1);
        }
        left
    }

    /// The most bytes of output files that are on the disk at a time if each is made at the first step that writes to it and
    /// taken away after the last one. Those that are `open` are there from the beginning, those that are `gone` never.
    pub(crate) fn peak(&self, layout: &Layout, open: &[usize], gone: &HashSet<usize>) -> u64 {
        let written = |segment: &Segment| files_of(&layout.planes[segment.tensor]);
        let mut last: HashMap<usize, usize> = HashMap::new();
        for (step, segment) in self.segments.iter().enumerate() {
            written(segment).filter(|file| !gone.contains(file)).for_each(|file| _ = last.insert(file, step));
        }
        let len = |file: usize| layout.files[file].len;
        let mut there: HashSet<usize> = open.iter().copied().filter(|file| last.contains_key(file)).collect();
        let mut bytes: u64 = there.iter().copied().map(len).sum();
        let mut peak = bytes;
        for (step, segment) in self.segments.iter().enumerate() {
            for file in written(segment).filter(|file| last.contains_key(file)) {
                if there.insert(file) {
                    bytes += len(file);
                }
            }
            peak = peak.max(bytes);
            for file in written(segment).filter(|file| last.get(file) == Some(&step)) {
                if there.remove(&file) {
                    bytes -= len(file);
                }
            }
        }
        peak
    }
}

/// The files that hold a tensor's planes, each once.
pub(crate) fn files_of(planes: &[Placement]) -> impl Iterator<Item = usize> {
    let mut files: Vec<usize> = planes.iter().map(|plane| plane.file).collect();
    files.sort_unstable();
    files.dedup();
    files.into_iter()
}

#[cfg(test)]
mod tests {
    use formats::layout::OutputFile;

    use super::*;
    use crate::segment::Pieces;

    /// Files of 10, 20, 30 and 40 bytes; tensor `i` lies in file `i`, but for 4, which has planes in 0 and 1.
    fn layout() -> Layout {
        let file = |at: u64| OutputFile { name: at.to_string(), header: vec![], len: 10 * (at + 1) };
        let plane = |file| Placement { file, offset: 0, len: 1 };
        let mut planes: Vec<Vec<Placement>> = (0..4).map(|file| vec![plane(file)]).collect();
        planes.push(vec![plane(0), plane(1)]);
        Layout { files: (0..4).map(file).collect(), planes, ..Layout::default() }
    }

    fn work(tensors: &[usize]) -> Work {
        let segment = |&tensor| Segment {
            tensor,
            index: 0,
            first_weight: 0,
            weights: 1,
            pieces: Pieces::Values(vec![0.0]),
        };
        Work {
            segments: tensors.iter().map(segment).collect(),
            tensors: tensors.iter().map(|&tensor| (tensor, vec![None])).collect(),
            ..Work::default()
        }
    }

    #[test]
    fn the_peak_is_what_is_begun_and_not_taken() {
        let peak = |tensors: &[usize], open: &[usize], gone: &[usize]| {
            work(tensors).peak(&layout(), open, &gone.iter().copied().collect())
        };
        assert_eq!(peak(&[0, 1, 2, 3], &[], &[]), 40);
        assert_eq!(peak(&[0, 1, 2, 3, 0], &[], &[]), 50, "the first waits for its end");
        assert_eq!(peak(&[3, 1, 3, 0], &[], &[]), 60);
        assert_eq!(peak(&[0, 3, 4], &[], &[]), 50);
        assert_eq!(peak(&[3, 0, 2], &[2], &[]), 70, "an earlier run began it");
        assert_eq!(peak(&[3, 0], &[2], &[]), 40, "an earlier run ended it");
        assert_eq!(peak(&[3, 4, 3], &[], &[0]), 60, "written again, but not there any more");
        assert_eq!(peak(&[], &[], &[]), 0);
    }

    #[test]
    fn a_file_is_whole_when_the_last_of_its_tensors_is() {
        assert_eq!(work(&[0, 1, 4]).left(&layout()), [2, 2, 0, 0]);
    }
}

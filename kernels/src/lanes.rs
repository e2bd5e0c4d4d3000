//! Sixteen groups side by side: one group of weights per lane.
//!
//! Encoders search the scale of sixteen groups at once. With one group per lane there are no sums across lanes and no
//! branches, and what a group becomes does not depend on its neighbours, nor on where a tensor was cut into tiles.
//! A *group* is any run of weights that shares a scale: a block of 32, a sub-block of 16.

use crate::simd::{LANES, Simd};
use crate::superblock::{LEAST_IMPORTANCE, power_below_one};

/// Puts sixteen groups of `group` weights side by side: `out[j][l] = src[(first + l) * group + j]`, zeros beyond the
/// end of `src`. `out` has `group` elements.
#[inline(always)]
pub fn gather<S: Simd>(s: S, src: &[f32], group: usize, first: usize, out: &mut [[f32; LANES]]) {
    debug_assert_eq!(out.len(), group);
    let src = src.get(first * group..).unwrap_or_default();
    if let Some(src) = src.get(..LANES * group) {
        let starts: [usize; LANES] = std::array::from_fn(|l| l * group);
        columns(s, src, group, &starts, out);
    } else {
        for (j, row) in out.iter_mut().enumerate() {
            *row = std::array::from_fn(|l| src.get(l * group + j).copied().unwrap_or(0.0));
        }
    }
}

/// The importance of sixteen groups' weights, laid out as [`gather`] does. Group `g` starts at column
/// `(g * group) % importance.len()`; the row length must be a multiple of `group`. All ones if there is no importance.
#[inline(always)]
pub fn gather_importance<S: Simd>(
    s: S,
    importance: Option<&[f32]>,
    group: usize,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    debug_assert_eq!(out.len(), group);
    let Some(importance) = importance else {
        out.fill([1.0; LANES]);
        return;
    };
    debug_assert!(importance.len().is_multiple_of(group));
    let mut column = first * group % importance.len();
    let mut starts = [0; LANES];
    for start in &mut starts {
        *start = column;
        column += group;
        if column == importance.len() {
            column = 0;
        }
    }
    columns(s, importance, group, &starts, out);
}

/// The importance of sixteen groups for a search: like [`gather_importance`], relative to the largest of each group, and never
/// quite zero, so that a weight of no importance keeps its value where that costs nothing.
#[inline(always)]
pub(crate) fn relative_importance<S: Simd>(
    s: S,
    importance: Option<&[f32]>,
    group: usize,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    gather_importance(s, importance, group, first, out);
    let zero = s.splat(0.0);
    let mut largest = zero;
    for row in &*out {
        largest = s.max(s.load(row), largest);
    }
    let unit = power_below_one(s, largest);
    for row in out {
        // `max` also turns NaN into zero.
        let importance = s.max(s.load(row), zero);
        s.store(s.mul_add(importance, unit, s.splat(LEAST_IMPORTANCE)), row);
    }
}

/// `out[j][l] = src[starts[l] + j]`.
#[inline(always)]
fn columns<S: Simd>(s: S, src: &[f32], group: usize, starts: &[usize; LANES], out: &mut [[f32; LANES]]) {
    let rows: [&[f32]; LANES] = std::array::from_fn(|l| &src[starts[l]..starts[l] + group]);
    let (tiles, rest) = out.as_chunks_mut::<LANES>();
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut square = [s.splat(0.0); LANES];
        for (v, row) in square.iter_mut().zip(rows) {
            *v = s.load(&row.as_chunks::<LANES>().0[t]);
        }
        s.transpose(&mut square);
        for (row, &v) in tile.iter_mut().zip(&square) {
            s.store(v, row);
        }
    }
    let done = tiles.len() * LANES;
    for (j, row) in rest.iter_mut().enumerate() {
        *row = std::array::from_fn(|l| rows[l][done + j]);
    }
}

/// The way back for codes: byte `j` of group `l` is `codes[j][l]` and goes to `out[l * stride + j]`, for the first
/// `lanes` groups. A `stride` larger than `codes.len()` leaves room between groups untouched, so that codes can go
/// straight to their place inside blocks.
#[inline(always)]
pub fn scatter<S: Simd>(s: S, codes: &[[u8; LANES]], lanes: usize, stride: usize, out: &mut [u8]) {
    let group = codes.len();
    let (tiles, rest) = codes.as_chunks::<LANES>();
    for (t, tile) in tiles.iter().enumerate() {
        let mut square = [s.splat(0.0); LANES];
        for (v, row) in square.iter_mut().zip(tile) {
            *v = s.from_bits(s.load_u8(row));
        }
        s.transpose(&mut square);
        for (l, &v) in square.iter().take(lanes).enumerate() {
            let group = &mut out[l * stride..l * stride + group];
            s.store_u8(s.bits(v), &mut group.as_chunks_mut::<LANES>().0[t]);
        }
    }
    for l in 0..lanes {
        for (j, row) in rest.iter().enumerate() {
            out[l * stride + tiles.len() * LANES + j] = row[l];
        }
    }
}

/// Four bytes of each lane (0..256) as one little-endian word.
#[inline(always)]
pub(crate) fn word_of<S: Simd>(s: S, bytes: [S::I32; 4]) -> S::I32 {
    let [a, b, c, d] = bytes;
    let low = s.or_i(a, s.shl_i::<8>(b));
    s.or_i(low, s.shl_i::<16>(s.or_i(c, s.shl_i::<8>(d))))
}

/// [`scatter`] of codes that are four to a word already ([`word_of`]): word `k` of group `l` is `words[k][l]` and goes to
/// `out[l * stride + 4 * k..]`.
#[inline(always)]
pub(crate) fn scatter_words(words: &[[i32; LANES]], lanes: usize, stride: usize, out: &mut [u8]) {
    for l in 0..lanes {
        let group = &mut out[l * stride..l * stride + 4 * words.len()];
        for (bytes, word) in group.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word[l].to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    /// Runs all three functions, so that every instruction set is tested through one kernel.
    struct All<'a> {
        src: &'a [f32],
        importance: Option<&'a [f32]>,
        group: usize,
        first: usize,
    }

    impl Kernel for All<'_> {
        type Output = (Vec<[f32; 16]>, Vec<[f32; 16]>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut weights = vec![[f32::NAN; 16]; self.group];
            let mut importance = weights.clone();
            gather(s, self.src, self.group, self.first, &mut weights);
            gather_importance(s, self.importance, self.group, self.first, &mut importance);
            (weights, importance)
        }
    }

    /// Every (index in the source, element, lane).
    fn places(group: usize, first: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..16 * group).map(move |i| (first * group + i, i % group, i / group))
    }

    #[test]
    fn gathers_groups_into_lanes() {
        let src: Vec<f32> = (0..32 * 40).map(|i| i as f32).collect();
        for isa in Isa::available() {
            for (group, first, len) in [
                (32, 0, 1280),
                (32, 3, 1280),
                (32, 30, 1280),
                (16, 5, 1280),
                (8, 1, 1280),
                (24, 2, 1272),
                (32, 60, 1280),
            ] {
                let (weights, ones) = isa.run(All { src: &src[..len], importance: None, group, first });
                for (at, j, l) in places(group, first) {
                    let want = if at < len { at as f32 } else { 0.0 };
                    assert_eq!(weights[j][l], want, "group {group} first {first} at {at}");
                }
                assert!(ones.iter().flatten().all(|&x| x == 1.0));
            }
        }
    }

    #[test]
    fn importance_repeats_with_every_row() {
        let importance: Vec<f32> = (0..160).map(|i| i as f32 + 0.5).collect();
        for isa in Isa::available() {
            for (group, first) in [(32, 0), (32, 7), (16, 9), (8, 33), (160, 2)] {
                let (_, got) = isa.run(All { src: &[], importance: Some(&importance), group, first });
                for (at, j, l) in places(group, first) {
                    assert_eq!(got[j][l], importance[at % 160]);
                }
            }
        }
    }

    struct Back<'a> {
        codes: &'a [[u8; 16]],
        lanes: usize,
        stride: usize,
        out: &'a mut [u8],
    }

    impl Kernel for Back<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            scatter(s, self.codes, self.lanes, self.stride, self.out);
        }
    }

    #[test]
    fn scatters_codes_back_to_groups() {
        for isa in Isa::available() {
            for (group, lanes, stride) in [(16, 16, 18), (32, 16, 32), (32, 5, 34), (20, 3, 20), (4, 16, 4)] {
                let codes: Vec<[u8; 16]> =
                    (0..group).map(|j| std::array::from_fn(|l| (j * 16 + l) as u8)).collect();
                let mut out = vec![0xee; (lanes - 1) * stride + group];
                isa.run(Back { codes: &codes, lanes, stride, out: &mut out });
                for (at, &byte) in out.iter().enumerate() {
                    let (l, j) = (at / stride, at % stride);
                    assert_eq!(byte, if j < group { (j * 16 + l) as u8 } else { 0xee });
                }
            }
        }
    }
}

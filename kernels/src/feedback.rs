//! Rounding with error feedback onto any format's own grid: each column makes up for the errors of those before it, under the
//! second moments of what the weights will be multiplied with ([`Factor`]), and each block's scales are searched in that metric.
//!
//! Sixteen rows are a vector, so what a row becomes does not depend on its neighbours. Block by block: the sums over the errors so far
//! say where its weights should be; the format's encoder gives scales for that (a weight of importance `L_jj²`, for that is
//! what its own error costs once later columns make up for the rest). Then those scales and a few multiples of them are *walked*: each
//! column rounded in its turn. What a walk leaves is linear in the scales (and in the offsets) once the codes are fixed, so each is
//! refitted by least squares and walked again, beside the encoder's scales for where the best walk wanted the weights to be. Of all
//! walks the one of least loss is stored.

use std::ops::Range;

use crate::factor::Factor;
use crate::format::{Encode, Format};
use crate::lattice::Lattice;
use crate::simd::{Isa, LANES};
use crate::walk::{Candidate, Lanes, Precision, Project, Refit, Rows, TOGETHER, Triangle, VECTORS, Walk};

/// Rows that are rounded side by side; less are padded.
pub const ROWS: usize = VECTORS * LANES;

/// Columns whose sums over all errors before them are taken together, unless blocks are longer.
const PANEL: usize = 256;

/// What the encoder's scales are multiplied with, for other candidates than themselves.
const MULTIPLES: [f32; TOGETHER - 1] = [0.96, 0.92, 1.04];

/// What the weights are multiplied with for other candidates, where scales are powers of two or the like.
const COARSE_MULTIPLES: [f32; TOGETHER - 1] = [0.7, 1.4, 0.5];

/// Times that candidates are walked together.
const WALKS: usize = 3;

/// Rounds `rows` `[n][k]` to `format`, into one byte slice per plane, and returns each row's loss `‖L δ‖²`, `δ` being the row less what its
/// bytes decode to.
///
/// `format` must have a [`Lattice`] and an encoder, and the factor's order must take block after block, each whole
/// ([`crate::factor::order`]). Weights must be finite.
pub fn round(isa: Isa, format: &Format, factor: &Factor, rows: &[f32], planes: &mut [&mut [u8]]) -> Vec<f64> {
    let (Some(lattice), Some(encode)) = (format.lattice, format.encode) else {
        panic!("{} has no codes to choose", format.name);
    };
    let (k, block) = (factor.k(), format.block);
    assert!(block.is_multiple_of(LANES) && k.is_multiple_of(block) && rows.len().is_multiple_of(k.max(1)));
    let blocks: Vec<Block> =
        (0..k).step_by(block).map(|first| Block::new(factor, first, block, lattice.group)).collect();
    let mut work = Work::new(isa, format, encode, lattice, factor);
    let mut losses = Vec::with_capacity(rows.len() / k.max(1));
    for (stripe, rows) in rows.chunks(ROWS * k.max(1)).enumerate() {
        let found = work.round(rows, stripe * ROWS, &blocks, planes);
        losses.extend_from_slice(&found[..rows.len() / k]);
    }
    losses
}

/// `‖L δ‖²` of each row of `original` `[n][k]` that became the same row of `decoded`.
pub fn losses(isa: Isa, factor: &Factor, original: &[f32], decoded: &[f32]) -> Vec<f64> {
    assert_eq!(original.len(), decoded.len());
    let k = factor.k();
    let mut out = Vec::with_capacity(original.len() / k.max(1));
    let (mut errors, mut sums) = (vec![Rows::default(); k], vec![Rows::default(); PANEL]);
    let mut residuals = sums.clone();
    for (original, decoded) in original.chunks(ROWS * k.max(1)).zip(decoded.chunks(ROWS * k.max(1))) {
        let n = original.len() / k;
        errors.fill(Rows::default());
        for (place, &column) in factor.order().iter().enumerate() {
            for r in 0..n {
                let at = r * k + column as usize;
                errors[place][r / LANES][r % LANES] = original[at] - decoded[at];
            }
        }
        let mut totals = [0.0; ROWS];
        for first in (0..k).step_by(PANEL) {
            let places = first..k.min(first + PANEL);
            let sums = &mut sums[..places.len()];
            sums.fill(Rows::default());
            isa.run(Project { factor, places: places.clone(), before: 0..first, errors: &errors, sums });
            let values = &errors[places];
            let out = &mut residuals[..values.len()];
            isa.run(Triangle { factor, first, sums, values, out });
            add_squares(out, &mut totals);
        }
        out.extend_from_slice(&totals[..n]);
    }
    out
}

fn add_squares(residuals: &[Rows], totals: &mut [f64; ROWS]) {
    for residuals in residuals {
        for (total, &x) in totals.iter_mut().zip(residuals.as_flattened()) {
            *total += f64::from(x) * f64::from(x);
        }
    }
}

/// What all rows share of one block.
struct Block {
    /// Its first place.
    first: usize,
    /// Its number within a row.
    number: usize,
    /// The column of each place, counted from the block's first.
    columns: Vec<usize>,
    /// The group of each place.
    groups: Vec<usize>,
    /// Of each column, in the order of the file.
    importance: Vec<f32>,
    /// `Σ_{i ≤ j, i in group} L_ji` for each place `j` and group.
    offset_sums: Vec<f32>,
}

impl Block {
    fn new(factor: &Factor, first: usize, block: usize, group: usize) -> Block {
        let order = &factor.order()[first..first + block];
        let number = order[0] as usize / block;
        let columns: Vec<usize> = order.iter().map(|&column| column as usize % block).collect();
        let whole = order.iter().all(|&column| column as usize / block == number);
        assert!(whole, "the order must take block after block");
        let groups: Vec<usize> = columns.iter().map(|column| column / group).collect();
        let mut importance = vec![0.0; block];
        let mut offset_sums = vec![0.0; block * (block / group)];
        for (j, sums) in offset_sums.chunks_exact_mut(block / group).enumerate() {
            let row = &factor.row(first + j)[first..];
            importance[columns[j]] = row[j] * row[j];
            for (x, &group) in row.iter().zip(&groups) {
                sums[group] += x;
            }
        }
        Block { first, number, columns, groups, importance, offset_sums }
    }

    fn places(&self) -> Range<usize> {
        self.first..self.first + self.columns.len()
    }
}

/// What rounding a stripe of rows works with.
struct Work<'a> {
    isa: Isa,
    format: &'a Format,
    encode: Encode,
    lattice: &'a Lattice,
    precision: Precision,
    factor: &'a Factor,
    /// What was rounded off each weight, place by place.
    errors: Vec<Rows>,
    /// A panel's sums over errors.
    sums: Vec<Rows>,
    /// A block's weights, place by place.
    weights: Vec<Rows>,
    /// A block's residuals, were it rounded to zeros; and once it is rounded.
    residuals: Vec<Rows>,
    /// Sixteen blocks, one after the other: where their weights should be, and what they became.
    blocks: Vec<f32>,
    candidates: Vec<Candidate>,
    /// The sixteen blocks as they are stored.
    chosen: Vec<Vec<u8>>,
}

impl<'a> Work<'a> {
    fn new(
        isa: Isa,
        format: &'a Format,
        encode: Encode,
        lattice: &'a Lattice,
        factor: &'a Factor,
    ) -> Work<'a> {
        let block = format.block;
        let candidate = Candidate::new(format.planes, block, block / lattice.group);
        Work {
            isa,
            format,
            encode,
            lattice,
            precision: Precision::of(format),
            factor,
            errors: vec![Rows::default(); factor.k()],
            sums: vec![Rows::default(); PANEL.next_multiple_of(block)],
            weights: vec![Rows::default(); block],
            residuals: vec![Rows::default(); block],
            blocks: vec![0.0; block * LANES],
            chosen: candidate.planes.clone(),
            candidates: vec![candidate; WALKS * TOGETHER],
        }
    }

    /// Rounds up to [`ROWS`] rows, of which the first is row `row` in the planes, and adds up their losses.
    fn round(&mut self, rows: &[f32], row: usize, blocks: &[Block], planes: &mut [&mut [u8]]) -> [f64; ROWS] {
        let (isa, factor, k) = (self.isa, self.factor, self.factor.k());
        let per_panel = self.sums.len() / self.format.block;
        let n = rows.len() / k;
        let mut losses = [0.0; ROWS];
        for panel in blocks.chunks(per_panel) {
            let start = panel[0].first;
            let end = start + panel.len() * self.format.block;
            self.sums.fill(Rows::default());
            self.project(start..end, 0..start, start);
            for block in panel {
                let (places, first) = (block.places(), block.first);
                self.project(places.clone(), start..first, start);
                self.weights.fill(Rows::default());
                for (r, row) in rows.chunks_exact(k).enumerate() {
                    let row = &row[block.number * self.format.block..];
                    for (weights, &column) in self.weights.iter_mut().zip(&block.columns) {
                        weights[r / LANES][r % LANES] = row[column];
                    }
                }
                let sums = &self.sums[first - start..][..places.len()];
                isa.run(Triangle { factor, first, sums, values: &self.weights, out: &mut self.residuals });
                for vector in 0..n.div_ceil(LANES) {
                    self.block(block, vector, start);
                    let lanes = (n - vector * LANES).min(LANES);
                    for ((plane, chosen), &bytes) in
                        planes.iter_mut().zip(&self.chosen).zip(self.format.planes)
                    {
                        for (l, chosen) in chosen.chunks_exact(bytes).take(lanes).enumerate() {
                            let at = (row + vector * LANES + l) * blocks.len() + block.number;
                            plane[at * bytes..][..bytes].copy_from_slice(chosen);
                        }
                    }
                }
                let sums = &self.sums[first - start..][..places.len()];
                isa.run(Triangle {
                    factor,
                    first,
                    sums,
                    values: &self.errors[places],
                    out: &mut self.residuals,
                });
                add_squares(&self.residuals, &mut losses);
            }
        }
        losses
    }

    /// Adds the errors of the places `before` to the sums of other places, of the panel that begins at place `start`.
    fn project(&mut self, places: Range<usize>, before: Range<usize>, start: usize) {
        let sums = &mut self.sums[places.start - start..places.end - start];
        self.isa.run(Project { factor: self.factor, places, before, errors: &self.errors, sums });
    }

    /// Rounds one block of a vector of rows; `start` is the first place of the panel. The bytes go to `chosen`, the errors to theirs.
    fn block(&mut self, block: &Block, vector: usize, start: usize) {
        let (isa, factor, first, size) = (self.isa, self.factor, block.first, block.columns.len());
        for walk in 0..WALKS {
            self.want(block, vector, start, walk);
            self.propose(block, vector, walk);
            let Some(candidates) = self.candidates[walk * TOGETHER..].first_chunk_mut::<TOGETHER>() else {
                unreachable!("as many as all walks take")
            };
            for candidate in &mut *candidates {
                read_steps(self.lattice, candidate);
            }
            let (levels, precision) = (self.lattice.levels, self.precision);
            let (groups, weights) = (&block.groups, &self.weights);
            let sums = &self.sums[first - start..][..size];
            isa.run(Walk { factor, first, levels, precision, groups, weights, sums, vector, candidates });
        }
        self.choose(block);
        let planes: Vec<&[u8]> = self.chosen.iter().map(Vec::as_slice).collect();
        (self.format.decode)(self.format, isa, &planes, &mut self.blocks);
        for (j, &column) in block.columns.iter().enumerate() {
            for l in 0..LANES {
                self.errors[first + j][vector][l] =
                    self.weights[j][vector][l] - self.blocks[l * size + column];
            }
        }
    }

    /// Where a block's weights should be: as the errors before the block leave them, and then as the best walk so far did.
    fn want(&mut self, block: &Block, vector: usize, start: usize, walks: usize) {
        let size = block.columns.len();
        let best: [usize; LANES] = std::array::from_fn(|l| self.best(l, walks));
        for (j, &column) in block.columns.iter().enumerate() {
            let place = block.first + j;
            let inverse = 1.0 / self.factor.row(place)[place];
            for (l, &best) in best.iter().enumerate() {
                let (mut weight, mut residual) =
                    (self.weights[j][vector][l], self.sums[place - start][vector][l]);
                if walks > 0 {
                    weight -= self.candidates[best].errors[j][l];
                    residual = self.candidates[best].residuals[j][l];
                }
                self.blocks[l * size + column] = residual.mul_add(inverse, weight);
            }
        }
    }

    /// Scales for the next walk: the encoder's for what is wanted, and multiples of these; later all but one are refits.
    fn propose(&mut self, block: &Block, vector: usize, walk: usize) {
        let (walked, candidates) = self.candidates.split_at_mut(walk * TOGETHER);
        let [first, others @ ..] = &mut candidates[..TOGETHER] else { unreachable!("several") };
        let encode = |weights: &[f32], candidate: &mut Candidate| {
            let mut planes: Vec<&mut [u8]> = candidate.planes.iter_mut().map(Vec::as_mut_slice).collect();
            (self.encode)(self.format, self.isa, weights, Some(&block.importance), &mut planes);
        };
        encode(&self.blocks, first);
        if self.lattice.rescale.is_none() {
            for (candidate, multiple) in others.iter_mut().zip(COARSE_MULTIPLES) {
                let scaled: Vec<f32> = self.blocks.iter().map(|x| x * multiple).collect();
                encode(&scaled, candidate);
            }
        } else if let Some(last) = walked.last_chunk::<TOGETHER>() {
            for (candidate, last) in others.iter_mut().zip(last) {
                let (whole, offset_sums) = (&self.residuals, &block.offset_sums);
                let factors = self.isa.run(Refit { whole, vector, offset_sums, candidate: last });
                rescale(self.lattice, last, candidate, &factors);
            }
        } else {
            for (candidate, multiple) in others.iter_mut().zip(MULTIPLES) {
                rescale(self.lattice, first, candidate, &[[multiple; LANES]; 2]);
            }
        }
    }

    /// The candidate of least loss in a lane, of those walked so far.
    fn best(&self, lane: usize, walks: usize) -> usize {
        let mut best = 0;
        for (at, candidate) in self.candidates[..walks * TOGETHER].iter().enumerate() {
            if candidate.loss[lane] < self.candidates[best].loss[lane] {
                best = at;
            }
        }
        best
    }

    /// Writes the best of all walks of each row.
    fn choose(&mut self, block: &Block) {
        let mut indices = vec![0; block.columns.len()];
        for l in 0..LANES {
            let best = &self.candidates[self.best(l, WALKS)];
            for (&column, index) in block.columns.iter().zip(&best.indices) {
                indices[column] = index[l];
            }
            for (chosen, best) in self.chosen.iter_mut().zip(&best.planes) {
                let bytes = best.len() / LANES;
                chosen[l * bytes..][..bytes].copy_from_slice(&best[l * bytes..][..bytes]);
            }
            (self.lattice.store)(&indices, &mut lane_mut(&mut self.chosen, l));
        }
    }
}

/// Block `lane` of the sixteen in each plane.
fn lane_mut(planes: &mut [Vec<u8>], lane: usize) -> Vec<&mut [u8]> {
    let mut out = Vec::with_capacity(planes.len());
    for plane in planes {
        let bytes = plane.len() / LANES;
        out.push(&mut plane[lane * bytes..][..bytes]);
    }
    out
}

/// Gives each lane's scales and offsets to its group's vectors.
fn read_steps(lattice: &Lattice, candidate: &mut Candidate) {
    let groups = candidate.scales.len();
    let (mut scales, mut offsets) = (vec![0.0; groups], vec![0.0; groups]);
    for l in 0..LANES {
        let mut planes = Vec::with_capacity(candidate.planes.len());
        for plane in &candidate.planes {
            let bytes = plane.len() / LANES;
            planes.push(&plane[l * bytes..][..bytes]);
        }
        (lattice.steps)(&planes, &mut scales, &mut offsets);
        for g in 0..groups {
            candidate.scales[g][l] = scales[g];
            candidate.offsets[g][l] = offsets[g];
        }
    }
}

/// Makes `to` what `from` is with scales and offsets multiplied by `factors`.
fn rescale(lattice: &Lattice, from: &Candidate, to: &mut Candidate, factors: &[Lanes; 2]) {
    to.planes.clone_from(&from.planes);
    if let Some(rescale) = lattice.rescale {
        for (l, (&scales, &offsets)) in factors[0].iter().zip(&factors[1]).enumerate() {
            rescale([scales, offsets], &mut lane_mut(&mut to.planes, l));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::order;
    use crate::factor::tests::{diagonal, moments};
    use crate::gemm::tests::noise;
    use crate::table;

    const K: usize = 512;

    fn formats() -> impl Iterator<Item = &'static Format> {
        table::all().filter(|format| format.lattice.is_some() && format.encode.is_some())
    }

    fn factor(format: &Format, h: &[f32]) -> Factor {
        let order = order(&diagonal(h, K), format.block);
        Factor::new(Isa::detect(), h.to_vec(), order, 0.01).unwrap()
    }

    fn buffers(format: &Format, weights: usize) -> Vec<Vec<u8>> {
        format.planes.iter().map(|bytes| vec![0; weights / format.block * bytes]).collect()
    }

    fn rounded(isa: Isa, format: &Format, factor: &Factor, rows: &[f32]) -> (Vec<Vec<u8>>, Vec<f64>) {
        let mut planes = buffers(format, rows.len());
        let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        let losses = round(isa, format, factor, rows, &mut out);
        (planes, losses)
    }

    fn decoded(format: &Format, planes: &[Vec<u8>], weights: usize) -> Vec<f32> {
        let mut out = vec![0.0; weights];
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        (format.decode)(format, Isa::detect(), &planes, &mut out);
        out
    }

    /// The sum of losses that the format's own encoder leaves.
    fn searched(format: &Format, factor: &Factor, importance: &[f32], rows: &[f32]) -> f64 {
        let mut planes = buffers(format, rows.len());
        let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
        format.encode.unwrap()(format, Isa::detect(), rows, Some(importance), &mut out);
        losses(Isa::detect(), factor, rows, &decoded(format, &planes, rows.len())).iter().sum()
    }

    #[test]
    fn losses_are_those_of_what_the_bytes_decode_to() {
        let (n, h) = (5, moments(K, &[3, 300]));
        let rows = noise(n * K, 11);
        for format in formats() {
            let factor = factor(format, &h);
            let (planes, got) = rounded(Isa::detect(), format, &factor, &rows);
            let decoded = decoded(format, &planes, n * K);
            assert_eq!(got.len(), n);
            let again = losses(Isa::detect(), &factor, &rows, &decoded);
            let damping = 0.01 * diagonal(&h, K).iter().sum::<f32>() as f64 / K as f64;
            for (r, (got, again)) in got.into_iter().zip(again).enumerate() {
                let error: Vec<f64> =
                    (r * K..(r + 1) * K).map(|i| f64::from(rows[i]) - f64::from(decoded[i])).collect();
                let mut want = 0.0;
                for i in 0..K {
                    want += damping * error[i] * error[i];
                    for j in 0..K {
                        want += error[i] * f64::from(h[i.max(j) * K + i.min(j)]) * error[j];
                    }
                }
                assert!((got - want).abs() < 1e-4 * want, "{} row {r}: {got}, not {want}", format.name);
                assert!((again - want).abs() < 1e-4 * want, "{} row {r}: {again}, not {want}", format.name);
            }
        }
    }

    #[test]
    fn feedback_loses_far_less_than_a_search_of_each_block() {
        let (n, h) = (16, moments(K, &[]));
        let rows = noise(n * K, 12);
        for format in formats() {
            let factor = factor(format, &h);
            let (_, losses) = rounded(Isa::detect(), format, &factor, &rows);
            let ratio = losses.iter().sum::<f64>() / searched(format, &factor, &diagonal(&h, K), &rows);
            assert!(ratio < 0.6, "{}: {ratio}", format.name);
        }
    }

    #[test]
    fn columns_that_do_not_correlate_lose_no_more_than_in_a_search() {
        let (n, mut h) = (16, moments(K, &[7]));
        for i in 0..K {
            h[i * K..i * K + i].fill(0.0);
        }
        let rows = noise(n * K, 13);
        let damped: Vec<f32> = {
            let diagonal = diagonal(&h, K);
            let mean = diagonal.iter().sum::<f32>() / K as f32;
            diagonal.iter().map(|x| x + 0.01 * mean).collect()
        };
        for format in formats() {
            let factor = factor(format, &h);
            let (_, losses) = rounded(Isa::detect(), format, &factor, &rows);
            let ratio = losses.iter().sum::<f64>() / searched(format, &factor, &damped, &rows);
            assert!(ratio < 1.001, "{}: {ratio}", format.name);
        }
    }

    #[test]
    fn a_row_becomes_the_same_on_every_instruction_set_and_whatever_is_rounded_with_it() {
        let (n, h) = (35, moments(K, &[]));
        let rows = noise(n * K, 14);
        for format in formats().filter(|f| ["q4_0", "q4_k", "iq4_nl", "4bit-g64", "nvfp4"].contains(&f.name))
        {
            let factor = factor(format, &h);
            let (planes, losses) = rounded(Isa::detect(), format, &factor, &rows);
            for isa in Isa::available() {
                let (first, count) = (30, 3);
                let part = &rows[first * K..(first + count) * K];
                let (some, some_losses) = rounded(isa, format, &factor, part);
                for (some, plane) in some.iter().zip(&planes) {
                    let bytes = plane.len() / n;
                    assert_eq!(
                        some[..],
                        plane[first * bytes..][..count * bytes],
                        "{} {}",
                        format.name,
                        isa.name()
                    );
                }
                assert_eq!(some_losses, losses[first..first + count]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "block after block")]
    fn an_order_that_mixes_blocks_is_refused() {
        let mut order: Vec<u32> = (0..K as u32).collect();
        order.swap(0, 511);
        let factor = Factor::new(Isa::detect(), moments(K, &[]), order, 0.01).unwrap();
        rounded(Isa::detect(), table::all().find(|f| f.name == "q4_0").unwrap(), &factor, &[0.0; K]);
    }
}

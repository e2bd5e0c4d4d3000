//! The tile of a matrix product: some tokens by a panel of weights, or a part of one, whose sums stay in registers. What the operands
//! are, and how their products are summed, is an [`Operand`]'s.

use crate::simd::{LANES, Simd};

/// Weight rows of a panel.
pub const PANEL: usize = 32;

/// Tokens that are interleaved together; a multiple of every [`Simd::TILE_TOKENS`].
pub const GROUP: usize = 12;

/// What lies in panels and in interleaved groups.
pub(crate) trait Operand: Copy {
    /// Adds the products of a tile's tokens with its weights to `sums`.
    fn accumulate<S: Simd, const TOKENS: usize, const VECTORS: usize>(
        s: S,
        tile: &Tile<Self>,
        sums: &mut [[S::F32; VECTORS]; TOKENS],
    );
}

/// The innermost work: some tokens by a panel, or a part of one, over one block of k.
pub(crate) struct Tile<'a, T> {
    /// Interleaved tokens, line by line.
    pub x: &'a [[T; GROUP]],
    /// The first token within the group.
    pub first: usize,
    /// The panel, line by line.
    pub weights: &'a [[T; PANEL]],
    /// Which part of the panel, counted in tiles.
    pub part: usize,
    /// Whether `out` holds the sums of earlier blocks of k.
    pub resume: bool,
    /// From the first token's element in the part's first row on.
    pub out: &'a mut [f32],
    /// Elements from one token to the next in `out`.
    pub stride: usize,
    /// Rows of the part that exist.
    pub rows: usize,
}

impl<T: Operand> Tile<'_, T> {
    /// Runs the code for this number of tokens.
    #[inline(always)]
    pub fn dispatch<S: Simd>(self, s: S, tokens: usize) {
        match (S::TILE_VECTORS, tokens) {
            (1, 1) => self.run::<S, 1, 1>(s),
            (1, 2) => self.run::<S, 2, 1>(s),
            (1, 3) => self.run::<S, 3, 1>(s),
            (1, 4) => self.run::<S, 4, 1>(s),
            (1, 5) => self.run::<S, 5, 1>(s),
            (1, 6) => self.run::<S, 6, 1>(s),
            (2, 1) => self.run::<S, 1, 2>(s),
            (2, 2) => self.run::<S, 2, 2>(s),
            (2, 3) => self.run::<S, 3, 2>(s),
            (2, 4) => self.run::<S, 4, 2>(s),
            (2, 5) => self.run::<S, 5, 2>(s),
            (2, 6) => self.run::<S, 6, 2>(s),
            (2, 7) => self.run::<S, 7, 2>(s),
            (2, 8) => self.run::<S, 8, 2>(s),
            (2, 9) => self.run::<S, 9, 2>(s),
            (2, 10) => self.run::<S, 10, 2>(s),
            (2, 11) => self.run::<S, 11, 2>(s),
            (2, 12) => self.run::<S, 12, 2>(s),
            _ => unreachable!("tiles have 6 tokens by 1 vector or 12 by 2"),
        }
    }

    #[inline(always)]
    fn run<S: Simd, const TOKENS: usize, const VECTORS: usize>(mut self, s: S) {
        assert!(self.first + TOKENS <= GROUP && (self.part + 1) * VECTORS * LANES <= PANEL);
        let mut sums = [[s.splat(0.0); VECTORS]; TOKENS];
        if self.resume {
            for (t, sums) in sums.iter_mut().enumerate() {
                *sums = self.load(s, t);
            }
        }
        // What is written at the end (or read by the next tile, where sums resume) should be near by then.
        let ahead = if self.resume { PANEL } else { 0 };
        for t in 0..TOKENS {
            for v in 0..=VECTORS {
                if let Some(element) = self.out.get(t * self.stride + ahead + v * LANES) {
                    s.prefetch(element);
                }
            }
        }
        T::accumulate(s, &self, &mut sums);
        for (t, sums) in sums.into_iter().enumerate() {
            self.store(s, t, sums);
        }
    }

    /// The sums of token `t` so far.
    #[inline(always)]
    fn load<S: Simd, const VECTORS: usize>(&self, s: S, t: usize) -> [S::F32; VECTORS] {
        let out = &self.out[t * self.stride..][..self.rows];
        let mut padded = [[0.0; LANES]; VECTORS];
        let whole = match out.as_chunks().0.first_chunk() {
            Some(whole) => whole,
            None => {
                padded.as_flattened_mut()[..out.len()].copy_from_slice(out);
                &padded
            }
        };
        std::array::from_fn(|v| s.load(&whole[v]))
    }

    /// Writes the sums of token `t` as far as there are rows.
    #[inline(always)]
    fn store<S: Simd, const VECTORS: usize>(&mut self, s: S, t: usize, sums: [S::F32; VECTORS]) {
        let out = &mut self.out[t * self.stride..][..self.rows];
        if let Some(whole) = out.as_chunks_mut().0.first_chunk_mut::<VECTORS>() {
            for (sum, lanes) in sums.into_iter().zip(whole) {
                s.store(sum, lanes);
            }
            return;
        }
        let mut padded = [[0.0; LANES]; VECTORS];
        for (sum, lanes) in sums.into_iter().zip(&mut padded) {
            s.store(sum, lanes);
        }
        out.copy_from_slice(&padded.as_flattened()[..out.len()]);
    }
}

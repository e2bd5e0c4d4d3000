//! What the encoders of blocks with searched scales share: sixteen groups side by side, in units that neither overflow nor
//! vanish, and the loops over a tensor's blocks.
//!
//! A lane holds a group (a block or sub-block with a scale of its own), a vector holds the same element of sixteen groups,
//! so the scales of sixteen groups are searched at once with no branches. `SPAN` consecutive lanes form a super-block,
//! whose groups share an `f16` step.

use crate::format::Format;
use crate::lanes;
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Weights in a super-block of the K-quants and IQ4_XS.
pub(crate) const SUPER_BLOCK: usize = 256;

/// Keeps a weight's error from being ignored where its column's importance is zero, relative to the largest
/// importance of the super-block.
pub(crate) const LEAST_IMPORTANCE: f32 = 1.0 / (1 << 20) as f32;

/// A type whose blocks take `BYTES` bytes each; sixteen groups, one tile, are encoded at once.
pub(crate) trait Blocks<const BYTES: usize> {
    /// Weights per block.
    const BLOCK: usize;
    /// Blocks per tile.
    const PER_TILE: usize;
    /// Encodes tile number `tile` of `weights` into its blocks (fewer than `PER_TILE` at the end).
    fn encode<S: Simd, const WEIGHTED: bool>(
        s: S,
        weights: &Weights,
        tile: usize,
        blocks: &mut [[u8; BYTES]],
    );
    /// Decodes a block.
    fn decode<S: Simd>(s: S, block: &[u8; BYTES], dst: &mut [f32]);
}

/// What an encoder is given: whole rows, and the importance of each column.
pub(crate) struct Weights<'a> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
}

/// [`crate::format::Encode`] of the type `B`.
pub(crate) fn encode<B: Blocks<BYTES>, const BYTES: usize>(
    _: &Format,
    isa: Isa,
    src: &[f32],
    importance: Option<&[f32]>,
    planes: &mut [&mut [u8]],
) {
    struct Run<'a, B, const BYTES: usize, const WEIGHTED: bool> {
        weights: Weights<'a>,
        blocks: &'a mut [[u8; BYTES]],
        of: std::marker::PhantomData<B>,
    }
    impl<B: Blocks<BYTES>, const BYTES: usize, const WEIGHTED: bool> Kernel for Run<'_, B, BYTES, WEIGHTED> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (tile, blocks) in self.blocks.chunks_mut(B::PER_TILE).enumerate() {
                B::encode::<S, WEIGHTED>(s, &self.weights, tile, blocks);
            }
        }
    }
    let blocks = planes[0].as_chunks_mut().0;
    assert_eq!(blocks.len() * B::BLOCK, src.len(), "the plane must hold exactly the weights");
    let weights = Weights { src, importance };
    let of = std::marker::PhantomData::<B>;
    match importance {
        None => isa.run(Run::<_, _, false> { weights, blocks, of }),
        Some(_) => isa.run(Run::<_, _, true> { weights, blocks, of }),
    }
}

/// [`crate::format::Decode`] of the type `B`.
pub(crate) fn decode<B: Blocks<BYTES>, const BYTES: usize>(
    _: &Format,
    isa: Isa,
    planes: &[&[u8]],
    dst: &mut [f32],
) {
    struct Run<'a, B, const BYTES: usize> {
        blocks: &'a [[u8; BYTES]],
        dst: &'a mut [f32],
        of: std::marker::PhantomData<B>,
    }
    impl<B: Blocks<BYTES>, const BYTES: usize> Kernel for Run<'_, B, BYTES> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (block, dst) in self.blocks.iter().zip(self.dst.chunks_exact_mut(B::BLOCK)) {
                B::decode(s, block, dst);
            }
        }
    }
    let blocks = planes[0].as_chunks().0;
    assert_eq!(blocks.len() * B::BLOCK, dst.len(), "the plane must hold exactly the weights");
    isa.run(Run { blocks, dst, of: std::marker::PhantomData::<B> });
}

/// Sixteen groups of `N` weights, and the weight of each squared error.
///
/// Weights are scaled by a power of two so that the largest of a super-block lies in [0.5, 1); then squares neither
/// overflow nor vanish, whatever the input.
pub(crate) struct Tile<S: Simd, const N: usize> {
    /// `x[i]` holds element `i` of each group, times `unit`.
    pub x: [S::F32; N],
    /// Weights of the squared errors, relative to the largest of the super-block; zeros without importance.
    pub w: [S::F32; N],
    /// The power of two of each lane's super-block.
    pub unit: S::F32,
}

impl<S: Simd, const N: usize> Tile<S, N> {
    /// Loads tile number `tile` of `weights`. Groups past the end are zero.
    #[inline(always)]
    pub fn load<const SPAN: usize, const WEIGHTED: bool>(s: S, weights: &Weights, tile: usize) -> Self {
        let zero = s.splat(0.0);
        let mut rows = [[0.0; LANES]; N];
        lanes::gather(s, weights.src, N, tile * LANES, &mut rows);
        let mut x = [zero; N];
        let mut largest = zero;
        for i in 0..N {
            x[i] = s.load(&rows[i]);
            largest = s.max(s.abs(x[i]), largest);
        }
        let unit = power_below_one(s, segment_max::<S, SPAN>(s, largest));
        for x in &mut x {
            *x = s.mul(*x, unit);
        }

        let mut w = [zero; N];
        if WEIGHTED {
            lanes::gather_importance(s, weights.importance, N, tile * LANES, &mut rows);
            let mut largest = zero;
            for i in 0..N {
                w[i] = s.load(&rows[i]);
                largest = s.max(w[i], largest);
            }
            let unit = power_below_one(s, segment_max::<S, SPAN>(s, largest));
            for w in &mut w {
                // `max` also turns NaN into zero.
                *w = s.mul_add(s.max(*w, zero), unit, s.splat(LEAST_IMPORTANCE));
            }
        }
        Tile { x, w, unit }
    }
}

/// Codes (0..256, element by element) as bytes, group after group.
#[inline(always)]
pub(crate) fn bytes<S: Simd, const N: usize>(s: S, codes: &[S::F32; N]) -> [[u8; N]; LANES] {
    let mut rows = [[0; LANES]; N];
    for (row, &codes) in rows.iter_mut().zip(codes) {
        s.store_u8(s.to_i32(codes), row);
    }
    let mut out = [[0; N]; LANES];
    lanes::scatter(s, &rows, LANES, N, out.as_flattened_mut());
    out
}

/// Integers within -128..256, one per lane, as bytes.
#[inline(always)]
pub(crate) fn lane_bytes<S: Simd>(s: S, v: S::F32) -> [u8; LANES] {
    let mut out = [0; LANES];
    s.store_u8(s.to_i32(v), &mut out);
    out
}

/// The power of two that brings `x` (not negative) into [0.5, 1), as near as two normal powers (this one and its
/// inverse) allow.
#[inline(always)]
pub(crate) fn power_below_one<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let exponent = s.shr_i::<23>(s.bits(x));
    let wanted = s.sub_i(s.splat_i(253), exponent);
    let wanted = s.min_i(s.max_i(wanted, s.splat_i(1)), s.splat_i(227));
    s.from_bits(s.shl_i::<23>(wanted))
}

/// `1 / x`, or 0 where `x` is 0.
#[inline(always)]
pub(crate) fn reciprocal<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    s.select(s.eq(x, zero), zero, s.div(s.splat(1.0), x))
}

/// Folds each super-block's lanes with the operation `$op`, halves onto each other: in each lane the result of its super-block.
macro_rules! fold {
    ($s:ident, $op:ident, $v:ident, $span:ident) => {{
        let mut v = $v;
        if $span > 8 {
            v = $s.$op(v, $s.exchange::<8>(v));
        }
        if $span > 4 {
            v = $s.$op(v, $s.exchange::<4>(v));
        }
        if $span > 2 {
            v = $s.$op(v, $s.exchange::<2>(v));
        }
        if $span > 1 {
            v = $s.$op(v, $s.exchange::<1>(v));
        }
        v
    }};
}

/// In each lane the largest value of its super-block.
#[inline(always)]
pub(crate) fn segment_max<S: Simd, const SPAN: usize>(s: S, v: S::F32) -> S::F32 {
    fold!(s, max, v, SPAN)
}

/// In each lane the value of its super-block with the largest magnitude, the positive one of two.
#[inline(always)]
pub(crate) fn segment_extreme<S: Simd, const SPAN: usize>(s: S, v: S::F32) -> S::F32 {
    let most = fold!(s, max, v, SPAN);
    let least = fold!(s, min, v, SPAN);
    s.select(s.lt(most, s.neg(least)), least, most)
}

/// In each lane the sum over its super-block.
#[inline(always)]
pub(crate) fn segment_sum<S: Simd, const SPAN: usize>(s: S, v: S::F32) -> S::F32 {
    fold!(s, add, v, SPAN)
}

/// The step that is stored for a wanted step `d` (in units of the tile): rounded to `f16` in the tensor's own units,
/// finite, and not zero unless `d` is.
///
/// Returns it in units of the tile; [`stored_bits`] gives its bits.
#[inline(always)]
pub(crate) fn stored<S: Simd>(s: S, d: S::F32, unit: S::F32) -> S::F32 {
    let mut half = [0; LANES];
    stored_bits(s, d, unit, &mut half);
    s.mul(s.load_f16(&half), unit)
}

/// The `f16` bits of [`stored`].
#[inline(always)]
pub(crate) fn stored_bits<S: Simd>(s: S, d: S::F32, unit: S::F32, half: &mut [u16; LANES]) {
    // Both are normal powers of two, so this is exact.
    let own = s.div(d, unit);
    let least = s.splat(5.960_464_5e-8);
    let most = s.splat(65504.0);
    let magnitude = s.min(s.max(s.abs(own), least), most);
    let zero = s.splat(0.0);
    let signed = s.select(s.lt(own, zero), s.neg(magnitude), magnitude);
    s.store_f16(s.select(s.eq(own, zero), zero, signed), half);
}

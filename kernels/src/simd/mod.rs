//! Sixteen lanes of `f32` (and of `i32`), on every machine.
//!
//! An algorithm is written once over [`Simd`] and runs on the best instruction set found at run time. The width is
//! fixed at 16 and every operation is exactly rounded (`mul_add` rounds once), so all implementations give the same
//! bits; [`Scalar`] is the oracle.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen lanes of an instruction set. A value is the proof that this machine has it.
///
/// Comparisons with NaN are false. `min`/`max` return the second operand if either is NaN.
///
/// # Safety
/// A type may implement this only if its values can't be constructed on a machine that lacks the instructions.
#[allow(missing_docs, reason = "most names say it")]
pub unsafe trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F32: Copy;
    /// Sixteen `i32`.
    type I32: Copy;
    /// Sixteen booleans.
    type Mask: Copy;

    /// Tokens of a tile of the matrix product, 6 or 12: as many as the registers hold sums for.
    const TILE_TOKENS: usize;
    /// Vectors of weights of such a tile: 1 with 6 tokens, 2 with 12.
    const TILE_VECTORS: usize;

    fn splat(self, x: f32) -> Self::F32;
    fn load(self, p: &[f32; LANES]) -> Self::F32;
    fn store(self, v: Self::F32, p: &mut [f32; LANES]);
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `c - a * b`, rounded once.
    fn neg_mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    fn neg(self, a: Self::F32) -> Self::F32;
    fn sqrt(self, a: Self::F32) -> Self::F32;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F32) -> Self::F32;
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// Lane by lane `if m { a } else { b }`.
    fn select(self, m: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn not(self, a: Self::Mask) -> Self::Mask;
    /// Whether any lane is set.
    fn any(self, m: Self::Mask) -> bool;
    /// The sum over all lanes in the house's fixed order: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    fn reduce_add(self, a: Self::F32) -> f32;
    /// Each lane's value goes to the lane `DISTANCE` (1, 2, 4 or 8) away: lane `i` gets lane `i ^ DISTANCE`.
    fn exchange<const DISTANCE: usize>(self, a: Self::F32) -> Self::F32;
    /// `table[index & 15]`, lane by lane.
    fn lookup(self, table: &[f32; LANES], index: Self::I32) -> Self::F32;

    /// Rounds to the nearest `i32`, ties to even. Values must lie within `i32`.
    fn to_i32(self, a: Self::F32) -> Self::I32;
    /// Exact for |v| < 2^24, nearest otherwise.
    fn to_f32(self, a: Self::I32) -> Self::F32;
    /// The same bits as integers.
    fn bits(self, a: Self::F32) -> Self::I32;
    /// The same bits as floats.
    #[allow(clippy::wrong_self_convention, reason = "self is the instruction set, not the value")]
    fn from_bits(self, a: Self::I32) -> Self::F32;

    fn splat_i(self, x: i32) -> Self::I32;
    fn load_i(self, p: &[i32; LANES]) -> Self::I32;
    fn store_i(self, v: Self::I32, p: &mut [i32; LANES]);
    fn add_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn sub_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `sum + a₀ · b₀ + a₁ · b₁`, wrapping, where a lane's low half is the signed 16-bit integer 0 and its high half integer 1.
    fn dot_i16(self, a: Self::I32, b: Self::I32, sum: Self::I32) -> Self::I32;
    fn min_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn max_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn and_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn or_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn xor_i(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn shl_i<const N: u32>(self, a: Self::I32) -> Self::I32;
    /// Logical: zeros come in from the left.
    fn shr_i<const N: u32>(self, a: Self::I32) -> Self::I32;
    fn eq_i(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    /// Signed `a < b`.
    fn lt_i(self, a: Self::I32, b: Self::I32) -> Self::Mask;
    fn select_i(self, m: Self::Mask, a: Self::I32, b: Self::I32) -> Self::I32;

    /// Sixteen bytes, zero-extended.
    fn load_u8(self, p: &[u8; LANES]) -> Self::I32;
    /// Sixteen bytes, sign-extended.
    fn load_i8(self, p: &[u8; LANES]) -> Self::I32;
    /// Sixteen 16-bit words, zero-extended.
    fn load_u16(self, p: &[u16; LANES]) -> Self::I32;
    /// The low byte of each lane.
    fn store_u8(self, v: Self::I32, p: &mut [u8; LANES]);
    /// The low 16 bits of each lane.
    fn store_u16(self, v: Self::I32, p: &mut [u16; LANES]);
    /// Sixteen IEEE half floats (as bits) to `f32`.
    fn load_f16(self, p: &[u16; LANES]) -> Self::F32;
    /// To IEEE half floats (as bits), nearest, ties to even, overflow to infinity.
    fn store_f16(self, v: Self::F32, p: &mut [u16; LANES]);

    /// Each lane rounded to the nearest half float, ties to even, overflow to infinity.
    #[inline(always)]
    fn round_f16(self, v: Self::F32) -> Self::F32 {
        let mut halves = [0; LANES];
        self.store_f16(v, &mut halves);
        self.load_f16(&halves)
    }

    /// Sixteen vectors as the rows of a matrix; its columns as vectors.
    fn transpose(self, rows: &mut [Self::F32; LANES]);

    /// Fetches an element's cache line for an access to come, where there is an instruction for it.
    #[inline(always)]
    fn prefetch(self, _element: &f32) {}

    /// Runs `kernel` compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;
}

/// A piece of work generic over the instruction set. `run` must be `#[inline(always)]`, as must all it calls, so that the
/// whole is compiled inside one function that has the instructions.
pub trait Kernel {
    /// What the work gives.
    type Output;
    /// Does the work with `s`'s instructions.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that this machine has; which one is chosen once per process.
#[derive(Clone, Copy)]
pub enum Isa {
    /// Plain Rust, the oracle.
    Scalar(Scalar),
    /// x86-64 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AArch64.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// The best this machine has, or the one that the environment variable `HALFBYTE_ISA` names (`scalar`, `avx2`,
    /// `avx512`, `neon`; one that the machine lacks is ignored).
    pub fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let all = Isa::available();
            std::env::var("HALFBYTE_ISA")
                .ok()
                .and_then(|name| all.iter().copied().find(|isa| isa.name() == name))
                .unwrap_or(all[all.len() - 1])
        })
    }

    /// All instruction sets that this machine has, the plainest first. Never empty.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "other architectures may have nothing to add")]
        let mut all = vec![Isa::Scalar(Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::new().map(Isa::Avx2));
            all.extend(Avx512::new().map(Isa::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::new().map(Isa::Neon));
        all
    }

    /// The name `HALFBYTE_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// Runs `kernel` with these instructions.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Scalar(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(s) => s.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(s) => s.run(kernel),
        }
    }
}

//! The oracle: sixteen lanes in plain Rust.

use half::f16;

use super::{Kernel, LANES, Simd};

/// Plain Rust, on every machine.
#[derive(Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn map<T: Copy, U>(a: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    a.map(f)
}

#[inline(always)]
fn zip<T: Copy, U: Copy, R>(a: [T; LANES], b: [U; LANES], f: impl Fn(T, U) -> R) -> [R; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

// SAFETY: needs no instructions beyond the target's baseline.
unsafe impl Simd for Scalar {
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type Mask = [bool; LANES];
    const TILE_TOKENS: usize = 6;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, p: &[f32; LANES]) -> Self::F32 {
        *p
    }
    #[inline(always)]
    fn store(self, v: Self::F32, p: &mut [f32; LANES]) {
        *p = v;
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn neg(self, a: Self::F32) -> Self::F32 {
        map(a, |a| -a)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F32) -> Self::F32 {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        zip(a, b, |a, b| a <= b)
    }
    #[inline(always)]
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask {
        zip(a, b, |a, b| a == b)
    }
    #[inline(always)]
    fn select(self, m: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn not(self, a: Self::Mask) -> Self::Mask {
        map(a, |a| !a)
    }
    #[inline(always)]
    fn any(self, m: Self::Mask) -> bool {
        m.contains(&true)
    }
    #[inline(always)]
    fn reduce_add(self, a: Self::F32) -> f32 {
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }
    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self, a: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i ^ DISTANCE])
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], index: Self::I32) -> Self::F32 {
        map(index, |i| table[(i & 15) as usize])
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F32) -> Self::I32 {
        map(a, |a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    fn to_f32(self, a: Self::I32) -> Self::F32 {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn bits(self, a: Self::F32) -> Self::I32 {
        map(a, |a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I32) -> Self::F32 {
        map(a, |a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I32 {
        [x; LANES]
    }
    #[inline(always)]
    fn load_i(self, p: &[i32; LANES]) -> Self::I32 {
        *p
    }
    #[inline(always)]
    fn store_i(self, v: Self::I32, p: &mut [i32; LANES]) {
        *p = v;
    }
    #[inline(always)]
    fn add_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn dot_i16(self, a: Self::I32, b: Self::I32, sum: Self::I32) -> Self::I32 {
        let product = |a: i32, b: i32| i32::from(a as i16) * i32::from(b as i16);
        let products = zip(a, b, |a, b| product(a, b).wrapping_add(product(a >> 16, b >> 16)));
        zip(sum, products, i32::wrapping_add)
    }
    #[inline(always)]
    fn min_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::min)
    }
    #[inline(always)]
    fn max_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn and_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor_i(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, a: Self::I32) -> Self::I32 {
        map(a, |a| a << N)
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, a: Self::I32) -> Self::I32 {
        map(a, |a| ((a as u32) >> N) as i32)
    }
    #[inline(always)]
    fn eq_i(self, a: Self::I32, b: Self::I32) -> Self::Mask {
        zip(a, b, |a, b| a == b)
    }
    #[inline(always)]
    fn lt_i(self, a: Self::I32, b: Self::I32) -> Self::Mask {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn select_i(self, m: Self::Mask, a: Self::I32, b: Self::I32) -> Self::I32 {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn load_u8(self, p: &[u8; LANES]) -> Self::I32 {
        map(*p, i32::from)
    }
    #[inline(always)]
    fn load_i8(self, p: &[u8; LANES]) -> Self::I32 {
        map(*p, |b| i32::from(b as i8))
    }
    #[inline(always)]
    fn load_u16(self, p: &[u16; LANES]) -> Self::I32 {
        map(*p, i32::from)
    }
    #[inline(always)]
    fn store_u8(self, v: Self::I32, p: &mut [u8; LANES]) {
        *p = map(v, |v| v as u8);
    }
    #[inline(always)]
    fn store_u16(self, v: Self::I32, p: &mut [u16; LANES]) {
        *p = map(v, |v| v as u16);
    }
    #[inline(always)]
    fn load_f16(self, p: &[u16; LANES]) -> Self::F32 {
        map(*p, |h| f16::from_bits(h).to_f32_const())
    }
    #[inline(always)]
    fn store_f16(self, v: Self::F32, p: &mut [u16; LANES]) {
        *p = map(v, |v| f16::from_f32_const(v).to_bits());
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [Self::F32; LANES]) {
        let copy = *rows;
        *rows = std::array::from_fn(|r| std::array::from_fn(|c| copy[c][r]));
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

//! x86-64 with AVX2, FMA and F16C: a vector is two registers, lanes 0–7 and 8–15.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// x86-64 with AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this machine has the instructions.
    pub fn new() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        .then_some(Avx2(()))
    }
}

/// Methods whose body is one expression of intrinsics on both halves: within it, each argument stands for its half.
macro_rules! halves {
    ($(fn $name:ident $(<const $n:ident: u32>)? ($($a:ident: $t:ty),+) -> $r:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name $(<const $n: u32>)? (self, $($a: $t),+) -> $r {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe { [{ $(let $a = $a[0];)+ $body }, { $(let $a = $a[1];)+ $body }] }
        }
    )*};
}

/// Methods that cross between the halves or touch memory.
macro_rules! wholes {
    ($(fn $name:ident ($($a:ident: $t:ty),+) $(-> $r:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        fn $name (self, $($a: $t),+) $(-> $r)? {
            // SAFETY: `self` proves that the machine has the instructions; the pointers come from references to
            // arrays of the width that is loaded or stored, and no alignment is asked for.
            unsafe { $body }
        }
    )*};
}

type F32 = [__m256; 2];
type I32 = [__m256i; 2];

// SAFETY: `Avx2::new` is the only constructor and checks the machine.
unsafe impl Simd for Avx2 {
    type F32 = F32;
    type I32 = I32;
    /// All bits of a lane set or none.
    type Mask = F32;
    const TILE_TOKENS: usize = 6;
    const TILE_VECTORS: usize = 1;

    halves! {
        fn add(a: F32, b: F32) -> F32 { _mm256_add_ps(a, b) }
        fn sub(a: F32, b: F32) -> F32 { _mm256_sub_ps(a, b) }
        fn mul(a: F32, b: F32) -> F32 { _mm256_mul_ps(a, b) }
        fn div(a: F32, b: F32) -> F32 { _mm256_div_ps(a, b) }
        fn mul_add(a: F32, b: F32, c: F32) -> F32 { _mm256_fmadd_ps(a, b, c) }
        fn neg_mul_add(a: F32, b: F32, c: F32) -> F32 { _mm256_fnmadd_ps(a, b, c) }
        fn min(a: F32, b: F32) -> F32 { _mm256_min_ps(a, b) }
        fn max(a: F32, b: F32) -> F32 { _mm256_max_ps(a, b) }
        fn abs(a: F32) -> F32 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn neg(a: F32) -> F32 { _mm256_xor_ps(a, _mm256_set1_ps(-0.0)) }
        fn sqrt(a: F32) -> F32 { _mm256_sqrt_ps(a) }
        fn round(a: F32) -> F32 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn lt(a: F32, b: F32) -> F32 { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
        fn le(a: F32, b: F32) -> F32 { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
        fn eq(a: F32, b: F32) -> F32 { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
        fn select(m: F32, a: F32, b: F32) -> F32 { _mm256_blendv_ps(b, a, m) }
        fn and(a: F32, b: F32) -> F32 { _mm256_and_ps(a, b) }
        fn or(a: F32, b: F32) -> F32 { _mm256_or_ps(a, b) }
        fn not(a: F32) -> F32 { _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) }

        fn to_i32(a: F32) -> I32 { _mm256_cvtps_epi32(a) }
        fn to_f32(a: I32) -> F32 { _mm256_cvtepi32_ps(a) }
        fn bits(a: F32) -> I32 { _mm256_castps_si256(a) }
        fn from_bits(a: I32) -> F32 { _mm256_castsi256_ps(a) }

        fn add_i(a: I32, b: I32) -> I32 { _mm256_add_epi32(a, b) }
        fn sub_i(a: I32, b: I32) -> I32 { _mm256_sub_epi32(a, b) }
        fn dot_i16(a: I32, b: I32, sum: I32) -> I32 { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
        fn min_i(a: I32, b: I32) -> I32 { _mm256_min_epi32(a, b) }
        fn max_i(a: I32, b: I32) -> I32 { _mm256_max_epi32(a, b) }
        fn and_i(a: I32, b: I32) -> I32 { _mm256_and_si256(a, b) }
        fn or_i(a: I32, b: I32) -> I32 { _mm256_or_si256(a, b) }
        fn xor_i(a: I32, b: I32) -> I32 { _mm256_xor_si256(a, b) }
        fn shl_i<const N: u32>(a: I32) -> I32 { _mm256_sll_epi32(a, _mm_cvtsi32_si128(N as i32)) }
        fn shr_i<const N: u32>(a: I32) -> I32 { _mm256_srl_epi32(a, _mm_cvtsi32_si128(N as i32)) }
        fn eq_i(a: I32, b: I32) -> F32 { _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)) }
        fn lt_i(a: I32, b: I32) -> F32 { _mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a)) }
        fn select_i(m: F32, a: I32, b: I32) -> I32 {
            _mm256_blendv_epi8(b, a, _mm256_castps_si256(m))
        }
    }

    wholes! {
        fn splat(x: f32) -> F32 { [_mm256_set1_ps(x); 2] }
        fn load(p: &[f32; LANES]) -> F32 {
            [_mm256_loadu_ps(p.as_ptr()), _mm256_loadu_ps(p.as_ptr().add(8))]
        }
        fn store(v: F32, p: &mut [f32; LANES]) {{
            _mm256_storeu_ps(p.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(p.as_mut_ptr().add(8), v[1]);
        }}
        fn any(m: F32) -> bool { _mm256_movemask_ps(_mm256_or_ps(m[0], m[1])) != 0 }
        fn reduce_add(a: F32) -> f32 {{
            let b = _mm256_add_ps(a[0], a[1]);
            let c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            let d = _mm_add_ps(c, _mm_movehl_ps(c, c));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }}
        fn lookup(table: &[f32; LANES], index: I32) -> F32 {{
            let low = _mm256_loadu_ps(table.as_ptr());
            let high = _mm256_loadu_ps(table.as_ptr().add(8));
            let mut out = [low; 2];
            for (v, i) in out.iter_mut().zip(index) {
                // Bit 3 of the index, moved to the sign, chooses the half.
                let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(i));
                *v = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(low, i),
                    _mm256_permutevar8x32_ps(high, i),
                    upper,
                );
            }
            out
        }}

        fn splat_i(x: i32) -> I32 { [_mm256_set1_epi32(x); 2] }
        fn load_i(p: &[i32; LANES]) -> I32 {{
            let p = p.as_ptr().cast::<__m256i>();
            [_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))]
        }}
        fn store_i(v: I32, p: &mut [i32; LANES]) {{
            let p = p.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(p, v[0]);
            _mm256_storeu_si256(p.add(1), v[1]);
        }}
        fn load_u8(p: &[u8; LANES]) -> I32 {{
            let v = _mm_loadu_si128(p.as_ptr().cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_bsrli_si128::<8>(v))]
        }}
        fn load_i8(p: &[u8; LANES]) -> I32 {{
            let v = _mm_loadu_si128(p.as_ptr().cast());
            [_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_bsrli_si128::<8>(v))]
        }}
        fn load_u16(p: &[u16; LANES]) -> I32 {{
            let p = p.as_ptr().cast::<__m128i>();
            [_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)))]
        }}
        fn store_u8(v: I32, p: &mut [u8; LANES]) {{
            let words = words(v, 0xff);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.as_mut_ptr().cast(), _mm_packus_epi16(low, high));
        }}
        fn store_u16(v: I32, p: &mut [u16; LANES]) {
            _mm256_storeu_si256(p.as_mut_ptr().cast(), words(v, 0xffff))
        }
        fn load_f16(p: &[u16; LANES]) -> F32 {{
            let p = p.as_ptr().cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))]
        }}
        fn store_f16(v: F32, p: &mut [u16; LANES]) {{
            let p = p.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }}
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self, a: F32) -> F32 {
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            match DISTANCE {
                1 => a.map(|a| _mm256_permute_ps::<0b10_11_00_01>(a)),
                2 => a.map(|a| _mm256_permute_ps::<0b01_00_11_10>(a)),
                4 => a.map(|a| _mm256_permute2f128_ps::<1>(a, a)),
                8 => [a[1], a[0]],
                _ => unreachable!("lanes are 1, 2, 4 or 8 apart"),
            }
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [F32; LANES]) {
        let source = *rows;
        for half in 0..2 {
            for part in 0..2 {
                // Columns 8 * half.. of rows 8 * part.. become part `part` of rows 8 * half...
                let mut square = [source[0][0]; 8];
                for (i, v) in square.iter_mut().enumerate() {
                    *v = source[8 * part + i][half];
                }
                // SAFETY: `self` proves that the machine has the instructions.
                let square = unsafe { transpose8(square) };
                for (i, v) in square.into_iter().enumerate() {
                    rows[8 * half + i][part] = v;
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, element: &f32) {
        // SAFETY: a prefetch changes nothing; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe { enter(self, kernel) }
    }
}

/// The lanes masked by `mask` (at most 16 bits) as sixteen words in order.
#[target_feature(enable = "avx2")]
#[inline]
fn words(v: I32, mask: i32) -> __m256i {
    let mask = _mm256_set1_epi32(mask);
    let mixed = _mm256_packus_epi32(_mm256_and_si256(v[0], mask), _mm256_and_si256(v[1], mask));
    _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed)
}

#[target_feature(enable = "avx2")]
#[inline]
fn transpose8(rows: [__m256; 8]) -> [__m256; 8] {
    // Within each 128-bit part: 4×4 transposes of four rows at a time.
    let mut quads = rows;
    for i in 0..2 {
        let [r0, r1, r2, r3] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
        let (low01, high01) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (low23, high23) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        quads[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(low01, low23);
        quads[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(low01, low23);
        quads[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(high01, high23);
        quads[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(high01, high23);
    }
    // Then the 2×2 matrix of 128-bit parts.
    let mut out = quads;
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
    }
    out
}

//! x86-64 with AVX-512: a vector is one register, a mask one mask register.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// x86-64 with AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if this machine has the instructions.
    pub fn new() -> Option<Avx512> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni"))
        .then_some(Avx512(()))
    }
}

/// Methods whose body is one expression of intrinsics.
macro_rules! ops {
    ($(fn $name:ident $(<const $n:ident: u32>)? ($($a:ident: $t:ty),*) $(-> $r:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        fn $name $(<const $n: u32>)? (self, $($a: $t),*) $(-> $r)? {
            // SAFETY: `self` proves that the machine has the instructions; the pointers come from references to
            // arrays of the width that is loaded or stored, and no alignment is asked for.
            unsafe { $body }
        }
    )*};
}

// SAFETY: `Avx512::new` is the only constructor and checks the machine.
unsafe impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type Mask = __mmask16;
    const TILE_TOKENS: usize = 12;
    const TILE_VECTORS: usize = 2;

    ops! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(p: &[f32; LANES]) -> __m512 { _mm512_loadu_ps(p.as_ptr()) }
        fn store(v: __m512, p: &mut [f32; LANES]) { _mm512_storeu_ps(p.as_mut_ptr(), v) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn neg(a: __m512) -> __m512 { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 { _mm512_mask_blend_ps(m, b, a) }
        fn lookup(table: &[f32; LANES], index: __m512i) -> __m512 {
            _mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr()))
        }

        fn to_i32(a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
        fn to_f32(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn bits(a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn from_bits(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }

        fn splat_i(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn load_i(p: &[i32; LANES]) -> __m512i { _mm512_loadu_epi32(p.as_ptr()) }
        fn store_i(v: __m512i, p: &mut [i32; LANES]) { _mm512_storeu_epi32(p.as_mut_ptr(), v) }
        fn add_i(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub_i(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn dot_i16(a: __m512i, b: __m512i, sum: __m512i) -> __m512i { _mm512_dpwssd_epi32(sum, a, b) }
        fn min_i(a: __m512i, b: __m512i) -> __m512i { _mm512_min_epi32(a, b) }
        fn max_i(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn and_i(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or_i(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn xor_i(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn shl_i<const N: u32>(a: __m512i) -> __m512i { _mm512_slli_epi32::<N>(a) }
        fn shr_i<const N: u32>(a: __m512i) -> __m512i { _mm512_srli_epi32::<N>(a) }
        fn eq_i(a: __m512i, b: __m512i) -> __mmask16 { _mm512_cmpeq_epi32_mask(a, b) }
        fn lt_i(a: __m512i, b: __m512i) -> __mmask16 { _mm512_cmplt_epi32_mask(a, b) }
        fn select_i(m: __mmask16, a: __m512i, b: __m512i) -> __m512i {
            _mm512_mask_blend_epi32(m, b, a)
        }

        fn load_u8(p: &[u8; LANES]) -> __m512i {
            _mm512_cvtepu8_epi32(_mm_loadu_si128(p.as_ptr().cast()))
        }
        fn load_i8(p: &[u8; LANES]) -> __m512i {
            _mm512_cvtepi8_epi32(_mm_loadu_si128(p.as_ptr().cast()))
        }
        fn load_u16(p: &[u16; LANES]) -> __m512i {
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.as_ptr().cast()))
        }
        fn store_u8(v: __m512i, p: &mut [u8; LANES]) {
            _mm_storeu_si128(p.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v))
        }
        fn store_u16(v: __m512i, p: &mut [u16; LANES]) {
            _mm256_storeu_si256(p.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v))
        }
        fn load_f16(p: &[u16; LANES]) -> __m512 {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.as_ptr().cast()))
        }
        fn store_f16(v: __m512, p: &mut [u16; LANES]) {
            _mm256_storeu_si256(
                p.as_mut_ptr().cast(),
                _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v),
            )
        }
    }

    #[inline(always)]
    fn and(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    fn not(self, a: __mmask16) -> __mmask16 {
        !a
    }
    #[inline(always)]
    fn any(self, m: __mmask16) -> bool {
        m != 0
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            let b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            let d = _mm_add_ps(c, _mm_movehl_ps(c, c));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            match DISTANCE {
                1 => _mm512_permute_ps::<0b10_11_00_01>(a),
                2 => _mm512_permute_ps::<0b01_00_11_10>(a),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(a, a),
                8 => _mm512_shuffle_f32x4::<0b01_00_11_10>(a, a),
                _ => unreachable!("lanes are 1, 2, 4 or 8 apart"),
            }
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; LANES]) {
        let zero = self.splat(0.0);
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            // Within each 128-bit part: 4×4 transposes of four rows at a time.
            let mut pairs = [zero; LANES];
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // quads[4 * i + c], part p: column 4 * p + c of rows 4 * i .. 4 * i + 4.
            let mut quads = [zero; LANES];
            for i in 0..4 {
                for half in 0..2 {
                    let a = _mm512_castps_pd(pairs[4 * i + half]);
                    let b = _mm512_castps_pd(pairs[4 * i + half + 2]);
                    quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                    quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                }
            }
            // Then the 4×4 matrix of 128-bit parts.
            for c in 0..4 {
                let [q0, q1, q2, q3] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
                let low01 = _mm512_shuffle_f32x4::<0b01_00_01_00>(q0, q1);
                let high01 = _mm512_shuffle_f32x4::<0b11_10_11_10>(q0, q1);
                let low23 = _mm512_shuffle_f32x4::<0b01_00_01_00>(q2, q3);
                let high23 = _mm512_shuffle_f32x4::<0b11_10_11_10>(q2, q3);
                rows[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low01, low23);
                rows[4 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low01, low23);
                rows[8 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high01, high23);
                rows[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high01, high23);
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
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn enter<K: Kernel>(s: Avx512, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe { enter(self, kernel) }
    }
}

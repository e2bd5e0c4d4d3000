//! AArch64 with NEON: a vector is four registers, lanes 0–3, 4–7, 8–11 and 12–15.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::{Kernel, LANES, Simd};

/// AArch64 with NEON.
#[derive(Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// The token, if this machine has the instructions.
    pub fn new() -> Option<Neon> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

/// Methods whose body is one expression of intrinsics on all quarters: within it, each argument stands for its quarter.
macro_rules! quarters {
    ($(fn $name:ident $(<const $n:ident: u32>)? ($($a:ident: $t:ty),+) -> $r:ty { $body:expr })*) => {$(
        #[inline(always)]
        fn $name $(<const $n: u32>)? (self, $($a: $t),+) -> $r {
            // SAFETY: `self` proves that the machine has the instructions.
            unsafe {
                [
                    { $(let $a = $a[0];)+ $body },
                    { $(let $a = $a[1];)+ $body },
                    { $(let $a = $a[2];)+ $body },
                    { $(let $a = $a[3];)+ $body },
                ]
            }
        }
    )*};
}

/// Methods that cross between the quarters or touch memory.
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

type F32 = [float32x4_t; 4];
type I32 = [int32x4_t; 4];
type Mask = [uint32x4_t; 4];

// SAFETY: `Neon::new` is the only constructor and checks the machine.
unsafe impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;
    type Mask = Mask;
    const TILE_TOKENS: usize = 6;
    const TILE_VECTORS: usize = 1;

    quarters! {
        fn add(a: F32, b: F32) -> F32 { vaddq_f32(a, b) }
        fn sub(a: F32, b: F32) -> F32 { vsubq_f32(a, b) }
        fn mul(a: F32, b: F32) -> F32 { vmulq_f32(a, b) }
        fn div(a: F32, b: F32) -> F32 { vdivq_f32(a, b) }
        fn mul_add(a: F32, b: F32, c: F32) -> F32 { vfmaq_f32(c, a, b) }
        fn neg_mul_add(a: F32, b: F32, c: F32) -> F32 { vfmsq_f32(c, a, b) }
        // NEON's own minimum and maximum give NaN where either is.
        fn min(a: F32, b: F32) -> F32 { vbslq_f32(vcltq_f32(a, b), a, b) }
        fn max(a: F32, b: F32) -> F32 { vbslq_f32(vcgtq_f32(a, b), a, b) }
        fn abs(a: F32) -> F32 { vabsq_f32(a) }
        fn neg(a: F32) -> F32 { vnegq_f32(a) }
        fn sqrt(a: F32) -> F32 { vsqrtq_f32(a) }
        fn round(a: F32) -> F32 { vrndnq_f32(a) }
        fn lt(a: F32, b: F32) -> Mask { vcltq_f32(a, b) }
        fn le(a: F32, b: F32) -> Mask { vcleq_f32(a, b) }
        fn eq(a: F32, b: F32) -> Mask { vceqq_f32(a, b) }
        fn select(m: Mask, a: F32, b: F32) -> F32 { vbslq_f32(m, a, b) }
        fn and(a: Mask, b: Mask) -> Mask { vandq_u32(a, b) }
        fn or(a: Mask, b: Mask) -> Mask { vorrq_u32(a, b) }
        fn not(a: Mask) -> Mask { vmvnq_u32(a) }

        fn to_i32(a: F32) -> I32 { vcvtnq_s32_f32(a) }
        fn to_f32(a: I32) -> F32 { vcvtq_f32_s32(a) }
        fn bits(a: F32) -> I32 { vreinterpretq_s32_f32(a) }
        fn from_bits(a: I32) -> F32 { vreinterpretq_f32_s32(a) }

        fn add_i(a: I32, b: I32) -> I32 { vaddq_s32(a, b) }
        fn sub_i(a: I32, b: I32) -> I32 { vsubq_s32(a, b) }
        // Products of pairs, then the sums of neighbours.
        fn dot_i16(a: I32, b: I32, sum: I32) -> I32 {{
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
        }}
        fn min_i(a: I32, b: I32) -> I32 { vminq_s32(a, b) }
        fn max_i(a: I32, b: I32) -> I32 { vmaxq_s32(a, b) }
        fn and_i(a: I32, b: I32) -> I32 { vandq_s32(a, b) }
        fn or_i(a: I32, b: I32) -> I32 { vorrq_s32(a, b) }
        fn xor_i(a: I32, b: I32) -> I32 { veorq_s32(a, b) }
        fn shl_i<const N: u32>(a: I32) -> I32 { vshlq_s32(a, vdupq_n_s32(N as i32)) }
        // A shift to the left by a negative count goes right; of unsigned lanes, with zeros.
        fn shr_i<const N: u32>(a: I32) -> I32 {
            vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(N as i32))))
        }
        fn eq_i(a: I32, b: I32) -> Mask { vceqq_s32(a, b) }
        fn lt_i(a: I32, b: I32) -> Mask { vcltq_s32(a, b) }
        fn select_i(m: Mask, a: I32, b: I32) -> I32 { vbslq_s32(m, a, b) }
    }

    wholes! {
        fn splat(x: f32) -> F32 { [vdupq_n_f32(x); 4] }
        fn load(p: &[f32; LANES]) -> F32 {{
            let p = p.as_ptr();
            [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
        }}
        fn store(v: F32, p: &mut [f32; LANES]) {{
            let p = p.as_mut_ptr();
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }}
        fn any(m: Mask) -> bool {
            vmaxvq_u32(vorrq_u32(vorrq_u32(m[0], m[1]), vorrq_u32(m[2], m[3]))) != 0
        }
        fn reduce_add(a: F32) -> f32 {{
            let c = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let d = vadd_f32(vget_low_f32(c), vget_high_f32(c));
            vget_lane_f32::<0>(d) + vget_lane_f32::<1>(d)
        }}
        fn lookup(table: &[f32; LANES], index: I32) -> F32 {{
            let table = vld1q_u8_x4(table.as_ptr().cast());
            let mut out = [vdupq_n_f32(0.0); 4];
            for (v, i) in out.iter_mut().zip(index) {
                // The four bytes of entry i: 4i, 4i + 1, 4i + 2, 4i + 3.
                let i = vandq_s32(i, vdupq_n_s32(15));
                let bytes = vaddq_s32(vmulq_n_s32(i, 0x0404_0404), vdupq_n_s32(0x0302_0100));
                *v = vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(bytes)));
            }
            out
        }}

        fn splat_i(x: i32) -> I32 { [vdupq_n_s32(x); 4] }
        fn load_i(p: &[i32; LANES]) -> I32 {{
            let p = p.as_ptr();
            [vld1q_s32(p), vld1q_s32(p.add(4)), vld1q_s32(p.add(8)), vld1q_s32(p.add(12))]
        }}
        fn store_i(v: I32, p: &mut [i32; LANES]) {{
            let p = p.as_mut_ptr();
            vst1q_s32(p, v[0]);
            vst1q_s32(p.add(4), v[1]);
            vst1q_s32(p.add(8), v[2]);
            vst1q_s32(p.add(12), v[3]);
        }}
        fn load_u8(p: &[u8; LANES]) -> I32 {{
            let v = vld1q_u8(p.as_ptr());
            widen(vmovl_u8(vget_low_u8(v)), vmovl_u8(vget_high_u8(v)))
        }}
        fn load_i8(p: &[u8; LANES]) -> I32 {{
            let v = vreinterpretq_s8_u8(vld1q_u8(p.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v)));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_s16(vget_high_s16(low)),
                vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high)),
            ]
        }}
        fn load_u16(p: &[u16; LANES]) -> I32 {
            widen(vld1q_u16(p.as_ptr()), vld1q_u16(p.as_ptr().add(8)))
        }
        fn store_u8(v: I32, p: &mut [u8; LANES]) {{
            let [low, high] = narrow(v);
            vst1q_u8(p.as_mut_ptr(), vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
        }}
        fn store_u16(v: I32, p: &mut [u16; LANES]) {{
            let [low, high] = narrow(v);
            vst1q_u16(p.as_mut_ptr(), low);
            vst1q_u16(p.as_mut_ptr().add(8), high);
        }}
        fn load_f16(p: &[u16; LANES]) -> F32 {{
            let mut out = [vdupq_n_f32(0.0); 4];
            for (i, v) in out.iter_mut().enumerate() {
                *v = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.as_ptr().add(4 * i))));
            }
            out
        }}
        fn store_f16(v: F32, p: &mut [u16; LANES]) {
            for (i, v) in v.into_iter().enumerate() {
                vst1_u16(p.as_mut_ptr().add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(v)));
            }
        }
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self, a: F32) -> F32 {
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe {
            match DISTANCE {
                1 => a.map(|a| vrev64q_f32(a)),
                2 => a.map(|a| vextq_f32::<2>(a, a)),
                4 => [a[1], a[0], a[3], a[2]],
                8 => [a[2], a[3], a[0], a[1]],
                _ => unreachable!("lanes are 1, 2, 4 or 8 apart"),
            }
        }
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [F32; LANES]) {
        let source = *rows;
        for i in 0..4 {
            for j in 0..4 {
                // The square at rows 4i, columns 4j goes to rows 4j, columns 4i.
                let square = [0, 1, 2, 3].map(|r| source[4 * i + r][j]);
                // SAFETY: `self` proves that the machine has the instructions.
                let square = unsafe { transpose4(square) };
                for (r, v) in square.into_iter().enumerate() {
                    rows[4 * j + r][i] = v;
                }
            }
        }
    }

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn enter<K: Kernel>(s: Neon, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: `self` proves that the machine has the instructions.
        unsafe { enter(self, kernel) }
    }
}

/// Sixteen words, zero-extended.
#[target_feature(enable = "neon")]
#[inline]
fn widen(low: uint16x8_t, high: uint16x8_t) -> I32 {
    [
        vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
        vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
        vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
        vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high))),
    ]
}

/// The low words of the lanes.
#[target_feature(enable = "neon")]
#[inline]
fn narrow(v: I32) -> [uint16x8_t; 2] {
    let low = |v| vmovn_u32(vreinterpretq_u32_s32(v));
    [vcombine_u16(low(v[0]), low(v[1])), vcombine_u16(low(v[2]), low(v[3]))]
}

#[target_feature(enable = "neon")]
#[inline]
fn transpose4(rows: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let pair = |a, b| {
        let even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));
        let odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
        (even, odd)
    };
    let (even01, odd01) = pair(rows[0], rows[1]);
    let (even23, odd23) = pair(rows[2], rows[3]);
    [
        vreinterpretq_f32_f64(vtrn1q_f64(even01, even23)),
        vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23)),
        vreinterpretq_f32_f64(vtrn2q_f64(even01, even23)),
        vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23)),
    ]
}

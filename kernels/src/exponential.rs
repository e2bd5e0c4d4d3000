//! The exponential and its relatives, sixteen lanes at a time: no libm, so that every machine gives the same bits.
//!
//! `exp(x) = 2ⁿ · exp(r)` with n the integer next to `x / ln 2` and the remainder `|r| <= ln 2 / 2` (Cody and Waite's
//! reduction; the polynomials are minimax fits).

use crate::simd::Simd;

/// `exp(x)` within 1 ulp; 0 below -104, infinity above 88.73, NaN of NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (n, r, rest) = parts(s, x);
    let (high, low) = one_plus(s, r, rest);
    scale(s, s.add(high, low), n)
}

/// `exp(x)` for `x <= 0` as a sum of two floats, whose relative error is below 2⁻²⁶ while neither is denormal.
#[inline(always)]
pub(crate) fn exp_pair<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let (n, r, rest) = parts(s, x);
    let (high, low) = one_plus(s, r, rest);
    (scale(s, high, n), scale(s, low, n))
}

/// `1 + r + rest` as a sum of two floats.
#[inline(always)]
fn one_plus<S: Simd>(s: S, r: S::F32, rest: S::F32) -> (S::F32, S::F32) {
    let one = s.splat(1.0);
    let high = s.add(one, r);
    (high, s.add(s.sub(r, s.sub(high, one)), rest))
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.neg(x))))
}

/// `x / (1 + exp(-a * x))`, which is `x * sigmoid(a * x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F32, a: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), exp(s, s.neg(s.mul(a, x)))))
}

/// The hyperbolic tangent, also accurate relative to small results.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // tanh |x| = e / (e + 2) with e = expm1(2 |x|); from 10 on it is 1 in f32. 2ⁿ - 1 is exact up to n = 24.
    let twice = s.min(s.splat(20.0), s.mul(s.splat(2.0), s.abs(x)));
    let (n, r, rest) = parts(s, twice);
    let power = scale(s, s.splat(1.0), n);
    let e = s.mul_add(power, s.add(r, rest), s.sub(power, s.splat(1.0)));
    let tanh = s.div(e, s.add(e, s.splat(2.0)));
    s.select(s.lt(x, s.splat(0.0)), s.neg(tanh), tanh)
}

/// `ln(1 + exp(x))`, also accurate relative to small results.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // max(x, 0) + ln(1 + y) with y = exp(-|x|) <= 1; ln(1 + y) = 2 artanh(z) with z = y / (2 + y) <= 1/3.
    const ARTANH: [f32; 5] = [1.215_416_1e-1, 1.071_292_6e-1, 1.430_851_8e-1, 1.999_943_7e-1, 3.333_333_7e-1];
    let y = exp(s, s.neg(s.abs(x)));
    let z = s.div(y, s.add(s.splat(2.0), y));
    let square = s.mul(z, z);
    let mut series = s.splat(ARTANH[0]);
    for c in &ARTANH[1..] {
        series = s.mul_add(series, square, s.splat(*c));
    }
    let twice = s.add(z, z);
    let log = s.mul_add(s.mul(twice, square), series, twice);
    s.add(s.max(s.splat(0.0), x), log)
}

/// n (a whole number), r and the small rest with `exp(x) = 2ⁿ · (1 + r + rest)`, for x clamped to a little more than where
/// the result is neither 0 nor infinite.
#[inline(always)]
fn parts<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32, S::F32) {
    /// The upper 15 bits of ln 2, so that products with n are exact, and the rest.
    const LN2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
    /// (expm1(r) - r) / r².
    const TAIL: [f32; 6] = [1.978_926_2e-4, 1.394_575_2e-3, 8.333_504e-3, 4.166_628e-2, 1.666_666_6e-1, 5e-1];
    // In this order a NaN stays one.
    let x = s.max(s.splat(-105.0), s.min(s.splat(89.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // `high` is exact, and what `r` loses goes to the rest.
    let high = s.neg_mul_add(n, s.splat(LN2[0]), x);
    let r = s.neg_mul_add(n, s.splat(LN2[1]), high);
    let lost = s.neg_mul_add(n, s.splat(LN2[1]), s.sub(high, r));
    let mut tail = s.splat(TAIL[0]);
    for c in &TAIL[1..] {
        tail = s.mul_add(tail, r, s.splat(*c));
    }
    (n, r, s.mul_add(s.mul(r, r), tail, lost))
}

/// `v · 2ⁿ` for whole n from -252 to 254, in two steps since 2ⁿ alone may lie outside of `f32`.
#[inline(always)]
fn scale<S: Simd>(s: S, v: S::F32, n: S::F32) -> S::F32 {
    let half = s.round(s.mul(n, s.splat(0.5)));
    let power = |n| {
        // A NaN has no exponent; `v` carries it.
        let n = s.select(s.eq(n, n), n, s.splat(0.0));
        s.from_bits(s.shl_i::<23>(s.add_i(s.to_i32(n), s.splat_i(127))))
    };
    s.mul(s.mul(v, power(half)), power(s.sub(n, half)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel, LANES};

    #[derive(Clone, Copy)]
    enum Which {
        Exp,
        Pair,
        Sigmoid,
        Silu,
        Tanh,
        Softplus,
    }

    struct Each<'a>(Which, &'a [f32]);

    impl Kernel for Each<'_> {
        type Output = Vec<(f32, f32)>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = Vec::new();
            for x in self.1.as_chunks().0 {
                let (mut high, mut low) = ([0.0; LANES], [0.0; LANES]);
                let x = s.load(x);
                let zero = s.splat(0.0);
                let (a, b) = match self.0 {
                    Which::Exp => (exp(s, x), zero),
                    Which::Pair => exp_pair(s, x),
                    Which::Sigmoid => (sigmoid(s, x), zero),
                    Which::Silu => (silu(s, x, s.splat(1.0)), zero),
                    Which::Tanh => (tanh(s, x), zero),
                    Which::Softplus => (softplus(s, x), zero),
                };
                s.store(a, &mut high);
                s.store(b, &mut low);
                out.extend(high.into_iter().zip(low));
            }
            out
        }
    }

    /// Floats of both signs from the smallest to beyond `limit`.
    fn floats(limit: f32) -> Vec<f32> {
        let mut all: Vec<f32> = (0..=(limit * 1.01).to_bits())
            .step_by(40_009)
            .map(f32::from_bits)
            .flat_map(|x| [x, -x])
            .collect();
        // Half of all floats are below 1: the range where most happens is walked evenly too.
        all.extend((-20_000..20_000).map(|i| i as f32 * 0.001_234_5));
        all.resize(all.len().next_multiple_of(LANES), 0.0);
        all
    }

    /// The largest error in units of the last place of the exact result, which is normal where it counts.
    fn worst(which: Which, limit: f32, exact: impl Fn(f64) -> f64) -> f64 {
        let x = floats(limit);
        let all = Isa::available();
        let scalar = all[0].run(Each(which, &x));
        for isa in all {
            let got = isa.run(Each(which, &x));
            assert!(
                got.iter()
                    .zip(&scalar)
                    .all(|(a, b)| a.0.to_bits() == b.0.to_bits() && a.1.to_bits() == b.1.to_bits())
            );
        }
        let mut worst = 0f64;
        for (x, (high, low)) in x.into_iter().zip(scalar) {
            let want = exact(f64::from(x));
            if want.abs() > f64::from(f32::MAX) {
                assert!(high.is_infinite() || high == f32::MAX, "{x}");
                continue;
            }
            let ulp = (want.abs().log2().floor() - 23.0).max(-149.0).exp2();
            let error = (f64::from(high) + f64::from(low) - want).abs() / ulp;
            worst = worst.max(error);
        }
        worst
    }

    #[test]
    fn all_are_accurate_to_the_last_places() {
        let error = worst(Which::Exp, 110.0, f64::exp);
        assert!(error < 1.0, "exp {error}");
        let error = worst(Which::Sigmoid, 80.0, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(error < 2.5, "sigmoid {error}");
        let error = worst(Which::Silu, 80.0, |x| x / (1.0 + (-x).exp()));
        assert!(error < 2.5, "silu {error}");
        let error = worst(Which::Tanh, 30.0, f64::tanh);
        assert!(error < 2.5, "tanh {error}");
        let error = worst(Which::Softplus, 80.0, |x| x.max(0.0) + (-x.abs()).exp().ln_1p());
        assert!(error < 2.5, "softplus {error}");
    }

    #[test]
    fn the_pair_is_more_accurate_than_a_float() {
        let x: Vec<f32> = (0..16_000).map(|i| i as f32 * -0.005).collect();
        let mut worst = 0f64;
        for (x, (high, low)) in x.iter().zip(Isa::detect().run(Each(Which::Pair, &x))) {
            let want = f64::from(*x).exp();
            worst = worst.max((f64::from(high) + f64::from(low) - want).abs() / want);
        }
        assert!(worst < 1.0 / f64::from(1 << 26), "{worst:e}");
    }

    #[test]
    fn extremes_go_where_the_functions_go() {
        let x = [0.0, -0.0, 1000.0, -1000.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -103.9];
        let x: Vec<f32> = x.into_iter().chain([0.0; 8]).collect();
        for isa in Isa::available() {
            let all =
                |which| -> Vec<f32> { isa.run(Each(which, &x)).into_iter().map(|(high, _)| high).collect() };
            let (inf, tiny) = (f32::INFINITY, f32::from_bits(1));
            let exp = all(Which::Exp);
            assert_eq!(exp[..6], [1.0, 1.0, inf, 0.0, inf, 0.0]);
            assert!(exp[6].is_nan());
            assert_eq!(exp[7], tiny);
            assert_eq!(all(Which::Sigmoid)[..6], [0.5, 0.5, 1.0, 0.0, 1.0, 0.0]);
            assert_eq!(all(Which::Silu)[..5], [0.0, 0.0, 1000.0, 0.0, inf]);
            assert_eq!(all(Which::Tanh)[..6], [0.0, 0.0, 1.0, -1.0, 1.0, -1.0]);
            assert_eq!(all(Which::Softplus)[2..6], [1000.0, 0.0, inf, 0.0]);
            for which in [Which::Sigmoid, Which::Silu, Which::Tanh, Which::Softplus] {
                assert!(all(which)[6].is_nan(), "{}", isa.name());
            }
        }
    }
}

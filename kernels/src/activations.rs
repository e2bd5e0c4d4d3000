//! The activation functions of transformers, in place, with the same bits on every machine.

use crate::exponential;
use crate::simd::{Isa, Kernel, LANES, Simd};

/// `gate = silu(gate) * up`: SwiGLU (Shazeer, "GLU Variants Improve Transformer", 2020), elementwise.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    with(isa, gate, up, Swiglu);
}

/// `gate = gelu(gate) * up` with GELU's tanh approximation, elementwise.
pub fn geglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    with(isa, gate, up, Geglu);
}

/// gpt-oss's variant, elementwise: gate is clamped from above and up from both sides to `limit`, then
/// `gate = gate * sigmoid(alpha * gate) * (up + 1)`.
pub fn clamped_swiglu(isa: Isa, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    with(isa, gate, up, ClampedSwiglu { alpha, limit });
}

/// `values = values * sigmoid(gate)`, elementwise.
pub fn sigmoid_gate(isa: Isa, values: &mut [f32], gate: &[f32]) {
    with(isa, values, gate, SigmoidGate);
}

/// `1 / (1 + exp(-x))` of every element.
pub fn sigmoid(isa: Isa, values: &mut [f32]) {
    each(isa, values, Sigmoid);
}

/// `x * sigmoid(x)` of every element.
pub fn silu(isa: Isa, values: &mut [f32]) {
    each(isa, values, Silu);
}

/// `ln(1 + exp(x))` of every element.
pub fn softplus(isa: Isa, values: &mut [f32]) {
    each(isa, values, Softplus);
}

/// `exp(x)` of every element.
pub fn exp(isa: Isa, values: &mut [f32]) {
    each(isa, values, Exp);
}

/// `cap * tanh(x / cap)` of every element: Gemma's soft cap of logits.
pub fn soft_cap(isa: Isa, values: &mut [f32], cap: f32) {
    each(isa, values, SoftCap(cap));
}

/// A function of two elements; one of a single element ignores the second.
trait Pointwise {
    fn at<S: Simd>(&self, s: S, a: S::F32, b: S::F32) -> S::F32;
}

macro_rules! pointwise {
    ($($name:ident $(($field:ident))? $({ $($fields:ident),* })? = |$s:ident, $a:ident, $b:pat_param| $body:expr;)*) => {$(
        impl Pointwise for $name {
            #[inline(always)]
            fn at<S: Simd>(&self, $s: S, $a: S::F32, $b: S::F32) -> S::F32 {
                $(let $name($field) = *self;)?
                $(let $name { $($fields),* } = *self;)?
                $body
            }
        }
    )*};
}

struct Swiglu;
struct Geglu;
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}
struct SigmoidGate;
struct Sigmoid;
struct Silu;
struct Softplus;
struct Exp;
struct SoftCap(f32);

pointwise! {
    Swiglu = |s, gate, up| s.mul(exponential::silu(s, gate, s.splat(1.0)), up);
    // (1 + tanh u) / 2 is sigmoid(2u), u = sqrt(2 / π) (x + 0.044715 x³).
    Geglu = |s, gate, up| {
        let cubic = s.mul_add(s.mul(gate, gate), s.splat(1.595_769 * 0.044_715), s.splat(1.595_769));
        s.mul(exponential::silu(s, gate, cubic), up)
    };
    ClampedSwiglu { alpha, limit } = |s, gate, up| {
        let gate = s.min(s.splat(limit), gate);
        let up = s.max(s.splat(-limit), s.min(s.splat(limit), up));
        s.mul(exponential::silu(s, gate, s.splat(alpha)), s.add(up, s.splat(1.0)))
    };
    SigmoidGate = |s, x, gate| s.mul(x, exponential::sigmoid(s, gate));
    Sigmoid = |s, x, _| exponential::sigmoid(s, x);
    Silu = |s, x, _| exponential::silu(s, x, s.splat(1.0));
    Softplus = |s, x, _| exponential::softplus(s, x);
    Exp = |s, x, _| exponential::exp(s, x);
    SoftCap(cap) = |s, x, _| {
        s.mul(s.splat(cap), exponential::tanh(s, s.div(x, s.splat(cap))))
    };
}

fn with<P: Pointwise>(isa: Isa, values: &mut [f32], others: &[f32], function: P) {
    assert_eq!(values.len(), others.len());
    isa.run(With { values, others, function });
}

fn each<P: Pointwise>(isa: Isa, values: &mut [f32], function: P) {
    isa.run(Each { values, function });
}

struct With<'a, P> {
    values: &'a mut [f32],
    others: &'a [f32],
    function: P,
}

impl<P: Pointwise> Kernel for With<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (values, rest) = self.values.as_chunks_mut();
        let (others, other_rest) = self.others.as_chunks();
        for (value, other) in values.iter_mut().zip(others) {
            s.store(self.function.at(s, s.load(value), s.load(other)), value);
        }
        let (mut value, mut other) = ([0.0; LANES], [0.0; LANES]);
        value[..rest.len()].copy_from_slice(rest);
        other[..rest.len()].copy_from_slice(other_rest);
        s.store(self.function.at(s, s.load(&value), s.load(&other)), &mut value);
        rest.copy_from_slice(&value[..rest.len()]);
    }
}

struct Each<'a, P> {
    values: &'a mut [f32],
    function: P,
}

impl<P: Pointwise> Kernel for Each<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (values, rest) = self.values.as_chunks_mut();
        for value in values {
            let x = s.load(value);
            s.store(self.function.at(s, x, x), value);
        }
        let mut value = [0.0; LANES];
        value[..rest.len()].copy_from_slice(rest);
        let x = s.load(&value);
        s.store(self.function.at(s, x, x), &mut value);
        rest.copy_from_slice(&value[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `function` on every instruction set: the bits agree, and the values are within 4e-7 of `exact`'s, relative to
    /// them or, where they are small because of what cancels, to `size`.
    fn check(function: impl Fn(Isa, &mut [f32], &[f32]), exact: impl Fn(f64, f64) -> f64) {
        // 1,003 elements: whole vectors and a rest.
        let a: Vec<f32> = (0..1003).map(|i| (i as f32 - 480.0) * 0.03).collect();
        let b: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.77).sin() * 9.0).collect();
        let mut scalar = a.clone();
        function(Isa::available()[0], &mut scalar, &b);
        for isa in Isa::available() {
            let mut got = a.clone();
            function(isa, &mut got, &b);
            assert!(got.iter().zip(&scalar).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa.name());
        }
        for ((a, b), got) in a.into_iter().zip(b).zip(scalar) {
            let want = exact(f64::from(a), f64::from(b));
            // The argument of exp carries a rounding of its own, which grows with its size.
            let bound = 4e-7 * (1.0 + a.abs()) as f64 * want.abs().max(1e-30);
            assert!((f64::from(got) - want).abs() <= bound, "f({a}, {b}) is {want}, not {got}");
        }
    }

    fn exact_sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn gated_ones_are_those_of_the_papers() {
        check(swiglu, |gate, up| gate * exact_sigmoid(gate) * up);
        check(sigmoid_gate, |x, gate| x * exact_sigmoid(gate));
        check(
            |isa, gate, up| clamped_swiglu(isa, gate, up, 1.702, 7.0),
            |gate, up| {
                let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
                gate * exact_sigmoid(f64::from(1.702f32) * gate) * (up + 1.0)
            },
        );
    }

    #[test]
    fn gelu_is_its_tanh_approximation() {
        let gate: Vec<f32> = (0..800).map(|i| (i as f32 - 400.0) * 0.012).collect();
        for isa in Isa::available() {
            let mut got = gate.clone();
            geglu(isa, &mut got, &[2.0; 800]);
            for (&x, got) in gate.iter().zip(got) {
                let x = f64::from(x);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                let want = x * (1.0 + u.tanh());
                assert!((f64::from(got) - want).abs() <= 4e-7 * (1.0 + u.abs()) * want.abs().max(1e-9));
            }
        }
    }

    #[test]
    fn those_of_one_argument_are_their_formulas() {
        check(|isa, x, _| sigmoid(isa, x), |x, _| exact_sigmoid(x));
        check(|isa, x, _| silu(isa, x), |x, _| x * exact_sigmoid(x));
        check(|isa, x, _| softplus(isa, x), |x, _| x.exp().ln_1p());
        check(|isa, x, _| exp(isa, x), |x, _| x.exp());
        check(|isa, x, _| soft_cap(isa, x, 5.0), |x, _| 5.0 * (x / 5.0).tanh());
    }
}

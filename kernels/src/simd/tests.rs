//! Every operation of every instruction set gives the bits that [`Scalar`] gives.

use super::*;

/// Both signs of zero, denormals, halfway cases of `f32` → integer and of `f32` → `f16`, extremes, infinities, NaN.
const EDGES: [f32; 32] = [
    0.0,
    -0.0,
    1e-45,
    -3e-42,
    f32::MIN_POSITIVE,
    -1.1e-38,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    1.0,
    -7.0,
    8_388_607.5,
    0.499_999_97,
    3.402_823_5e38,
    -3.402_823_5e38,
    65504.0,
    65519.996,
    65520.0,
    -70000.0,
    5.960_464_5e-8,
    2.980_232_2e-8,
    8.940_697e-8,
    6.097_555e-5,
    1.000_488_3,
    1.001_464_8,
    -123.456,
    1e20,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

const EDGES_I: [i32; 16] =
    [0, 1, -1, 127, -128, 255, 256, 65535, 65536, 16_777_217, -16_777_219, i32::MAX, i32::MIN, 77, -77, 15];

/// Runs every operation on rotations of the edge values and gives all result bits, NaNs made equal.
struct EveryOperation;

impl Kernel for EveryOperation {
    type Output = Vec<(&'static str, [i32; LANES])>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = Vec::new();
        for turn in 0..EDGES.len() {
            let pick = |step: usize| {
                s.load(&std::array::from_fn(|i| EDGES[(i * step + turn * (step + 1)) % EDGES.len()]))
            };
            let (a, b, c) = (pick(1), pick(3), pick(5));
            let m = s.lt(a, b);
            let mut floats = |name, v| {
                let mut bits = [0; LANES];
                s.store_i(s.bits(v), &mut bits);
                out.push((
                    name,
                    bits.map(
                        |b| if f32::from_bits(b as u32).is_nan() { f32::NAN.to_bits() as i32 } else { b },
                    ),
                ));
            };
            floats("splat", s.splat(EDGES[turn]));
            floats("add", s.add(a, b));
            floats("sub", s.sub(a, b));
            floats("mul", s.mul(a, b));
            floats("div", s.div(a, b));
            floats("mul_add", s.mul_add(a, b, c));
            floats("neg_mul_add", s.neg_mul_add(a, b, c));
            floats("min", s.min(a, b));
            floats("max", s.max(a, b));
            floats("abs", s.abs(a));
            floats("neg", s.neg(a));
            floats("sqrt", s.sqrt(a));
            floats("round", s.round(a));
            floats("round_f16", s.round_f16(a));
            floats("lt", s.select(s.lt(a, b), a, b));
            floats("le", s.select(s.le(a, b), a, b));
            floats("eq", s.select(s.eq(a, b), a, c));
            floats("and", s.select(s.and(m, s.le(b, c)), a, b));
            floats("or", s.select(s.or(m, s.le(b, c)), a, b));
            floats("not", s.select(s.not(m), a, b));
            floats("any", s.splat(s.any(s.lt(a, s.splat(EDGES[turn]))) as u8 as f32));
            floats("any of none", s.splat(s.any(s.lt(a, a)) as u8 as f32));
            floats("reduce_add", s.splat(s.reduce_add(a)));
            // Without infinities and NaN, so that the order of the sum shows.
            let small = s.select(s.lt(s.abs(a), s.splat(1e20)), a, b);
            floats(
                "reduce_add of finite",
                s.splat(s.reduce_add(s.select(s.lt(s.abs(small), s.splat(1e20)), small, s.splat(0.1)))),
            );
            floats("exchange 1", s.exchange::<1>(a));
            floats("exchange 2", s.exchange::<2>(a));
            floats("exchange 4", s.exchange::<4>(a));
            floats("exchange 8", s.exchange::<8>(a));
            let mut stored = [0.0; LANES];
            s.store(a, &mut stored);
            floats("store", s.load(&stored));
            let mut square = [a; LANES];
            for (i, row) in square.iter_mut().enumerate() {
                *row = s.load(&std::array::from_fn(|j| (i * 16 + j) as f32));
            }
            s.transpose(&mut square);
            for row in square {
                floats("transpose", row);
            }

            let picki =
                |step: usize| s.load_i(&std::array::from_fn(|i| EDGES_I[(i * step + turn) % EDGES_I.len()]));
            let (x, y) = (picki(1), picki(3));
            let table: [f32; LANES] = std::array::from_fn(|i| i as f32 - 7.5);
            floats("lookup", s.lookup(&table, x));
            floats("to_f32", s.to_f32(x));
            floats("from_bits", s.from_bits(s.and_i(x, s.splat_i(0x7f00_00ff))));
            let within = s.lt(s.abs(a), s.splat(1e9));
            let mut integers = |name, v| {
                let mut stored = [0; LANES];
                s.store_i(v, &mut stored);
                out.push((name, stored));
            };
            integers("to_i32", s.to_i32(s.select(within, a, s.splat(-3.5))));
            integers("splat_i", s.splat_i(EDGES_I[turn % 16]));
            integers("add_i", s.add_i(x, y));
            integers("sub_i", s.sub_i(x, y));
            integers("dot_i16", s.dot_i16(x, y, s.splat_i(EDGES_I[turn % 16])));
            integers("min_i", s.min_i(x, y));
            integers("max_i", s.max_i(x, y));
            integers("and_i", s.and_i(x, y));
            integers("or_i", s.or_i(x, y));
            integers("xor_i", s.xor_i(x, y));
            integers("shl_i", s.shl_i::<7>(x));
            integers("shl_i 31", s.shl_i::<31>(x));
            integers("shr_i", s.shr_i::<7>(x));
            integers("shr_i 23", s.shr_i::<23>(x));
            integers("eq_i", s.select_i(s.eq_i(x, y), x, s.splat_i(5)));
            integers("lt_i", s.select_i(s.lt_i(x, y), x, y));
            let bytes: [u8; LANES] = std::array::from_fn(|i| (i * 37 + turn * 11) as u8);
            integers("load_u8", s.load_u8(&bytes));
            integers("load_i8", s.load_i8(&bytes));
            let words: [u16; LANES] = std::array::from_fn(|i| (i * 7919 + turn * 2047) as u16);
            integers("load_u16", s.load_u16(&words));
            let mut bytes = [0; LANES];
            s.store_u8(x, &mut bytes);
            let mut words = [0; LANES];
            s.store_u16(x, &mut words);
            let mut halves = [0; LANES];
            s.store_f16(s.select(s.eq(a, a), a, s.splat(1.0)), &mut halves);
            out.push(("store_u8", bytes.map(i32::from)));
            out.push(("store_u16", words.map(i32::from)));
            out.push(("store_f16", halves.map(i32::from)));
        }
        out
    }
}

#[test]
fn every_operation_gives_the_bits_of_scalar() {
    let expected = Isa::Scalar(Scalar).run(EveryOperation);
    for isa in Isa::available() {
        for (i, (got, want)) in isa.run(EveryOperation).iter().zip(&expected).enumerate() {
            assert_eq!(got, want, "{} differs, result {i}", isa.name());
        }
    }
}

struct EveryHalf;

impl Kernel for EveryHalf {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = Vec::new();
        for first in (0..=u16::MAX).step_by(LANES) {
            let mut floats = [0.0; LANES];
            s.store(s.load_f16(&std::array::from_fn(|i| first + i as u16)), &mut floats);
            out.extend(floats.map(|x: f32| if x.is_nan() { f32::NAN } else { x }.to_bits()));
        }
        out
    }
}

#[test]
fn every_half_float_is_widened_exactly() {
    for isa in Isa::available() {
        for (h, bits) in isa.run(EveryHalf).into_iter().enumerate() {
            let want = half::f16::from_bits(h as u16).to_f32();
            assert!(
                bits == want.to_bits() || want.is_nan() && f32::from_bits(bits).is_nan(),
                "{} {h:#x}",
                isa.name()
            );
        }
    }
}

#[test]
fn each_instruction_set_has_its_own_name() {
    let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    assert_eq!(names[0], "scalar");
    assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])));
}

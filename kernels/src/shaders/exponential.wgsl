// exp and what is made of it, to about an ulp: the devices' own may be off by (3 + 2 |x|) ulp.
// exp(x) = 2ⁿ · exp(r) with n the integer next to x / ln 2, as in kernels::exponential.

const LOG2_E: f32 = 1.44269504;
// The upper 15 bits of ln 2, so that products with n are exact, and the rest.
const LN2_HIGH: f32 = 0.69314575;
const LN2_LOW: f32 = 1.4286068e-6;

// (exp(r) - 1 - r) / r² for |r| <= ln 2 / 2.
fn exp_tail(r: f32) -> f32 {
    var tail = fma(1.9789262e-4, r, 1.3945752e-3);
    tail = fma(tail, r, 8.333504e-3);
    tail = fma(tail, r, 4.1666280e-2);
    tail = fma(tail, r, 0.16666666);
    return fma(tail, r, 0.5);
}

// 2ⁿ for whole n from -126 to 127.
fn power_of_two(n: f32) -> f32 {
    return bitcast<f32>(u32(i32(n) + 127) << 23u);
}

// 2ⁿ and exp(r) - 1, for x from -87 to 88.
fn exp_parts(x: f32) -> vec2<f32> {
    let n = round(x * LOG2_E);
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    return vec2(power_of_two(n), fma(r * r, exp_tail(r), r));
}

// 0 below -87; above 88 as there.
fn exponential(x: f32) -> f32 {
    let parts = exp_parts(clamp(x, -87.0, 88.0));
    return select(parts.x * (1.0 + parts.y), 0.0, x < -87.0);
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exponential(-x));
}

// Also accurate relative to small results: tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1, and from 10 on it is 1.
fn hyperbolic_tangent(x: f32) -> f32 {
    let parts = exp_parts(min(20.0, 2.0 * abs(x)));
    let e = fma(parts.x, parts.y, parts.x - 1.0);
    let tangent = e / (e + 2.0);
    return select(tangent, -tangent, x < 0.0);
}

// ln(1 + exp(x)), also accurate relative to small results: max(x, 0) + ln(1 + y) with y = exp(-|x|), and
// ln(1 + y) = 2 artanh(z) with z = y / (2 + y) <= 1/3.
fn softplus(x: f32) -> f32 {
    let y = exponential(-abs(x));
    let z = y / (2.0 + y);
    let square = z * z;
    var series = fma(0.12154161, square, 0.10712926);
    series = fma(series, square, 0.14308518);
    series = fma(series, square, 0.19999437);
    series = fma(series, square, 0.33333337);
    return max(x, 0.0) + fma(2.0 * z * square, series, 2.0 * z);
}

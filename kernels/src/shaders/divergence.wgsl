// What a tile of the vocabulary contributes to a token's figures: a workgroup for each row of logits, see kernels::divergence. In front
// come REFERENCE: whether there is one, or the model's logits are bound in its place, and WORDS: how many a row of the result has.
//
// Sums are pairs of floats, whose second holds what the first loses to rounding. Compilers that take floats for real numbers would find
// that to be nothing; so what must be rounded goes through `rounded`, which they can't see through. What is not finite is
// looked for in the bits, since such compilers assume that there is none.
struct Params {
    width: u32,
    // The tile's first token of the vocabulary.
    first: u32,
    rows: u32,
    // The first row's number, for its target.
    first_row: u32,
    zero: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> model: array<u32>;
@group(0) @binding(1) var<storage, read> reference: array<u32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> result: array<u32>;

const THREADS = 128u;
const LOWEST = -0x1.fffffep+127f;
const NAN = 0x7fc00000u;

struct Largest {
    value: f32,
    index: u32,
    // Whether some logit is not finite.
    broken: u32,
}
struct Sums {
    model: vec2<f32>,
    reference: vec2<f32>,
    // Of exp(lr - max) · d and exp(lr - max) · (exp(d) - 1 - d), with d = (lm - max lm) - (lr - max lr).
    difference: vec2<f32>,
    excess: f32,
}
var<workgroup> model_largest: array<Largest, THREADS>;
var<workgroup> reference_largest: array<Largest, THREADS>;
var<workgroup> partial: array<Sums, THREADS>;

fn rounded(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ p.zero);
}

// a - b, and what it loses to rounding (Knuth's TwoSum).
fn difference_pair(a: f32, b: f32) -> vec2<f32> {
    let d = rounded(a - b);
    let part = rounded(d - a);
    return vec2(d, rounded(a - rounded(d - part)) - rounded(b + part));
}

fn sum_pair(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = difference_pair(a.x, -b.x);
    return vec2(sum.x, sum.y + (a.y + b.y));
}

// The upper twelve bits, whose products are exact.
fn upper(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
}

fn product_pair(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let a_upper = upper(a.x);
    let b_upper = upper(b.x);
    let rest = a_upper * (b.x - b_upper) + (a.x - a_upper) * b.x;
    return vec2(a_upper * b_upper, rest + (a.x * b.y + a.y * b.x));
}

// exp of a pair <= 0; 0 below -87.
fn exp_pair(x: vec2<f32>) -> vec2<f32> {
    let n = round(max(x.x, -87.0) * LOG2_E);
    let high = rounded(max(x.x, -87.0) - n * LN2_HIGH);
    let r = rounded(high - n * LN2_LOW);
    let lost = rounded(high - r) - n * LN2_LOW;
    let one_plus = rounded(1.0 + r);
    let rest = (r - rounded(one_plus - 1.0)) + fma(r * r, exp_tail(r), lost);
    let small = fma(one_plus, x.y, rest);
    let sum = rounded(one_plus + small);
    let pair = power_of_two(n) * vec2(sum, small - rounded(sum - one_plus));
    return select(pair, vec2(0.0), x.x < -87.0);
}

fn is_broken(bits: u32) -> bool {
    return (bits & 0x7f800000u) == 0x7f800000u;
}

fn logit(bits: u32) -> f32 {
    return bitcast<f32>(select(bits, bitcast<u32>(LOWEST), is_broken(bits)));
}

// Of equals the first.
fn larger(a: Largest, b: Largest) -> Largest {
    var found = a;
    if b.value > a.value || (b.value == a.value && b.index < a.index) {
        found = b;
    }
    found.broken = a.broken | b.broken;
    return found;
}

fn add(a: Sums, b: Sums) -> Sums {
    return Sums(
        sum_pair(a.model, b.model),
        sum_pair(a.reference, b.reference),
        sum_pair(a.difference, b.difference),
        a.excess + b.excess,
    );
}

// exp(d) - 1 - d times the weight: of small d by its series, otherwise out of both weights.
fn excess(d: f32, weight: f32, model_weight: f32) -> f32 {
    var series = fma(2.4801587e-5, d, 1.9841270e-4);
    series = fma(series, d, 1.3888889e-3);
    series = fma(series, d, 8.3333333e-3);
    series = fma(series, d, 4.1666667e-2);
    series = fma(series, d, 0.16666667);
    series = fma(series, d, 0.5);
    return select(model_weight - weight - weight * d, weight * d * d * series, abs(d) < 0.5);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= p.rows {
        return;
    }
    let start = row * p.width;

    var largest = Largest(LOWEST, thread, 0u);
    var reference_max = largest;
    for (var i = thread; i < p.width; i += THREADS) {
        let bits = model[start + i];
        largest = larger(largest, Largest(logit(bits), i, select(0u, 1u, is_broken(bits))));
        if REFERENCE {
            let bits = reference[start + i];
            reference_max = larger(reference_max, Largest(logit(bits), i, select(0u, 1u, is_broken(bits))));
        }
    }
    model_largest[thread] = largest;
    reference_largest[thread] = reference_max;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            model_largest[thread] = larger(model_largest[thread], model_largest[thread + half]);
            reference_largest[thread] = larger(reference_largest[thread], reference_largest[thread + half]);
        }
    }
    workgroupBarrier();
    largest = model_largest[0];
    reference_max = reference_largest[0];

    var sums = Sums(vec2(0.0), vec2(0.0), vec2(0.0), 0.0);
    for (var i = thread; i < p.width; i += THREADS) {
        let model_below = difference_pair(logit(model[start + i]), largest.value);
        let model_weight = exp_pair(model_below);
        sums.model = sum_pair(sums.model, model_weight);
        if REFERENCE {
            let below = difference_pair(logit(reference[start + i]), reference_max.value);
            let weight = exp_pair(below);
            sums.reference = sum_pair(sums.reference, weight);
            // Without weight, a difference may be infinite.
            if weight.x > 0.0 {
                var d = difference_pair(model_below.x, below.x);
                d.y += model_below.y - below.y;
                sums.difference = sum_pair(sums.difference, product_pair(weight, d));
                sums.excess += excess(d.x + d.y, weight.x, model_weight.x);
            }
        }
    }
    partial[thread] = sums;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            partial[thread] = add(partial[thread], partial[thread + half]);
        }
    }

    if thread == 0u {
        sums = partial[0];
        let at = row * WORDS;
        let target_at = targets[p.first_row + row] - p.first;
        let is_here = targets[p.first_row + row] >= p.first && target_at < p.width;
        result[at] = bitcast<u32>(largest.value);
        result[at + 1u] = largest.index;
        result[at + 2u] = select(bitcast<u32>(sums.model.x), NAN, largest.broken != 0u);
        result[at + 3u] = bitcast<u32>(sums.model.y);
        result[at + 4u] = NAN;
        result[at + 5u] = bitcast<u32>(reference_max.value);
        result[at + 6u] = reference_max.index;
        result[at + 7u] = select(bitcast<u32>(sums.reference.x), NAN, reference_max.broken != 0u);
        result[at + 8u] = bitcast<u32>(sums.reference.y);
        result[at + 9u] = NAN;
        result[at + 10u] = bitcast<u32>(sums.difference.x);
        result[at + 11u] = bitcast<u32>(sums.difference.y);
        result[at + 12u] = bitcast<u32>(sums.excess);
        if is_here {
            result[at + 4u] = model[start + target_at];
            result[at + 9u] = reference[start + target_at];
        }
    }
}

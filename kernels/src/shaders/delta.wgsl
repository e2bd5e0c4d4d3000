// The gated delta rule (https://arxiv.org/abs/2412.06464) of one value head in one sequence. Columns of the state know nothing of each
// other: a workgroup has COLUMNS, each in the registers of four threads. In front come that, KEY and VALUE.
//
// With S the state before a token, d what it is multiplied by and n = rate · (v - d kᵀS) what is new, it becomes d S + k ⊗ n, and
// the output is d qᵀS + (q · k) n: all that the threads of a column have to tell each other is known before the state changes.
struct Params {
    key_heads: u32,
    value_heads: u32,
}
var<immediate> p: Params;

struct Sequence {
    row: u32,
    length: u32,
}
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
// Rates, then biases.
@group(0) @binding(5) var<storage, read> gates: array<f32>;
@group(0) @binding(6) var<storage, read> sequences: array<Sequence>;
@group(0) @binding(7) var<storage, read_write> result: array<f32>;

// Threads that share a column.
const PARTS = 4u;
const THREADS = COLUMNS * PARTS;
const BLOCKS = (VALUE + COLUMNS - 1u) / COLUMNS;
// Fours of a key's elements: in each thread, and in all.
const EACH = (KEY + 4u * PARTS - 1u) / (4u * PARTS);
const KEY4 = EACH * PARTS;
// Tokens that are staged at a time.
const TOKENS = clamp(512u / KEY4, 1u, 32u);

var<workgroup> queries: array<vec4<f32>, TOKENS * KEY4>;
var<workgroup> keys: array<vec4<f32>, TOKENS * KEY4>;
var<workgroup> values: array<f32, TOKENS * COLUMNS>;
// What the state is multiplied by, and how much of what is new is written.
var<workgroup> decay: array<f32, TOKENS>;
var<workgroup> rate: array<f32, TOKENS>;
// kᵀS, qᵀS and q · k, of this token and of the one before it, which slower threads may still read.
var<workgroup> partial: array<vec3<f32>, 2u * THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let sequence = sequences[group.y];
    let head = group.x / BLOCKS;
    let first_column = group.x % BLOCKS * COLUMNS;
    let key_head = head % p.key_heads;
    let column = thread % COLUMNS;
    let part = thread / COLUMNS;

    var state: array<vec4<f32>, EACH>;
    for (var i = 0u; i < EACH; i++) {
        state[i] = vec4(0.0);
    }
    for (var first = 0u; first < sequence.length; first += TOKENS) {
        let tokens = min(TOKENS, sequence.length - first);
        let row = sequence.row + first;
        workgroupBarrier();
        for (var i = thread; i < tokens * KEY4; i += THREADS) {
            let element = i % KEY4 * 4u;
            let at = ((row + i / KEY4) * p.key_heads + key_head) * KEY + element;
            var query = vec4(0.0);
            var key = vec4(0.0);
            if element + 4u <= KEY {
                query = vec4(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
                key = vec4(k[at], k[at + 1u], k[at + 2u], k[at + 3u]);
            } else {
                for (var e = 0u; element + e < KEY; e++) {
                    query[e] = q[at + e];
                    key[e] = k[at + e];
                }
            }
            queries[i] = query;
            keys[i] = key;
        }
        for (var i = thread; i < tokens * COLUMNS; i += THREADS) {
            let c = first_column + i % COLUMNS;
            if c < VALUE {
                values[i] = v[((row + i / COLUMNS) * p.value_heads + head) * VALUE + c];
            }
        }
        if thread < tokens {
            let at = (row + thread) * p.value_heads + head;
            decay[thread] = exponential(gates[head] * softplus(a[at] + gates[p.value_heads + head]));
            rate[thread] = sigmoid(b[at]);
        }
        workgroupBarrier();
        for (var t = 0u; t < tokens; t++) {
            let at = t * KEY4 + part * EACH;
            var recalled = vec4(0.0);
            var answered = vec4(0.0);
            var both = vec4(0.0);
            for (var i = 0u; i < EACH; i++) {
                recalled = fma(keys[at + i], state[i], recalled);
                answered = fma(queries[at + i], state[i], answered);
                both = fma(queries[at + i], keys[at + i], both);
            }
            let sums = t % 2u * THREADS;
            let one = vec4(1.0);
            partial[sums + thread] = vec3(dot(recalled, one), dot(answered, one), dot(both, one));
            workgroupBarrier();
            var sum = vec3(0.0);
            for (var i = 0u; i < PARTS; i++) {
                sum += partial[sums + i * COLUMNS + column];
            }
            let new_value = rate[t] * (values[t * COLUMNS + column] - decay[t] * sum.x);
            for (var i = 0u; i < EACH; i++) {
                state[i] = fma(keys[at + i], vec4(new_value), decay[t] * state[i]);
            }
            if part == 0u && first_column + column < VALUE {
                let out = ((row + t) * p.value_heads + head) * VALUE + first_column + column;
                result[out] = fma(sum.z, new_value, decay[t] * sum.y);
            }
        }
    }
}

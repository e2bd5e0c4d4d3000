// Causal softmax attention with grouped queries: a workgroup takes a tile of queries of one head through the keys that it sees, tile by
// tile, with the running maximum and sum of an online softmax (https://arxiv.org/abs/1805.02867).
//
// In front come KEY, VALUE and QUERIES, and what reads matrices by four columns: q4, k4 and v4, and writes one: attended4, given the
// place where a head begins and which four of its columns.
struct Params {
    heads: u32,
    kv_heads: u32,
    scale: f32,
    window: u32,
    // 0: none.
    soft_cap: f32,
    has_sinks: u32,
}
var<immediate> p: Params;

struct Tile {
    // Of its sequence: the first row, and how many.
    row: u32,
    length: u32,
    // The first query, counted from there.
    query: u32,
}
@group(0) @binding(4) var<storage, read> tiles: array<Tile>;
@group(0) @binding(5) var<storage, read> sinks: array<f32>;

const THREADS = 256u;
// Each thread has the scores of four queries and two keys.
const KEYS = 2048u / QUERIES;
const QUERIES4 = QUERIES / 4u;
const KEYS2 = KEYS / 2u;
const KEY4 = (KEY + 3u) / 4u;
const VALUE4 = (VALUE + 3u) / 4u;
// Each thread sums up the values of four queries and four columns, and of further ones if there are more than threads.
const BLOCKS = QUERIES4 * VALUE4;
const BLOCKS_EACH = (BLOCKS + THREADS - 1u) / THREADS;
// Fours of a key's columns that are staged at a time; by columns, with a gap against bank conflicts.
const CHUNK = 8u;
const QUERY_STRIDE = QUERIES + 1u;
const KEY_STRIDE = KEYS + 1u;
const STAGED_KEYS = CHUNK * QUERY_STRIDE;
const STAGED = STAGED_KEYS + CHUNK * KEY_STRIDE;
// Rows of values that are staged at a time, in the same place.
const VALUES = min(KEYS, STAGED / VALUE4);

const LOWEST = -0x1.fffffep+127f;

var<workgroup> staged: array<vec4<f32>, STAGED>;
// By keys, four queries each.
var<workgroup> weights: array<vec4<f32>, KEYS * QUERIES4>;
var<workgroup> partial: array<vec4<f32>, THREADS>;
// What four queries' sums are multiplied by.
var<workgroup> factors: array<vec4<f32>, QUERIES4>;

fn exponential4(x: vec4<f32>) -> vec4<f32> {
    return vec4(exponential(x.x), exponential(x.y), exponential(x.z), exponential(x.w));
}

fn score4(dots: vec4<f32>) -> vec4<f32> {
    let s = dots * p.scale;
    if p.soft_cap == 0.0 {
        return s;
    }
    let x = s / p.soft_cap;
    return p.soft_cap * vec4(
        hyperbolic_tangent(x.x),
        hyperbolic_tangent(x.y),
        hyperbolic_tangent(x.z),
        hyperbolic_tangent(x.w),
    );
}

// Which of four queries see a key: one that does not lie behind them, in their window.
fn sees4(query: u32, key: u32) -> vec4<bool> {
    let queries = vec4(query) + vec4(0u, 1u, 2u, 3u);
    return (vec4(key) <= queries) & (queries - vec4(key) < vec4(p.window));
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = tiles[group.x];
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);

    let my_queries = thread / KEYS2;
    let my_key = thread % KEYS2;
    let query = tile.query + 4u * my_queries;

    var largest = vec4(LOWEST);
    var sum = vec4(0.0);
    if p.has_sinks != 0u {
        largest = vec4(sinks[head]);
        sum = vec4(select(0.0, 1.0, my_key == 0u));
    }
    var result: array<vec4<f32>, 4u * BLOCKS_EACH>;
    for (var i = 0u; i < 4u * BLOCKS_EACH; i++) {
        result[i] = vec4(0.0);
    }

    let seen = tile.query + 1u - min(tile.query + 1u, p.window);
    let end = min(tile.query + QUERIES, tile.length);
    for (var first = seen / KEYS * KEYS; first < end; first += KEYS) {
        // Scores.
        var dots0 = vec4(0.0);
        var dots1 = vec4(0.0);
        for (var column = 0u; column < KEY4; column += CHUNK) {
            workgroupBarrier();
            for (var i = thread; i < QUERIES * CHUNK; i += THREADS) {
                let row = tile.query + i / CHUNK;
                let at = column + i % CHUNK;
                var x = vec4(0.0);
                if row < tile.length && at < KEY4 {
                    x = q4(((tile.row + row) * p.heads + head) * KEY, at);
                }
                staged[i % CHUNK * QUERY_STRIDE + i / CHUNK] = x;
            }
            for (var i = thread; i < KEYS * CHUNK; i += THREADS) {
                let row = first + i / CHUNK;
                let at = column + i % CHUNK;
                var x = vec4(0.0);
                if row < end && at < KEY4 {
                    x = k4(((tile.row + row) * p.kv_heads + kv_head) * KEY, at);
                }
                staged[STAGED_KEYS + i % CHUNK * KEY_STRIDE + i / CHUNK] = x;
            }
            workgroupBarrier();
            for (var c = 0u; c < CHUNK; c++) {
                let at = c * QUERY_STRIDE + 4u * my_queries;
                let queries = mat4x4(staged[at], staged[at + 1u], staged[at + 2u], staged[at + 3u]);
                let keys = STAGED_KEYS + c * KEY_STRIDE + my_key;
                dots0 += staged[keys] * queries;
                dots1 += staged[keys + KEYS2] * queries;
            }
        }

        // Weights.
        let sees0 = sees4(query, first + my_key);
        let sees1 = sees4(query, first + my_key + KEYS2);
        let scores0 = select(vec4(LOWEST), score4(dots0), sees0);
        let scores1 = select(vec4(LOWEST), score4(dots1), sees1);
        partial[thread] = max(scores0, scores1);
        workgroupBarrier();
        let before = largest;
        for (var i = 0u; i < KEYS2; i++) {
            largest = max(largest, partial[my_queries * KEYS2 + i]);
        }
        let factor = exponential4(before - largest);
        let weights0 = select(vec4(0.0), exponential4(scores0 - largest), sees0);
        let weights1 = select(vec4(0.0), exponential4(scores1 - largest), sees1);
        sum = sum * factor + weights0 + weights1;
        weights[my_key * QUERIES4 + my_queries] = weights0;
        weights[(my_key + KEYS2) * QUERIES4 + my_queries] = weights1;
        if my_key == 0u {
            factors[my_queries] = factor;
        }
        workgroupBarrier();

        // Values.
        for (var j = 0u; j < BLOCKS_EACH; j++) {
            let block = thread + j * THREADS;
            if block < BLOCKS {
                let factor = factors[block / VALUE4];
                result[4u * j] *= factor.x;
                result[4u * j + 1u] *= factor.y;
                result[4u * j + 2u] *= factor.z;
                result[4u * j + 3u] *= factor.w;
            }
        }
        let keys = min(KEYS, end - first);
        for (var start = 0u; start < keys; start += VALUES) {
            let rows = min(VALUES, keys - start);
            for (var i = thread; i < rows * VALUE4; i += THREADS) {
                let row = tile.row + first + start + i / VALUE4;
                staged[i] = v4((row * p.kv_heads + kv_head) * VALUE, i % VALUE4);
            }
            workgroupBarrier();
            for (var j = 0u; j < BLOCKS_EACH; j++) {
                let block = thread + j * THREADS;
                if block < BLOCKS {
                    for (var i = 0u; i < rows; i++) {
                        let weight = weights[(start + i) * QUERIES4 + block / VALUE4];
                        let value = staged[i * VALUE4 + block % VALUE4];
                        result[4u * j] += weight.x * value;
                        result[4u * j + 1u] += weight.y * value;
                        result[4u * j + 2u] += weight.z * value;
                        result[4u * j + 3u] += weight.w * value;
                    }
                }
            }
            workgroupBarrier();
        }
    }

    partial[thread] = sum;
    workgroupBarrier();
    if my_key == 0u {
        var total = vec4(0.0);
        for (var i = 0u; i < KEYS2; i++) {
            total += partial[my_queries * KEYS2 + i];
        }
        factors[my_queries] = 1.0 / total;
    }
    workgroupBarrier();
    for (var j = 0u; j < BLOCKS_EACH; j++) {
        let block = thread + j * THREADS;
        if block < BLOCKS {
            let factor = factors[block / VALUE4];
            for (var i = 0u; i < 4u; i++) {
                let row = tile.query + block / VALUE4 * 4u + i;
                if row < tile.length {
                    let at = ((tile.row + row) * p.heads + head) * VALUE;
                    attended4(at, block % VALUE4, result[4u * j + i] * factor[i]);
                }
            }
        }
    }
}

// Each of 64 invocations makes 8 × 8 elements of the tile.
const THREADS: u32 = 64u;
// Values of a row of a staged tile: apart enough for rows next to each other to lie in different banks.
const STRIDE: u32 = 36u;

var<workgroup> xs: array<vec4<T>, 576>;
var<workgroup> ws: array<vec4<T>, 576>;

fn put_x(at: u32, values: vec4<T>) {
    xs[at / 4u] = values;
}

fn put_w(at: u32, low: vec4<T>, high: vec4<T>) {
    ws[at / 4u] = low;
    ws[at / 4u + 1u] = high;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x * TILE;
    let token = group.y * TILE;
    let right = thread % 8u;
    let down = thread / 8u;
    // Element (8i + down, 8j + right): component j % 4 of sums[2i + j / 4].
    var sums: array<vec4<f32>, 16>;
    for (var first = 0u; first < p.columns; first += DEPTH) {
        workgroupBarrier();
        stage(token, row, first, group.z, thread);
        workgroupBarrier();
        for (var k = 0u; k < DEPTH / 4u; k++) {
            let at = right * (STRIDE / 4u) + k;
            let w0 = vec4<f32>(ws[at]);
            let w1 = vec4<f32>(ws[at + 2u * STRIDE]);
            let w2 = vec4<f32>(ws[at + 4u * STRIDE]);
            let w3 = vec4<f32>(ws[at + 6u * STRIDE]);
            let w4 = vec4<f32>(ws[at + 8u * STRIDE]);
            let w5 = vec4<f32>(ws[at + 10u * STRIDE]);
            let w6 = vec4<f32>(ws[at + 12u * STRIDE]);
            let w7 = vec4<f32>(ws[at + 14u * STRIDE]);
            for (var i = 0u; i < 8u; i++) {
                let v = vec4<f32>(xs[(8u * i + down) * (STRIDE / 4u) + k]);
                sums[2u * i] += vec4(dot(v, w0), dot(v, w1), dot(v, w2), dot(v, w3));
                sums[2u * i + 1u] += vec4(dot(v, w4), dot(v, w5), dot(v, w6), dot(v, w7));
            }
        }
    }
    for (var i = 0u; i < 8u; i++) {
        let t = token + 8u * i + down;
        if t < p.tokens {
            let at = p.result_first + group.z * p.result_step + t * p.result_stride;
            for (var j = 0u; j < 8u; j++) {
                let r = row + 8u * j + right;
                if r < p.rows {
                    result[at + r] = sums[2u * i + j / 4u][j % 4u];
                }
            }
        }
    }
}

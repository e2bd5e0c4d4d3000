// silu of a causal convolution of each column with its own taps.
struct Params {
    columns: u32,
    taps: u32,
    // Rows to make, and of how many rows before the first one x is bound from.
    rows: u32,
    before: u32,
    // Of all rows, the first of those to make.
    first: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> taps: array<f32>;
// For each of all rows how many of its sequence come before it.
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if id.x >= p.columns {
        return;
    }
    for (var row = id.y; row < p.rows; row += groups.y) {
        let seen = min(p.taps, positions[p.first + row] + 1u);
        var sum = 0.0;
        for (var i = 0u; i < seen; i++) {
            let back = seen - 1u - i;
            sum += x[(p.before + row - back) * p.columns + id.x] * taps[(p.taps - 1u - back) * p.columns + id.x];
        }
        result[row * p.columns + id.x] = sum * sigmoid(sum);
    }
}

// Adds rows, each times its own factor, to single rows of a matrix. No row is named twice.
struct Params {
    count: u32,
    columns: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> factors: array<f32>;
@group(0) @binding(3) var<storage, read_write> sum: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i < p.count {
        let row = i / p.columns;
        let at = rows[row] * p.columns + i % p.columns;
        sum[at] += factors[row] * source[i];
    }
}

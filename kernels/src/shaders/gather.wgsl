// Single rows of a matrix, one after the other.
struct Params {
    count: u32,
    columns: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i < p.count {
        result[i] = source[rows[i / p.columns] * p.columns + i % p.columns];
    }
}

// x ← f(x, y) for every element. `f` and `other`, where y's element for it is, are in front of this text.
struct Params {
    count: u32,
    columns: u32,
    // A number that `f` needs, and another.
    a: f32,
    b: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i < p.count {
        x[i] = f(x[i], y[other(i)]);
    }
}

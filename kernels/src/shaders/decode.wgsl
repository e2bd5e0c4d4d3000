// Weights to f32: each invocation decodes eight.
struct Params {
    plane1: u32,
    plane2: u32,
    // How many eights, and where the first is.
    count: u32,
    first: u32,
}
var<immediate> p: Params;

@group(0) @binding(1) var<storage, read_write> result: array<vec4<f32>>;

fn plane1() -> u32 {
    return p.plane1;
}

fn plane2() -> u32 {
    return p.plane2;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i >= p.count {
        return;
    }
    let eight = decode8((p.first + i) * 8u);
    result[2u * i] = eight.low;
    result[2u * i + 1u] = eight.high;
}

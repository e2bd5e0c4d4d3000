// Each run of `group` columns divided by its root mean square, times a gain. A workgroup does one run.
struct Params {
    runs: u32,
    group: u32,
    eps: f32,
    has_gain: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> gain: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    // Past the last run: the same again, so that all invocations meet at the barriers.
    let run = min(group.y * groups.x + group.x, p.runs - 1u);
    let first = run * p.group;
    var sum = 0.0;
    for (var i = thread; i < p.group; i += 64u) {
        let value = x[first + i];
        sum += value * value;
    }
    sums[thread] = sum;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if thread < half {
            sums[thread] += sums[thread + half];
        }
        workgroupBarrier();
    }
    let factor = 1.0 / sqrt(sums[0] / f32(p.group) + p.eps);
    for (var i = thread; i < p.group; i += 64u) {
        var value = x[first + i] * factor;
        if p.has_gain != 0u {
            value *= gain[i];
        }
        result[first + i] = value;
    }
}

// Rows in half precision, each divided by a power of two that brings its largest value to 1 or below, so that none overflows. A workgroup
// does one row.
struct Params {
    rows: u32,
    columns: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f16>;
// What each row was divided by.
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

var<workgroup> largest: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    // Past the last row: the same again, so that all invocations meet at the barriers.
    let row = min(group.y * groups.x + group.x, p.rows - 1u);
    let first = row * p.columns;
    var most = 0.0;
    for (var i = thread; i < p.columns; i += 64u) {
        most = max(most, abs(x[first + i]));
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if thread < half {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    // The power of two above, by its exponent; 1 where all is zero.
    let exponent = (bitcast<u32>(largest[0]) >> 23u) + 1u;
    let is_zero = largest[0] == 0.0;
    let scale = select(bitcast<f32>(min(exponent, 253u) << 23u), 1.0, is_zero);
    let inverse = select(bitcast<f32>((254u - min(exponent, 253u)) << 23u), 1.0, is_zero);
    for (var i = thread; i < p.columns; i += 64u) {
        result[first + i] = f16(x[first + i] * inverse);
    }
    if thread == 0u {
        scales[row] = scale;
    }
}

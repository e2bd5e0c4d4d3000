// Turns pairs of each head's dimensions by their token's position. An invocation turns one pair.
struct Params {
    // Pairs of all heads of all rows.
    count: u32,
    columns: u32,
    heads: u32,
    head: u32,
    // The first dimension that turns, and how many pairs do.
    offset: u32,
    pairs: u32,
    // From one pair to the next, and from a pair's first dimension to its second.
    step: u32,
    apart: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
// For each position, cosine and sine of each pair.
@group(0) @binding(1) var<storage, read> table: array<vec2<f32>>;
// Of each row.
@group(0) @binding(2) var<storage, read> positions: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.y * groups.x * 64u + id.x;
    if i >= p.count {
        return;
    }
    let pair = i % p.pairs;
    let head = (i / p.pairs) % p.heads;
    let row = i / (p.pairs * p.heads);
    let turn = table[positions[row] * p.pairs + pair];
    let at = row * p.columns + head * p.head + p.offset + pair * p.step;
    let a = x[at];
    let b = x[at + p.apart];
    x[at] = a * turn.x - b * turn.y;
    x[at + p.apart] = b * turn.x + a * turn.y;
}

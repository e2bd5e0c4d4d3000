// Copies heads, of each the same number of columns, from some rows of a matrix to those of another.
struct Params {
    rows: u32,
    heads: u32,
    width: u32,
    // For both matrices: where the first head begins, and elements from one row to the next and from one head to the next.
    from_first: u32,
    from_row: u32,
    from_head: u32,
    to_first: u32,
    to_row: u32,
    to_head: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> source: array<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    if id.x >= p.heads * p.width {
        return;
    }
    let head = id.x / p.width;
    let from_place = p.from_first + head * p.from_head + id.x % p.width;
    let to_place = p.to_first + head * p.to_head + id.x % p.width;
    for (var row = id.y; row < p.rows; row += groups.y) {
        result[to_place + row * p.to_row] = source[from_place + row * p.from_row];
    }
}

// Counts what was handed over: the last command of each time.
@group(0) @binding(0) var<storage, read_write> counter: array<u32>;

@compute @workgroup_size(1)
fn main() {
    counter[0] += 1u;
}

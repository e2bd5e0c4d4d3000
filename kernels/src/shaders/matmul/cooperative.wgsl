// The same on cooperative matrices (Metal: `simdgroup_matrix`). A tile is four quarters of 32 × 32 elements, each the work of one subgroup,
// however wide that is and however many the workgroup has: with fewer than four, all is done in several passes; with more, some make
// again what another one makes. Rows are a multiple of 64, and the result has room for whole tiles of tokens: its elements are stored
// eight by eight.
const THREADS: u32 = 128u;
// Values of a row of a staged tile: apart for the same reason, and eight of them always at a multiple of 16 bytes.
const STRIDE: u32 = 40u;

var<workgroup> xs: array<T, 2560>;
var<workgroup> ws: array<T, 2560>;

fn put_x(at: u32, values: vec4<T>) {
    xs[at] = values.x;
    xs[at + 1u] = values.y;
    xs[at + 2u] = values.z;
    xs[at + 3u] = values.w;
}

fn put_w(at: u32, low: vec4<T>, high: vec4<T>) {
    ws[at] = low.x;
    ws[at + 1u] = low.y;
    ws[at + 2u] = low.z;
    ws[at + 3u] = low.w;
    ws[at + 4u] = high.x;
    ws[at + 5u] = high.y;
    ws[at + 6u] = high.z;
    ws[at + 7u] = high.w;
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let row = group.x * TILE;
    let token = group.y * TILE;
    for (var done = 0u; done < 4u; done += subgroups) {
        let quarter = min(done + subgroup, 3u);
        let down = (quarter / 2u) * 32u;
        let right = (quarter % 2u) * 32u;
        var sum00 = coop_mat8x8<f32, C>();
        var sum01 = coop_mat8x8<f32, C>();
        var sum02 = coop_mat8x8<f32, C>();
        var sum03 = coop_mat8x8<f32, C>();
        var sum10 = coop_mat8x8<f32, C>();
        var sum11 = coop_mat8x8<f32, C>();
        var sum12 = coop_mat8x8<f32, C>();
        var sum13 = coop_mat8x8<f32, C>();
        var sum20 = coop_mat8x8<f32, C>();
        var sum21 = coop_mat8x8<f32, C>();
        var sum22 = coop_mat8x8<f32, C>();
        var sum23 = coop_mat8x8<f32, C>();
        var sum30 = coop_mat8x8<f32, C>();
        var sum31 = coop_mat8x8<f32, C>();
        var sum32 = coop_mat8x8<f32, C>();
        var sum33 = coop_mat8x8<f32, C>();
        for (var first = 0u; first < p.columns; first += DEPTH) {
            workgroupBarrier();
            stage(token, row, first, group.z, thread);
            workgroupBarrier();
            for (var k = 0u; k < DEPTH; k += 8u) {
                let x0 = coopLoadT<coop_mat8x8<T, A>>(&xs[(down + 0u) * STRIDE + k], STRIDE);
                let x1 = coopLoadT<coop_mat8x8<T, A>>(&xs[(down + 8u) * STRIDE + k], STRIDE);
                let x2 = coopLoadT<coop_mat8x8<T, A>>(&xs[(down + 16u) * STRIDE + k], STRIDE);
                let x3 = coopLoadT<coop_mat8x8<T, A>>(&xs[(down + 24u) * STRIDE + k], STRIDE);
                let w0 = coopLoad<coop_mat8x8<T, B>>(&ws[(right + 0u) * STRIDE + k], STRIDE);
                let w1 = coopLoad<coop_mat8x8<T, B>>(&ws[(right + 8u) * STRIDE + k], STRIDE);
                let w2 = coopLoad<coop_mat8x8<T, B>>(&ws[(right + 16u) * STRIDE + k], STRIDE);
                let w3 = coopLoad<coop_mat8x8<T, B>>(&ws[(right + 24u) * STRIDE + k], STRIDE);
                sum00 = coopMultiplyAdd(x0, w0, sum00);
                sum01 = coopMultiplyAdd(x0, w1, sum01);
                sum02 = coopMultiplyAdd(x0, w2, sum02);
                sum03 = coopMultiplyAdd(x0, w3, sum03);
                sum10 = coopMultiplyAdd(x1, w0, sum10);
                sum11 = coopMultiplyAdd(x1, w1, sum11);
                sum12 = coopMultiplyAdd(x1, w2, sum12);
                sum13 = coopMultiplyAdd(x1, w3, sum13);
                sum20 = coopMultiplyAdd(x2, w0, sum20);
                sum21 = coopMultiplyAdd(x2, w1, sum21);
                sum22 = coopMultiplyAdd(x2, w2, sum22);
                sum23 = coopMultiplyAdd(x2, w3, sum23);
                sum30 = coopMultiplyAdd(x3, w0, sum30);
                sum31 = coopMultiplyAdd(x3, w1, sum31);
                sum32 = coopMultiplyAdd(x3, w2, sum32);
                sum33 = coopMultiplyAdd(x3, w3, sum33);
            }
        }
        // naga wants what a store refers to computed in statements of its own.
        let stride = p.result_stride;
        let at = p.result_first + group.z * p.result_step + (token + down) * stride + row + right;
        let at1 = at + 8u * stride;
        let at2 = at + 16u * stride;
        let at3 = at + 24u * stride;
        let at01 = at + 8u;
        let at02 = at + 16u;
        let at03 = at + 24u;
        let at11 = at1 + 8u;
        let at12 = at1 + 16u;
        let at13 = at1 + 24u;
        let at21 = at2 + 8u;
        let at22 = at2 + 16u;
        let at23 = at2 + 24u;
        let at31 = at3 + 8u;
        let at32 = at3 + 16u;
        let at33 = at3 + 24u;
        coopStoreT(sum00, &result[at], stride);
        coopStoreT(sum01, &result[at01], stride);
        coopStoreT(sum02, &result[at02], stride);
        coopStoreT(sum03, &result[at03], stride);
        coopStoreT(sum10, &result[at1], stride);
        coopStoreT(sum11, &result[at11], stride);
        coopStoreT(sum12, &result[at12], stride);
        coopStoreT(sum13, &result[at13], stride);
        coopStoreT(sum20, &result[at2], stride);
        coopStoreT(sum21, &result[at21], stride);
        coopStoreT(sum22, &result[at22], stride);
        coopStoreT(sum23, &result[at23], stride);
        coopStoreT(sum30, &result[at3], stride);
        coopStoreT(sum31, &result[at31], stride);
        coopStoreT(sum32, &result[at32], stride);
        coopStoreT(sum33, &result[at33], stride);
    }
}

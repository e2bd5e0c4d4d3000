// As ggml reads a scale: without its sign, but for the two codes of what is no number.
fn unsigned_scale(code: u32) -> f32 {
    let scale = select(e4m3(vec4(code & 0x7fu)).x, 480.0, code == 0xffu);
    return select(scale, 0.0, code == 0x7fu);
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    return e2m1_bytes(folded(block + 4u, first, 8u), unsigned_scale(byte(block + first / 16u)));
}

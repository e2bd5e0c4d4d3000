// Q4_0, Q4_1, Q5_0, Q5_1: a scale and perhaps an offset, with five bits a word of the fifth ones, then the low four.
fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    var codes = folded(block + BLOCK_BYTES - 16u, first, 16u);
    if CODE_BITS == 5u {
        codes |= spread(word(block + BLOCK_BYTES - 20u) >> first) << vec2(4u);
    }
    let scale = half_to_f32(half_word(block));
    if HALVES == 2u {
        return shifted(unsigned_bytes(codes), scale, half_to_f32(half_word(block + 2u)));
    }
    return scaled(unsigned_bytes(codes), f32(1u << (CODE_BITS - 1u)), scale);
}

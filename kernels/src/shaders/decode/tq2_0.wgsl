fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let codes = pairs(block, at % BLOCK_WEIGHTS);
    return scaled(unsigned_bytes(codes), 1.0, half_to_f32(half_word(block + 64u)));
}

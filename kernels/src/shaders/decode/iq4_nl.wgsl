fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let codes = folded(block + 2u, at % BLOCK_WEIGHTS, 16u);
    return iq4(codes, half_to_f32(half_word(block)));
}

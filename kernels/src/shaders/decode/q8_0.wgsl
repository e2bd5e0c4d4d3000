fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let codes = eight_bytes(block + 2u + at % BLOCK_WEIGHTS);
    return scaled(signed_bytes(codes), 0.0, half_to_f32(half_word(block)));
}

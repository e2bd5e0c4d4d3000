fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    let group = first / 16u;
    let low = byte(block + 96u + (group & 7u)) >> ((group >> 3u) * 4u);
    let high = byte(block + 104u + (group & 3u)) >> ((group >> 2u) * 2u);
    let sub_scale = f32((low & 15u) | ((high & 3u) << 4u)) - 32.0;
    let third = (eight_bytes(block + (first & 31u)) >> vec2(first / 32u)) & vec2(0x01010101u);
    let codes = pairs(block + 32u, first) | (third << vec2(2u));
    return scaled(unsigned_bytes(codes), 4.0, half_to_f32(half_word(block + 108u)) * sub_scale);
}

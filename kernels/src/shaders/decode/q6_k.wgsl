fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    let codes = folded(block, first, 64u) | (pairs(block + 128u, first) << vec2(4u));
    let sub_scale = f32(extractBits(bitcast<i32>(byte(block + 192u + first / 16u)), 0u, 8u));
    return scaled(unsigned_bytes(codes), 32.0, half_to_f32(half_word(block + 208u)) * sub_scale);
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let bits = vec4(byte(block + 2u + (at % BLOCK_WEIGHTS) / 8u));
    let d = vec4(half_to_f32(half_word(block)));
    return Eight(
        select(-d, d, (bits & vec4(1u, 2u, 4u, 8u)) != vec4(0u)),
        select(-d, d, (bits & vec4(16u, 32u, 64u, 128u)) != vec4(0u)),
    );
}

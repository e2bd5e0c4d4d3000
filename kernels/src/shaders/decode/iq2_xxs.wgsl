fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    // Four indices, then four times seven signs and a scale.
    let both = eight_bytes(block + 2u + eight / 4u * 8u);
    let index = (both.x >> ((eight & 3u) * 8u)) & 0xffu;
    let signs = signs7(both.y >> ((eight & 3u) * 7u));
    return iq2(half_to_f32(half_word(block)), both.y >> 28u, entry(index), signs);
}

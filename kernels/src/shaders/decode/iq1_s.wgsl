fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    let both = half_word(block + 34u + eight / 4u * 2u);
    let high = (both >> ((eight & 3u) * 3u)) & 7u;
    let index = (high << 8u) | byte(block + 2u + eight);
    return iq1(half_to_f32(half_word(block)), both >> 12u, entry(index), (both & 0x8000u) != 0u);
}

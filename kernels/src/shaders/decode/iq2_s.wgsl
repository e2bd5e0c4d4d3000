fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    let high = (byte(block + 66u + eight / 4u) >> ((eight & 3u) * 2u)) & 3u;
    let index = (high << 8u) | byte(block + 2u + eight);
    let sub_scale = byte(block + 74u + eight / 4u) >> ((eight / 2u & 1u) * 4u);
    return iq2(half_to_f32(half_word(block)), sub_scale, entry(index), byte(block + 34u + eight));
}

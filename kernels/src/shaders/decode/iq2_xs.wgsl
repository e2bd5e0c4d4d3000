fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    let both = half_word(block + 2u + 2u * eight);
    let sub_scale = byte(block + 66u + eight / 4u) >> ((eight / 2u & 1u) * 4u);
    return iq2(half_to_f32(half_word(block)), sub_scale, entry(both & 511u), signs7(both >> 9u));
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    // Four times four scales of three bits and, on top, a fourth of the step.
    let scales = vec2(weights[(block + 48u) >> 2u], weights[(block + 52u) >> 2u]);
    let tops = ((scales >> vec2(12u)) & vec2(0xfu)) | ((scales >> vec2(24u)) & vec2(0xf0u));
    let d = half_to_f32(tops.x | (tops.y << 8u));
    let sub_scale = half_word(block + 48u + eight / 8u * 2u) >> ((eight / 2u & 3u) * 3u);
    let high = byte(block + 32u + eight / 2u) >> ((eight & 1u) * 4u);
    let index = ((high & 7u) << 8u) | byte(block + eight);
    return iq1(d, sub_scale, entry(index), (high & 8u) != 0u);
}

fn iq3_values(indices: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(indices * 2u + vec4(1u));
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    let indices = half_word(block + 2u + 2u * eight);
    let high = byte(block + 66u + eight / 4u) >> ((eight & 3u) * 2u);
    let first = entry((indices & 0xffu) | ((high & 1u) << 8u));
    let second = entry((indices >> 8u) | ((high & 2u) << 7u));
    let sub_scale = (byte(block + 106u + eight / 8u) >> ((eight / 4u & 1u) * 4u)) & 15u;
    let scale = half_to_f32(half_word(block)) * (1.0 + 2.0 * f32(sub_scale));
    return iq3(scale, first, second, byte(block + 74u + eight));
}

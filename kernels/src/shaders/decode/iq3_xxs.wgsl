// Bytes of two words.
fn iq3_values(indices: vec4<u32>) -> vec4<f32> {
    let four = select(vec4(IQ3_LOW), vec4(IQ3_HIGH), indices >= vec4(4u));
    return vec4<f32>((four >> ((indices & vec4(3u)) * 8u)) & vec4(0xffu));
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let eight = (at % BLOCK_WEIGHTS) / 8u;
    let indices = half_word(block + 2u + 2u * eight);
    // Four times seven signs and a scale.
    let both = word(block + 66u + eight / 4u * 4u);
    let scale = half_to_f32(half_word(block)) * (0.5 + f32(both >> 28u)) * 0.5;
    return iq3(scale, entry(indices & 0xffu), entry(indices >> 8u), signs7(both >> ((eight & 3u) * 7u)));
}

// Q4_K, Q5_K: two steps, 6-bit sub-scales and sub-minima, with five bits 32 bytes of the fifth ones, then the low four.
fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    let group = first / 32u;
    let header = block >> 2u;
    let steps = weights[header];
    let words = vec3(weights[header + 1u], weights[header + 2u], weights[header + 3u]) >> vec3((group & 3u) * 8u);
    let later = vec2(words.z & 15u, (words.z >> 4u) & 15u) | ((words.xy >> vec2(2u)) & vec2(0x30u));
    let both = vec2<f32>(select(words.xy & vec2(63u), later, group >= 4u));
    let scale = half_to_f32(steps & 0xffffu) * both.x;
    let minimum = half_to_f32(steps >> 16u) * both.y;
    var codes = folded(block + BLOCK_BYTES - 128u, first, 32u);
    if CODE_BITS == 5u {
        let fifth = (eight_bytes(block + 16u + (first & 31u)) >> vec2(group)) & vec2(0x01010101u);
        codes |= fifth << vec2(4u);
    }
    return shifted(unsigned_bytes(codes), scale, -minimum);
}

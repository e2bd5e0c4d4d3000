fn halves(words: vec2<u32>) -> vec4<f32> {
    return vec4(
        half_to_f32(words.x & 0xffffu), half_to_f32(words.x >> 16u),
        half_to_f32(words.y & 0xffffu), half_to_f32(words.y >> 16u),
    );
}

fn decode8(at: u32) -> Eight {
    let i = at >> 1u;
    return Eight(halves(vec2(weights[i], weights[i + 1u])), halves(vec2(weights[i + 2u], weights[i + 3u])));
}

// The codes after four.
fn after_four(codes: u32) -> u32 {
    return (codes >> (2u * CODE_BITS)) >> (2u * CODE_BITS);
}

// MLX's affine formats: a stream of codes, and in other planes scales and biases, in whose type is computed.
fn decode8(at: u32) -> Eight {
    const MASK = vec4((1u << CODE_BITS) - 1u);
    const PLACES = vec4(0u, CODE_BITS, 2u * CODE_BITS, 3u * CODE_BITS);
    let group = at / BLOCK_WEIGHTS;
    let scale = stored(plane1(), group);
    let bias = stored(plane2(), group);
    let start = (at >> 3u) * CODE_BITS;
    var four: vec2<u32>;
    if CODE_BITS <= 4u {
        let eight = word(start);
        four = vec2(eight, after_four(eight));
    } else {
        // The second four begin within the first word, or where it ends.
        let eight = eight_bytes(start);
        four = vec2(eight.x, after_four(eight.x) | (eight.y << (32u - 4u * CODE_BITS)));
    }
    let low = vec4<f32>((vec4(four.x) >> PLACES) & MASK);
    let high = vec4<f32>((vec4(four.y) >> PLACES) & MASK);
    return Eight(rounded(rounded(low * scale) + bias), rounded(rounded(high * scale) + bias));
}

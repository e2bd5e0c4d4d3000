// Groups with an integer zero point: a word of eight codes, and in other planes scales, in whose type is computed, and zero points.
fn decode8(at: u32) -> Eight {
    const MASK = vec4(15u);
    const PLACES = vec4(0u, 4u, 8u, 12u);
    let group = at / BLOCK_WEIGHTS;
    let scale = stored(plane1(), group);
    let zero = f32(byte(plane2() + group));
    let codes = weights[at >> 3u];
    let low = vec4<f32>((vec4(codes) >> PLACES) & MASK) - zero;
    let high = vec4<f32>((vec4(codes >> 16u) >> PLACES) & MASK) - zero;
    return Eight(rounded(low * scale), rounded(high * scale));
}

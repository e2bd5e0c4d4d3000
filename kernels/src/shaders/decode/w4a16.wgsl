// compressed-tensors' symmetric groups: a word of eight codes, and in another plane scales, in whose type is computed.
fn decode8(at: u32) -> Eight {
    const MASK = vec4(15u);
    const PLACES = vec4(0u, 4u, 8u, 12u);
    let scale = stored(plane1(), at / BLOCK_WEIGHTS);
    let codes = weights[at >> 3u];
    let low = vec4<f32>((vec4(codes) >> PLACES) & MASK) - 8.0;
    let high = vec4<f32>((vec4(codes >> 16u) >> PLACES) & MASK) - 8.0;
    return Eight(rounded(low * scale), rounded(high * scale));
}

fn decode8(at: u32) -> Eight {
    let i = at >> 2u;
    let scale = bitcast<f32>(weights[(plane1() >> 2u) + at / BLOCK_WEIGHTS]);
    return e4m3_bytes(vec2(weights[i], weights[i + 1u]), scale);
}

fn upper_halves(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}

fn decode8(at: u32) -> Eight {
    let i = at >> 1u;
    return Eight(upper_halves(weights[i], weights[i + 1u]), upper_halves(weights[i + 2u], weights[i + 3u]));
}

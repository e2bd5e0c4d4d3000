// What four indices of two bits stand for: bytes of IQ2_VALUES.
fn iq2_values(indices: u32) -> vec4<f32> {
    let places = ((vec4(indices) >> vec4(0u, 2u, 4u, 6u)) & vec4(3u)) * 8u;
    return vec4<f32>((vec4(IQ2_VALUES) >> places) & vec4(0xffu));
}

fn iq2(d: f32, sub_scale: u32, entry: u32, signs: u32) -> Eight {
    let scale = d * (0.5 + f32(sub_scale & 15u)) * 0.25;
    return with_signs(scale * iq2_values(entry), scale * iq2_values(entry >> 8u), signs);
}

// Eight weights of two entries of four indices.
fn iq3(scale: f32, first: u32, second: u32, signs: u32) -> Eight {
    let places = vec4(0u, 4u, 8u, 12u);
    let low = iq3_values((vec4(first) >> places) & vec4(15u));
    let high = iq3_values((vec4(second) >> places) & vec4(15u));
    return with_signs(scale * low, scale * high, signs);
}

// Four weights of indices of two bits: one less, and shifted.
fn iq1_values(indices: u32, shift: f32) -> vec4<f32> {
    return vec4<f32>((vec4(indices) >> vec4(0u, 2u, 4u, 6u)) & vec4(3u)) - 1.0 + shift;
}

fn iq1(d: f32, sub_scale: u32, entry: u32, minus: bool) -> Eight {
    let scale = d * f32(2u * (sub_scale & 7u) + 1u);
    let shift = select(0.125, -0.125, minus);
    return Eight(scale * iq1_values(entry, shift), scale * iq1_values(entry >> 8u, shift));
}

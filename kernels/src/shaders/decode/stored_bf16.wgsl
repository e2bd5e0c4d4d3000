fn stored(plane: u32, i: u32) -> f32 {
    return bf16_to_f32(half_word(plane + 2u * i));
}

// To the nearest in BF16, ties to even.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let up = bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u));
    return bitcast<vec4<f32>>(up & vec4(0xffff0000u));
}

fn stored(plane: u32, i: u32) -> f32 {
    return half_to_f32(half_word(plane + 2u * i));
}

// To the nearest half float, ties to even.
fn rounded(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & vec4(0x7fffffffu);
    let up = (magnitude + vec4(0xfffu) + ((magnitude >> vec4(13u)) & vec4(1u))) & vec4(0xffffe000u);
    // Beyond the largest is infinity; what was infinite, or no number, stays so.
    let normal = select(up, max(magnitude, vec4(0x7f800000u)), up >= vec4(0x47800000u));
    // Below the least normal one they are as far apart as it is from zero.
    let subnormal = bitcast<vec4<u32>>(round(abs(x) * 0x1p24f) * 0x1p-24f);
    let rounded = select(normal, subnormal, magnitude < vec4(0x38800000u));
    return bitcast<vec4<f32>>(rounded | (bits & vec4(0x80000000u)));
}

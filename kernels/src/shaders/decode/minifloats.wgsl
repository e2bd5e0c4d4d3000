// Floats of four and of eight bits.

// Sign, two bits of exponent, one of mantissa.
fn e2m1(codes: vec4<u32>) -> vec4<f32> {
    // Twice the values, a digit each.
    let twice = (vec4(0xc8643210u) >> ((codes & vec4(7u)) * 4u)) & vec4(15u);
    let values = bitcast<vec4<u32>>(vec4<f32>(twice) * 0.5);
    return bitcast<vec4<f32>>(values | ((codes & vec4(8u)) << vec4(28u)));
}

// Sign, four bits of exponent, three of mantissa; no infinities.
fn e4m3(codes: vec4<u32>) -> vec4<f32> {
    let magnitude = codes & vec4(0x7fu);
    let normal = (magnitude << vec4(20u)) + vec4(120u << 23u);
    let denormal = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0x1p-9f);
    let number = select(normal, denormal, magnitude < vec4(8u));
    let bits = select(number, vec4(0x7fc00000u), magnitude == vec4(0x7fu));
    return bitcast<vec4<f32>>(bits | ((codes & vec4(0x80u)) << vec4(24u)));
}

// A power of two; the lowest is subnormal, the highest no number.
fn e8m0(code: u32) -> f32 {
    return bitcast<f32>(max(code << 23u, 0x400000u) | select(0u, 0x400000u, code == 255u));
}

fn e2m1_bytes(codes: vec2<u32>, scale: f32) -> Eight {
    return Eight(e2m1(unpack4xU8(codes.x)) * scale, e2m1(unpack4xU8(codes.y)) * scale);
}

fn e4m3_bytes(codes: vec2<u32>, scale: f32) -> Eight {
    return Eight(e4m3(unpack4xU8(codes.x)) * scale, e4m3(unpack4xU8(codes.y)) * scale);
}

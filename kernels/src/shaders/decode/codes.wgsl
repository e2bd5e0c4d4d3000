// Codes of eight weights, one a byte of two words, and what becomes of them.

fn unsigned_bytes(codes: vec2<u32>) -> Eight {
    return Eight(vec4<f32>(unpack4xU8(codes.x)), vec4<f32>(unpack4xU8(codes.y)));
}

fn signed_bytes(codes: vec2<u32>) -> Eight {
    return Eight(vec4<f32>(unpack4xI8(codes.x)), vec4<f32>(unpack4xI8(codes.y)));
}

fn scaled(codes: Eight, zero: f32, scale: f32) -> Eight {
    return Eight((codes.low - zero) * scale, (codes.high - zero) * scale);
}

fn shifted(codes: Eight, scale: f32, offset: f32) -> Eight {
    return Eight(codes.low * scale + offset, codes.high * scale + offset);
}

// Four bits each: byte i of a group holds weight i in its low nibble, weight `half` + i in its high one.
fn folded(qs: u32, first: u32, half: u32) -> vec2<u32> {
    let at = qs + (first / (2u * half)) * half + (first & (half - 1u));
    return (eight_bytes(at) >> vec2(select(0u, 4u, (first & half) != 0u))) & vec2(0x0f0f0f0fu);
}

// Two bits each: byte i of a group of 128 holds weights i, 32 + i, 64 + i and 96 + i from the low bits up.
fn pairs(qs: u32, first: u32) -> vec2<u32> {
    let at = qs + (first >> 7u) * 32u + (first & 31u);
    return (eight_bytes(at) >> vec2(((first >> 5u) & 3u) * 2u)) & vec2(0x03030303u);
}

// Of eight bits, one to the lowest place of each byte.
fn spread(bits: u32) -> vec2<u32> {
    return (vec2(bits & 15u, (bits >> 4u) & 15u) * 0x204081u) & vec2(0x01010101u);
}

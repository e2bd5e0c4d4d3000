// Weights as they are stored: bytes in words, read from any place.
@group(0) @binding(0) var<storage, read> weights: array<u32>;

fn byte(at: u32) -> u32 {
    return (weights[at >> 2u] >> ((at & 3u) * 8u)) & 0xffu;
}

// Two bytes from an even place.
fn half_word(at: u32) -> u32 {
    return (weights[at >> 2u] >> ((at & 2u) * 8u)) & 0xffffu;
}

// Four bytes from any place.
fn word(at: u32) -> u32 {
    let shift = (at & 3u) * 8u;
    // In two steps: a shift by 32 is no shift.
    return (weights[at >> 2u] >> shift) | ((weights[(at >> 2u) + 1u] << 1u) << (31u - shift));
}

// Eight bytes from any place.
fn eight_bytes(at: u32) -> vec2<u32> {
    let shift = vec2((at & 3u) * 8u);
    let i = at >> 2u;
    let middle = weights[i + 1u];
    return (vec2(weights[i], middle) >> shift) | ((vec2(middle, weights[i + 2u]) << vec2(1u)) << (vec2(31u) - shift));
}

// IEEE half precision, without a conversion that might flush subnormal numbers.
fn half_to_f32(bits: u32) -> f32 {
    let magnitude = bits & 0x7fffu;
    let normal = bitcast<f32>((magnitude << 13u) + select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u));
    let value = select(normal, f32(magnitude) * 0x1p-24f, magnitude < 0x400u);
    return select(value, -value, (bits & 0x8000u) != 0u);
}

fn bf16_to_f32(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

// Eight weights that follow each other.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

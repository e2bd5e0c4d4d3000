// Of four bytes, fractions of 256, the digits in base 3 after `skipped` others.
fn digits(bytes: u32, skipped: u32) -> vec4<f32> {
    // 3 to the power of that, modulo 256.
    let power = select((0x1b090301u >> (skipped * 8u)) & 0xffu, 81u, skipped == 4u);
    return vec4<f32>((((unpack4xU8(bytes) * power) & vec4(0xffu)) * 3u) >> vec4(8u));
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    // 32 bytes of five digits, 16 of five, 4 of four.
    var bytes: vec2<u32>;
    var skipped: vec2<u32>;
    if first < 240u {
        let second = first >= 160u;
        let run = select(first, first - 160u, second);
        let width = select(5u, 4u, second);
        bytes = eight_bytes(block + select(0u, 32u, second) + (run & ((1u << width) - 1u)));
        skipped = vec2(run >> width);
    } else {
        bytes = vec2(word(block + 48u));
        skipped = vec2((first - 240u) >> 2u) + vec2(0u, 1u);
    }
    let codes = Eight(digits(bytes.x, skipped.x), digits(bytes.y, skipped.y));
    return scaled(codes, 1.0, half_to_f32(half_word(block + 52u)));
}

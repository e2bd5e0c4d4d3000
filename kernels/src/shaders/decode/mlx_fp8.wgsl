fn decode8(at: u32) -> Eight {
    let i = at >> 2u;
    return e4m3_bytes(vec2(weights[i], weights[i + 1u]), e8m0(byte(plane1() + at / BLOCK_WEIGHTS)));
}

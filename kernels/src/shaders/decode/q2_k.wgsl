fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    let steps = weights[(block + 80u) >> 2u];
    let both = byte(block + first / 16u);
    let scale = half_to_f32(steps & 0xffffu) * f32(both & 15u);
    let minimum = half_to_f32(steps >> 16u) * f32(both >> 4u);
    return shifted(unsigned_bytes(pairs(block + 16u, first)), scale, -minimum);
}

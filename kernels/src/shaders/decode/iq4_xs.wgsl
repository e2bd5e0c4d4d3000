fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let first = at % BLOCK_WEIGHTS;
    let group = first / 32u;
    let header = weights[block >> 2u];
    let low = weights[(block >> 2u) + 1u] >> (4u * group);
    let high = header >> (16u + 2u * group);
    let sub_scale = f32((low & 15u) | ((high & 3u) << 4u)) - 32.0;
    return iq4(folded(block + 8u, first, 16u), half_to_f32(header & 0xffffu) * sub_scale);
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    let codes = eight_bytes(block + 4u + at % BLOCK_WEIGHTS);
    return scaled(signed_bytes(codes), 0.0, bitcast<f32>(weights[block >> 2u]));
}

fn decode8(at: u32) -> Eight {
    let block = at / BLOCK_WEIGHTS * BLOCK_BYTES;
    return e2m1_bytes(folded(block + 1u, at % BLOCK_WEIGHTS, 16u), e8m0(byte(block)));
}

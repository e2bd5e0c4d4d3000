// compressed-tensors' NVFP4: codes from the lowest bits up, and in another plane scales in E4M3, 256 times as large.
fn decode8(at: u32) -> Eight {
    let codes = weights[at >> 3u];
    let scale = e4m3(vec4(byte(plane1() + at / BLOCK_WEIGHTS))).x / 256.0;
    let places = vec4(0u, 4u, 8u, 12u);
    let low = (vec4(codes) >> places) & vec4(15u);
    let high = (vec4(codes >> 16u) >> places) & vec4(15u);
    return Eight(e2m1(low) * scale, e2m1(high) * scale);
}

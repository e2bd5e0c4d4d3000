// MLX's MXFP4 and NVFP4: codes from the lowest bits up, and in another plane scales: powers of two for groups of 32, else E4M3.
fn decode8(at: u32) -> Eight {
    let codes = weights[at >> 3u];
    let code = byte(plane1() + at / BLOCK_WEIGHTS);
    var scale = e8m0(code);
    if BLOCK_WEIGHTS != 32u {
        scale = e4m3(vec4(code)).x;
    }
    let places = vec4(0u, 4u, 8u, 12u);
    let low = (vec4(codes) >> places) & vec4(15u);
    let high = (vec4(codes >> 16u) >> places) & vec4(15u);
    return Eight(e2m1(low) * scale, e2m1(high) * scale);
}

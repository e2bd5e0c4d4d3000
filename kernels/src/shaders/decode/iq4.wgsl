// The codebook of IQ4_NL and IQ4_XS, whose sixteen bytes are the words CODEBOOK_0 to CODEBOOK_3.
fn of_codebook(codes: vec4<u32>) -> vec4<f32> {
    let odd = (codes & vec4(4u)) != vec4(0u);
    let low = select(vec4(CODEBOOK_0), vec4(CODEBOOK_1), odd);
    let high = select(vec4(CODEBOOK_2), vec4(CODEBOOK_3), odd);
    let four = select(low, high, (codes & vec4(8u)) != vec4(0u));
    return vec4<f32>(bitcast<vec4<i32>>(four << (vec4(24u) - (codes & vec4(3u)) * 8u)) >> vec4(24u));
}

fn iq4(codes: vec2<u32>, scale: f32) -> Eight {
    return Eight(of_codebook(unpack4xU8(codes.x)) * scale, of_codebook(unpack4xU8(codes.y)) * scale);
}

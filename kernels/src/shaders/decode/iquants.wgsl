// An entry of the codebook, which lies where other formats have a second plane.
fn entry(index: u32) -> u32 {
    return half_word(plane1() + 2u * index);
}

// Eight signs stored in seven bits: the number of minus signs is even.
fn signs7(bits: u32) -> u32 {
    let seven = bits & 0x7fu;
    return seven | ((countOneBits(seven) & 1u) << 7u);
}

fn with_signs(low: vec4<f32>, high: vec4<f32>, signs: u32) -> Eight {
    let minus_low = (vec4(signs) << vec4(31u, 30u, 29u, 28u)) & vec4(0x80000000u);
    let minus_high = (vec4(signs) << vec4(27u, 26u, 25u, 24u)) & vec4(0x80000000u);
    return Eight(
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(low) ^ minus_low),
        bitcast<vec4<f32>>(bitcast<vec4<u32>>(high) ^ minus_high),
    );
}

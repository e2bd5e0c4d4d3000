fn stored(plane: u32, i: u32) -> f32 {
    return bitcast<f32>(weights[(plane >> 2u) + i]);
}

fn rounded(x: vec4<f32>) -> vec4<f32> {
    return x;
}

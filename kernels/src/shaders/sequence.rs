//! What looks along a sequence, or along the vocabulary.

use super::{EXPONENTIAL, Shader};

/// Attention with keys and values of these widths, for so many queries at a time: a multiple of 4 that divides 1024.
pub fn attention(key: usize, value: usize, queries: usize) -> Shader {
    let constants = format!("const KEY = {key}u;\nconst VALUE = {value}u;\nconst QUERIES = {queries}u;\n");
    let [q, k, v] = [("q", 0, key), ("k", 1, key), ("v", 2, value)]
        .map(|(name, binding, width)| by_fours(name, binding, width, false));
    let out = by_fours("attended", 3, value, true);
    let text = [&constants, &q, &k, &v, &out, EXPONENTIAL, include_str!("attention.wgsl")].join("\n");
    Shader { name: format!("attention {key} {value} {queries}"), text }
}

/// A matrix of heads and a function that reads or writes four columns of one, which begins at `at`: those of number `quad`. Heads whose
/// width is no multiple of 4 end within their last four.
fn by_fours(name: &str, binding: usize, width: usize, is_written: bool) -> String {
    let whole = width.is_multiple_of(4);
    let element = if whole { "vec4<f32>" } else { "f32" };
    let access = if is_written { "read_write" } else { "read" };
    let function = if is_written {
        format!("fn {name}4(at: u32, quad: u32, four: vec4<f32>)")
    } else {
        format!("fn {name}4(at: u32, quad: u32) -> vec4<f32>")
    };
    let each = format!("for (var i = 0u; i < min(4u, {width}u - 4u * quad); i++)");
    let body = match (whole, is_written) {
        (true, false) => format!("return {name}[at / 4u + quad];"),
        (true, true) => format!("{name}[at / 4u + quad] = four;"),
        (false, false) => {
            format!("var four = vec4(0.0); {each} {{ four[i] = {name}[at + 4u * quad + i]; }} return four;")
        }
        (false, true) => format!("{each} {{ {name}[at + 4u * quad + i] = four[i]; }}"),
    };
    format!(
        "@group(0) @binding({binding}) var<storage, {access}> {name}: array<{element}>;\n{function} {{ {body} }}\n"
    )
}

/// The short convolution before the delta rule.
pub fn convolution() -> Shader {
    let text = [EXPONENTIAL, include_str!("convolution.wgsl")].join("\n");
    Shader { name: "convolution".to_owned(), text }
}

/// Columns of the state that a workgroup of [`delta_rule`] has.
pub const DELTA_COLUMNS: usize = 16;

/// The gated delta rule with heads of these widths.
pub fn delta_rule(key: usize, value: usize) -> Shader {
    let constants =
        format!("const KEY = {key}u;\nconst VALUE = {value}u;\nconst COLUMNS = {DELTA_COLUMNS}u;\n");
    let text = [&constants, EXPONENTIAL, include_str!("delta.wgsl")].join("\n");
    Shader { name: format!("delta rule {key} {value}"), text }
}

/// Words of a row of what [`divergence`] gives.
pub const DIVERGENCE_WORDS: usize = 13;

/// What a tile of logits contributes to the figures of [`divergence`](crate::divergence), with a reference or without.
pub fn divergence(reference: bool) -> Shader {
    let constants = format!("const REFERENCE = {reference};\nconst WORDS = {DIVERGENCE_WORDS}u;\n");
    let text = [&constants, EXPONENTIAL, include_str!("divergence.wgsl")].join("\n");
    Shader { name: format!("divergence {reference}"), text }
}

//! Products in fixed point against products in `f32`, through whole models.

use std::path::Path;

use halfbyte_verify::Precision;
use halfbyte_verify::forward::Forward;
use halfbyte_verify::store::Space;
use halfbyte_verify::weights::Weights;

/// Logits of three sequences of 100 tokens.
fn logits(weights: &Weights, precision: Precision) -> Vec<f32> {
    let token = |i: u32| (i * i * 31 + i * 97 + 13) % 2048;
    let tokens: Vec<Vec<u32>> = (0..3).map(|s| (s * 100..s * 100 + 100).map(token).collect()).collect();
    let mut forward =
        Forward::on_cpu(weights, precision, &tokens, &Space::new(1 << 30), 1 << 30).expect("embedding");
    for layer in 0..forward.layers() {
        forward.layer(layer).expect("layer");
    }
    let rows: Vec<usize> = (0..300).collect();
    forward.logits(&forward.finish(&rows).expect("norm"), 0..2048).expect("head")
}

/// Every product adds noise of 1.8e-4 of itself at most: that of rounding where one activation of each block is thirty times the
/// others, see `kernels::fixed`; without such it is 1.2e-4. These are independent, so after `products` it is √`products` times as
/// much, as long as none makes more of what came before it. Nine tokens of ten must be within: where two experts score almost
/// the same, rounding may exchange them.
#[track_caller]
fn agrees(model: &str, products: f64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(model);
    let weights = Weights::open(&folder.into()).expect("model");
    let (exact, fast) = (logits(&weights, Precision::F32), logits(&weights, Precision::Fixed));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let tokens = exact.chunks_exact(2048).zip(fast.chunks_exact(2048));
    let mut errors: Vec<f64> = tokens
        .map(|(exact, fast)| {
            let error: f64 = exact.iter().zip(fast).map(|(a, b)| square(a - b)).sum();
            (error / exact.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    assert!(errors[0] > 1e-6, "{:.1e}: these are the same products", errors[0]);
    let most = errors[errors.len() * 9 / 10];
    assert!(most < 1.8e-4 * products.sqrt(), "{model}: {most:.2e}");
}

#[test]
fn llama_in_fixed_point_is_as_close_as_its_rounding() {
    // Four layers of q, k, v, o, gate, up and down, and the head.
    agrees("tiny-llama", 4.0 * 7.0 + 1.0);
}

#[test]
fn deepseek_in_fixed_point_is_as_close_as_its_rounding() {
    // Four layers of q_a, q_b, kv_a, k_b, v_b and o; gate, up and down in the first; in the others twice, and the router.
    agrees("tiny-deepseek", 4.0 * 6.0 + 3.0 + 3.0 * 7.0 + 1.0);
}

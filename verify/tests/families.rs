//! All families' graphs on small random models, which need nothing from outside the repository.

#[cfg(feature = "gpu")]
mod device;
mod support;

use halfbyte_verify::forward::Forward;
use halfbyte_verify::store::Space;
use halfbyte_verify::weights::Weights;
use halfbyte_verify::{Precision, Processor};

const VOCABULARY: usize = 512;

/// Two sequences: one longer than the sliding windows of 16, one shorter.
fn sequences() -> Vec<Vec<u32>> {
    let token = |i: u32| (i * i * 31 + i * 97 + 13) % VOCABULARY as u32;
    vec![(0..24).map(token).collect(), (100..109).map(token).collect()]
}

/// Logits of all tokens, on whatever device: [tokens, vocabulary].
fn run(weights: &Weights, processor: &Processor, precision: Precision, tokens: &[Vec<u32>]) -> Vec<f32> {
    let (space, memory) = (Space::new(1 << 30), 1 << 30);
    let forward = Forward::new(weights, weights, processor, precision, tokens, &space, memory);
    let mut forward = forward.expect("embedding");
    for layer in 0..forward.layers() {
        forward.layer(layer).expect("layer");
    }
    let rows: Vec<usize> = (0..forward.hidden.tokens.len()).collect();
    forward.logits(&forward.finish(&rows).expect("norm"), 0..VOCABULARY).expect("head")
}

/// The same on the processor.
fn on_cpu(weights: &Weights, tokens: &[Vec<u32>]) -> Vec<f32> {
    run(weights, &Processor::Cpu, Precision::F32, tokens)
}

/// The largest difference, over the largest logit.
#[track_caller]
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

/// A family's random model, opened.
fn model(family: &str) -> (tempfile::TempDir, Weights) {
    let folder = tempfile::tempdir().expect("temporary folder");
    support::checkpoint(family, folder.path());
    let weights = Weights::open(&folder.path().into()).expect("model");
    (folder, weights)
}

/// A graphics processor gives the same as the processor: in single precision within what sums in another order cost, in half precision
/// within what rounding to 11 bits costs a model of random weights.
#[cfg(feature = "gpu")]
fn check_on_gpu(family: &str) {
    let (_folder, weights) = model(family);
    let tokens = sequences();
    let logits = on_cpu(&weights, &tokens);
    for (precision, allowed) in [(Precision::F32, 2e-5), (Precision::Fixed, 5e-3)] {
        let off = difference(&run(&weights, &device::GPU, precision, &tokens), &logits);
        eprintln!("{family} {precision:?}: {off:.1e}");
        assert!(off < allowed, "in {precision:?} logits differ by {off:.1e}");
    }
}

fn check(family: &str) {
    let (_folder, weights) = model(family);
    let tokens = sequences();
    let logits = on_cpu(&weights, &tokens);
    let (first, second) = logits.split_at(24 * VOCABULARY);

    // After the last norm, the head's weights alone say how large logits are: 1, or 8 where it is the embedding.
    for (token, logits) in logits.chunks_exact(VOCABULARY).enumerate() {
        let mean = logits.iter().sum::<f32>() / VOCABULARY as f32;
        let square: f32 = logits.iter().map(|x| (x - mean) * (x - mean)).sum();
        let deviation = (square / VOCABULARY as f32).sqrt();
        assert!((0.8..12.0).contains(&deviation), "token {token}: logits with a deviation of {deviation}");
    }

    // A sequence knows nothing of the others, and a token nothing of those after it, but of the one before it.
    let off = difference(second, &on_cpu(&weights, &tokens[1..]));
    assert!(off < 1e-5, "alone, a sequence's logits differ by {off:.1e}");
    let shorter = on_cpu(&weights, &[tokens[0][..20].to_vec()]);
    let off = difference(&first[..20 * VOCABULARY], &shorter);
    assert!(off < 1e-5, "with fewer tokens after them, logits differ by {off:.1e}");
    let later = on_cpu(&weights, &[tokens[0][1..].to_vec()]);
    let off = difference(&first[VOCABULARY..2 * VOCABULARY], &later[..VOCABULARY]);
    assert!(off > 1e-2, "without the token before it, a token's logits differ by {off:.1e} only");
}

macro_rules! families {
    ($($family:ident)*) => {$(
        #[test]
        fn $family() {
            check(stringify!($family));
        }
    )*

    #[cfg(feature = "gpu")]
    mod on_gpu {$(
        #[test]
        #[ignore = "needs a graphics processor"]
        fn $family() {
            super::check_on_gpu(stringify!($family));
        }
    )*}
    };
}

families! {
    deepseek_v3 gemma2 gemma3 gemma4 glm4_moe glm_moe_dsa gpt_oss llama3 minimax_m2 mistral mistral4 mixtral olmo2 phi3 qwen2
    qwen3 qwen3_5 qwen3_5_moe qwen3_moe smollm3
}

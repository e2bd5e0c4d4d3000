//! How much a class of tensors matters: the divergence that a given relative error in all of its weights causes.
//!
//! The mean KL divergence of a quantized model is, while it is small, a sum over the tensors of a factor of the tensor's own times
//! its relative squared error ‖W − Ŵ‖² / ‖W‖² (Malinovskii et al., "Pushing the Limits of Large Language Model Quantization via
//! the Linearity Theorem", 2024). It holds here too: with one class of tiny-llama in Q4_0 or in Q5_0, whose squared errors differ
//! fourfold, the factors found agree within 15 %.
//!
//! The factors below were measured so: everything in F16 but one class in Q4_0 (SmolLM2-135M, tiny-llama) or Q5_0
//! (tiny-deepseek), 2 to 4 thousand tokens of text, mean divergence over relative squared error, relative to that of the
//! down-projections; geometric means where both dense models have the class. They differ by up to a factor of four between these
//! models. Measured costs of the very model are better: these are for when there are none.

use formats::output::Class;

/// The factor of a class as a whole, relative to the down-projections of all MLPs (1).
pub fn sensitivity(class: Class) -> f64 {
    match class {
        // SmolLM2's embedding is its head too: 0.74 together. The tiny models: 1.7 and 4.8, their heads 3.6 and 2.7.
        Class::Embedding => 0.7,
        Class::Output => 1.5,
        Class::AttnQ => 0.16,
        Class::AttnK => 0.18,
        Class::AttnV => 0.49,
        // Not measured: the sum of the three.
        Class::AttnQkv => 0.83,
        Class::AttnOutput => 0.20,
        Class::AttnQA => 0.05,
        Class::AttnQB => 0.30,
        Class::AttnKvA => 1.6,
        Class::AttnKB => 0.07,
        Class::AttnVB => 1.6,
        Class::FfnGate => 0.43,
        Class::FfnUp => 0.44,
        Class::FfnDown => 1.0,
        Class::SharedGate => 0.03,
        Class::SharedUp => 0.01,
        Class::SharedDown => 0.08,
        Class::ExpertGate => 0.17,
        Class::ExpertUp => 0.19,
        Class::ExpertDown => 1.0,
        // Not measured: as a projection among others.
        Class::Other => 0.5,
        // Never quantized.
        Class::Vector | Class::RouterBias | Class::Decay | Class::Router => 0.0,
    }
}

/// How much more a layer matters than one in the middle. Measured with all of a layer in Q4_0: the last of SmolLM2's 30 layers
/// causes 5 times the divergence of the others' mean, its first the same as the others; of tiny-llama's four layers the first and
/// the last cause 3 times what those between do.
pub fn depth(layer: Option<u32>, layers: u32) -> f64 {
    match layer {
        Some(layer) if layer + 1 == layers => 4.0,
        Some(0) => 2.0,
        _ => 1.0,
    }
}

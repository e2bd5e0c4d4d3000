//! What becomes of the kernels on a Mac: their translation to Metal, as a device makes it.

use std::collections::HashMap;

use halfbyte_kernels::shaders::{
    Decoder, Function, Operands, Other, Shader, Unit, attention, convolution, copy, count, decode,
    delta_rule, divergence, elementwise, gather, halve, matmul, rms_norm, rope, scatter_add,
};
use halfbyte_kernels::{q4_k, table};

/// A kernel in Metal's language.
fn metal(shader: &Shader) -> String {
    use naga::back::msl;
    let module = naga::front::wgsl::parse_str(&shader.text)
        .unwrap_or_else(|error| panic!("{}: {}", shader.name, error.emit_to_string(&shader.text)));
    let mut validator =
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    let info = validator
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", shader.name, error.emit_to_string(&shader.text)));
    let options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        zero_initialize_workgroup_memory: false,
        bounds_check_policies: naga::proc::BoundsCheckPolicies {
            index: naga::proc::BoundsCheckPolicy::Unchecked,
            buffer: naga::proc::BoundsCheckPolicy::Unchecked,
            ..Default::default()
        },
        force_loop_bounding: false,
        ..Default::default()
    };
    let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|error| panic!("{}: {error}", shader.name));
    text
}

fn snapshot(shader: &Shader) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(shader.name.replace(' ', "_"), metal(shader));
    });
}

fn decoders() -> impl Iterator<Item = Decoder> {
    table::all().map(Decoder::of).chain([128, 32].map(Decoder::fp8))
}

#[test]
fn decoders_of_a_name_have_one_text() {
    let mut texts = HashMap::new();
    for decoder in decoders() {
        let known = texts.insert(decoder.name.clone(), decoder.text);
        assert_eq!(known, None, "{} is twice in the table", decoder.name);
    }
}

#[test]
fn every_decoder_is_valid() {
    // Of MLX's affine formats and of compressed-tensors', which differ in constants, some.
    let shown = [
        "mlx 4bit-g64",
        "mlx 3bit-g32-f16",
        "mlx 5bit-g128-f32",
        "mlx 8bit-g64",
        "w4a16-g128",
        "w4a16-g32-f32",
        "w4a16-asym-g128",
    ];
    for decoder in decoders() {
        let shader = decode(&decoder);
        let is_one_of_many = ["bit-g", "w4a16"].iter().any(|part| decoder.name.contains(part));
        if !is_one_of_many || shown.contains(&decoder.name.as_str()) {
            snapshot(&shader);
        } else {
            metal(&shader);
        }
    }
}

#[test]
fn products_are_valid() {
    let shown = Decoder::of(&q4_k::Q4_K);
    for operands in [Operands::F32, Operands::F16] {
        for unit in [Unit::Plain, Unit::Cooperative] {
            snapshot(&matmul(&shown, operands, unit));
            for decoder in decoders() {
                metal(&matmul(&decoder, operands, unit));
            }
        }
    }
}

#[test]
fn what_is_done_to_rows_is_valid() {
    use Function::{Add, Clamped, GeluTanh, Multiply, Scale, SigmoidGate, Silu, SoftCap};
    let elementwise = [
        (Add, Other::Same),
        (Add, Other::Column),
        (Multiply, Other::Row),
        (Scale, Other::None),
        (SoftCap, Other::None),
        (SigmoidGate, Other::Same),
        (SigmoidGate, Other::Row),
        (Silu, Other::Same),
        (GeluTanh, Other::Same),
        (Clamped, Other::Same),
    ]
    .map(|(function, other)| elementwise(function, other));
    let others = [rms_norm(), rope(), gather(), scatter_add(), halve(), copy(), count()];
    elementwise.iter().chain(&others).for_each(snapshot);
}

#[test]
fn what_looks_along_a_sequence_is_valid() {
    // Heads of Llama's width, of DeepSeek's, the widest (absorbed latents), and of widths that are no multiple of 4.
    for (key, value, queries) in [(128, 128, 32), (192, 128, 32), (64, 64, 64), (576, 512, 32), (6, 9, 64)] {
        snapshot(&attention(key, value, queries));
    }
    let others = [convolution(), delta_rule(128, 128), divergence(false), divergence(true)];
    others.iter().for_each(snapshot);
}

//! Byte-reproducible output: whatever the threads and the instruction set.

use crate::tool::{hashes, model, quantize, run};

#[test]
fn the_same_bytes_from_any_number_of_threads_and_any_instruction_set() {
    let dir = tempfile::tempdir().expect("dir");
    for (source, to, format) in [
        ("tiny-llama", "gguf", "q4_k_m"),
        ("tiny-llama", "gguf", "q2_k"),
        ("tiny-llama", "gguf", "iq4_xs"),
        ("tiny-deepseek", "gguf", "q4_0"),
        ("tiny-llama", "gguf", "nvfp4"),
        ("tiny-llama", "mlx", "4bit-g64"),
        ("tiny-deepseek", "mlx", "nvfp4"),
        ("tiny-deepseek", "compressed-tensors", "w4a16-g64"),
        ("tiny-llama", "compressed-tensors", "w4a16-asym-g32"),
        ("tiny-llama", "gptq", "w4a16-g64"),
        ("tiny-llama", "awq", "w4a16-asym-g64"),
    ] {
        let variants = [("scalar", "2"), ("avx2", "1"), ("avx512", "2"), ("neon", "2"), ("", "5")];
        let mut expected = None;
        for (isa, threads) in variants {
            let ending = if to == "gguf" { ".gguf" } else { "" };
            let out = dir.path().join(format!("{source}-{format}-{isa}{ending}"));
            let mut command = quantize(&model(source), to, format, &out);
            run(command.args(["--threads", threads]).env("HALFBYTE_ISA", isa));
            let found: Vec<String> = hashes(&out).into_iter().map(|(_, hash)| hash).collect();
            let expected = expected.get_or_insert_with(|| found.clone());
            assert_eq!(&found, expected, "{source} {to} {format} with {isa}, {threads} threads");
        }
    }
}

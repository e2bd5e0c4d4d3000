//! Encoding errors of every format against its peer's own encoder (ggml's or MLX's) on real and synthetic matrices.
//!
//! `HALFBYTE_ORACLES` names a folder with `encode/inputs.safetensors` (each matrix `name` [rows, columns] and
//! `name.importance` [columns], F32) and `encode/peer_errors.json` (RMS errors by matrix, type, and way of encoding):
//! `HALFBYTE_ORACLES=... cargo test -p halfbyte-kernels --test oracle_encode -- --ignored --nocapture`.

use halfbyte_kernels::{Format, Isa, table};
use safetensors::SafeTensors;
use serde_json::Value;

/// Every format with an encoder, and its name in the peers' figures: ggml's types, then MLX's modes.
fn formats() -> impl Iterator<Item = (&'static Format, String)> {
    let ggml = table::GGUF.iter().map(|format| (*format, format.name.to_uppercase()));
    let mlx = table::MLX.iter().map(|format| {
        let name = match format.name.split_once("bit-g") {
            Some((bits, group)) => format!("mlx_affine_b{bits}_g{group}"),
            None => format!("mlx_{}", format.name),
        };
        (*format, name)
    });
    ggml.chain(mlx).filter(|(format, _)| format.encode.is_some())
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// RMS error of encoding and decoding again, weighted by `importance` if the encoder was given one.
fn rms(format: &Format, src: &[f32], importance: Option<&[f32]>) -> f64 {
    let bytes = |p: usize| vec![0; format.plane_bytes(p, src.len() as u64).expect("whole blocks") as usize];
    let mut planes: Vec<Vec<u8>> = (0..format.planes.len()).map(bytes).collect();
    let mut out: Vec<&mut [u8]> = planes.iter_mut().map(Vec::as_mut_slice).collect();
    format.encode.expect("rows with an encoder")(format, Isa::detect(), src, importance, &mut out);
    let mut decoded = vec![f32::NAN; src.len()];
    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    (format.decode)(format, Isa::detect(), &planes, &mut decoded);
    let (mut sum, mut all) = (0.0, 0.0);
    for (i, (x, y)) in src.iter().zip(&decoded).enumerate() {
        let w = importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
        sum += w * (f64::from(*x) - f64::from(*y)).powi(2);
        all += w;
    }
    (sum / all).sqrt()
}

#[test]
#[ignore = "needs the folder that HALFBYTE_ORACLES names"]
fn every_encoder_errs_no_more_than_its_peer() {
    let folder = std::env::var("HALFBYTE_ORACLES").expect("HALFBYTE_ORACLES must name the folder of oracles");
    let read = |name: &str| {
        let path = format!("{folder}/encode/{name}");
        std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let inputs = read("inputs.safetensors");
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let peers: Value = serde_json::from_slice(&read("peer_errors.json")).unwrap();

    let (mut compared, mut worse) = (0, Vec::new());
    println!("| format | input | importance | RMS error | peer's | ratio |\n|---|---|---|---|---|---|");
    for (format, name) in formats() {
        for (input, types) in peers.as_object().unwrap() {
            let peer = &types[&name];
            let weights = f32s(inputs.tensor(input).unwrap().data());
            let importance = f32s(inputs.tensor(&format!("{input}.importance")).unwrap().data());
            for (way, given, figure) in
                [("plain", None, "rmse"), ("importance", Some(&importance[..]), "weighted_rmse")]
            {
                let Some(theirs) = peer[way][figure].as_f64() else { continue };
                let ours = rms(format, &weights, given);
                let line = format!(
                    "| {name} | {input} | {way} | {ours:.4e} | {theirs:.4e} | {:.4} |",
                    ours / theirs
                );
                println!("{line}");
                compared += 1;
                // A peer's figure has gone through other sums: equal codes may differ in the last digits.
                if ours > theirs * (1.0 + 1e-6) {
                    worse.push(line);
                }
            }
        }
    }
    assert!(compared > 0, "the oracles know none of the formats");
    assert!(worse.is_empty(), "worse than the peer:\n{}", worse.join("\n"));
}

//! Every format decodes to the bits that its container's own reader gives (gguf-py, mlx), on every instruction set.
//! The fixtures are made by `tests/oracles/make_decode.py`.

use std::collections::BTreeMap;

use halfbyte_kernels::{Format, Isa, table};
use safetensors::SafeTensors;

/// Planes and values of each format in a file.
type Fixtures = BTreeMap<String, (Vec<Vec<u8>>, Vec<f32>)>;

fn fixtures(file: &str) -> Fixtures {
    let path = format!("{}/../tests/fixtures/decode/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).expect(&path);
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut names = tensors.names();
    names.sort();
    let mut all = Fixtures::new();
    for name in names {
        let (format, part) = name.rsplit_once('.').expect("format and plane");
        let entry = all.entry(format.to_string()).or_default();
        let data = tensors.tensor(name).expect("a tensor").data();
        if part == "values" {
            entry.1 = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        } else {
            entry.0.push(data.to_vec());
        }
    }
    all
}

fn decodes_as_its_own_reader(file: &str, formats: &[&Format]) {
    let fixtures = fixtures(file);
    for name in fixtures.keys() {
        assert!(formats.iter().any(|format| format.name == name), "no row of the table decodes {name}");
    }
    for format in formats.iter().filter(|format| format.name != "f32") {
        let (planes, values) = fixtures.get(format.name).expect(format.name);
        assert_eq!(planes.len(), format.planes.len(), "{format:?}");
        for (p, plane) in planes.iter().enumerate() {
            assert_eq!(Some(plane.len() as u64), format.plane_bytes(p, values.len() as u64), "{format:?}");
        }
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        for isa in Isa::available() {
            let mut got = vec![f32::NAN; values.len()];
            (format.decode)(format, isa, &planes, &mut got);
            for (i, (got, want)) in got.iter().zip(values).enumerate() {
                let isa = isa.name();
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{format:?}, {isa}: weight {i} is {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn gguf_types_decode_as_in_gguf_py() {
    decodes_as_its_own_reader("gguf", table::GGUF);
}

#[test]
fn mlx_modes_decode_as_in_mlx() {
    decodes_as_its_own_reader("mlx", table::MLX);
}

use std::fs;
use std::path::Path;

use halfbyte_formats::checkpoint::{Checkpoint, Weights};
use halfbyte_formats::joined::Joined;
use halfbyte_formats::mlx::{self, Options, Tensor};
use halfbyte_formats::mlx_folder;
use halfbyte_formats::safetensors::Safetensors;
use halfbyte_formats::{Dtype, Error, Part, TensorSource, output::Map, rows, scales};
use kernels::{Isa, float, table};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{names, safetensors_file, write};

const MODES: [&str; 5] = ["4bit-g64", "3bit-g32-f16", "8bit-g32-f32", "mxfp4", "nvfp4"];

/// A module of [3, 128] in each of [`MODES`] and one that is not quantized; plane p of the t-th holds t + 50 · p.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let modes = MODES.map(|name| table::mlx(name).unwrap());
    let formats = modes.into_iter().chain([&float::BF16]);
    let module = |(name, format)| Tensor { name, module: true, layer: None, shape: &[3, 128], format };
    let tensors: Vec<_> = ["a", "b", "c", "d", "e", "f"].into_iter().zip(formats).map(module).collect();
    let layout =
        mlx::layout(&tensors, &Options { shard_size: 1000, shard_after: &[], metadata: &[] }).unwrap();
    write(folder.path(), &layout);
    for (t, planes) in layout.planes.iter().enumerate() {
        for (p, place) in planes.iter().enumerate() {
            let path = folder.path().join(&layout.files[place.file].name);
            let mut bytes = fs::read(&path).unwrap();
            bytes[place.offset as usize..][..place.len as usize].fill((t + 50 * p) as u8);
            fs::write(path, bytes).unwrap();
        }
    }
    let config = mlx::config(Path::new("config.json"), "{}", &tensors).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

fn open(path: &Path) -> Result<Joined, Error> {
    match Checkpoint::open(&path.into())?.weights {
        Weights::Mlx(folder) => Ok(folder),
        other => panic!("not MLX: {other:?}"),
    }
}

#[test]
fn a_quantized_module_is_one_tensor_of_several_planes() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    assert!(source.is_mlx());
    assert_eq!(source.tensors().len(), 6);
    for (t, name) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        let id = source.find(&format!("{name}.weight")).unwrap();
        let meta = source.meta(id);
        let format = MODES.get(t).map_or(&float::BF16, |mode| table::mlx(mode).unwrap());
        assert_eq!((meta.dtype, &meta.shape[..]), (Dtype::Block(format), &[3, 128][..]), "{name}");
        let expected: Vec<u8> = (0..format.planes.len())
            .flat_map(|p| vec![(t + 50 * p) as u8; format.plane_bytes(p, 3 * 128).unwrap() as usize])
            .collect();
        assert_eq!(meta.len, expected.len() as u64, "{name}");
        // From every byte to every other: within planes and across them.
        for start in 0..expected.len() {
            let mut bytes = vec![0; expected.len() - start];
            source.read_at(id, start as u64, &mut bytes).unwrap();
            assert_eq!(bytes, expected[start..], "{name} from {start}");
            source.read_at(id, 0, &mut bytes[..1]).unwrap();
        }
        assert!(matches!(source.read_at(id, meta.len, &mut [0]), Err(Error::OutOfTensor { .. })));
    }
}

#[test]
fn rows_are_what_their_planes_decode_to() {
    let folder = folder();
    let source = open(folder.path()).unwrap();
    let none = scales::Scales::find(&source, scales::DEFAULT_BLOCK).unwrap();
    for (t, mode) in MODES.into_iter().enumerate() {
        let format = table::mlx(mode).unwrap();
        let planes: Vec<Vec<u8>> = (0..format.planes.len())
            .map(|p| vec![(t + 50 * p) as u8; format.plane_bytes(p, 2 * 128).unwrap() as usize])
            .collect();
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let mut expected = vec![0.0; 2 * 128];
        (format.decode)(format, Isa::detect(), &planes, &mut expected);
        let id = source.find(&format!("{}.weight", ["a", "b", "c", "d", "e"][t])).unwrap();
        let part = Part { source: id, columns: 128, rows: 1..3, map: Map::Identity };
        let (mut buffer, mut weights) = (Vec::new(), vec![0.0; 2 * 128]);
        let raw = rows::read(&source, &none, &part, &mut buffer).unwrap();
        raw.widen(&source, &part, 0..2, &buffer, Isa::detect(), &mut weights).unwrap();
        assert_eq!(weights, expected, "{mode}");
    }
}

#[test]
fn what_contradicts_the_configuration_is_refused() {
    for (change, parts) in [
        (json!({ "bits": 8 }), &["8 bits in groups of 64", "a.weight [3, 16]", "[3, 2]"][..]),
        (json!({ "bits": 7 }), &["affine", "7 bits", "none of MLX's"]),
        (json!({ "group_size": 0 }), &["no possible group_size", "a"]),
        (json!({ "mode": "mxfp5" }), &["mxfp5", "none of MLX's"]),
        (json!({ "mode": "bf16" }), &["bf16", "none of MLX's"]),
        (json!({ "mode": "mxfp4" }), &["mxfp4", "none of MLX's"]),
        (json!({ "mode": "mxfp4", "group_size": 32 }), &["can't have", "a.scales bf16", "a.biases bf16"]),
        (json!({ "d": { "group_size": 64, "bits": 4 } }), &["affine", "d.scales U8"]),
        (json!({ "b": false }), &["not quantized", "b"]),
    ] {
        let folder = folder();
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        // The default is what `a` has.
        let quantization = config["quantization"].as_object_mut().unwrap();
        quantization.insert("a".into(), json!({ "group_size": 64, "bits": 4, "mode": "affine" }));
        for (key, value) in change.as_object().unwrap() {
            match value.is_object() || value.is_boolean() {
                true => quantization.insert(key.clone(), value.clone()),
                false => quantization["a"].as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        fs::write(&path, config.to_string()).unwrap();
        let error = open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{change}");
        names(&error, &[&["config.json"], parts].concat());
    }
}

/// One module whose scales and biases have these shapes.
fn shapes(scales: &str, biases: &str, bytes: usize) -> Result<Joined, Error> {
    let folder = TempDir::new().unwrap();
    let header = format!(
        r#"{{"a.weight":{{"dtype":"U32","shape":[2,2,8],"data_offsets":[0,128]}},
            "a.scales":{{"dtype":"BF16","shape":{scales},"data_offsets":[128,{}]}},
            "a.biases":{{"dtype":"BF16","shape":{biases},"data_offsets":[{0},{}]}}}}"#,
        128 + bytes,
        128 + 2 * bytes,
    );
    let path = folder.path().join("model.safetensors");
    fs::write(&path, safetensors_file(&header, &vec![0; 128 + 2 * bytes])).unwrap();
    let quantization = json!({ "group_size": 64, "bits": 4 });
    mlx_folder::join(
        Path::new("config.json"),
        Safetensors::open_file(&path).unwrap(),
        quantization.as_object(),
    )
}

#[test]
fn scales_must_have_the_shape_of_their_weight() {
    assert_eq!(shapes("[2,2,1]", "[2,2,1]", 8).unwrap().tensors()[0].shape, [2, 2, 64]);
    for (scales, biases) in
        [("[4,1]", "[4,1]"), ("[2,1,2]", "[2,1,2]"), ("[2,2,1]", "[4,1,1]"), ("[1,4,1]", "[1,4,1]")]
    {
        let error = shapes(scales, biases, 8).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{scales} {biases}");
    }
}

#[test]
fn a_folder_of_hugging_face_is_none_of_mlx() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    for model in ["tiny-llama", "tiny-deepseek"] {
        let weights = Checkpoint::open(&models.join(model).into()).unwrap().weights;
        assert!(matches!(weights, Weights::Safetensors(_)));
    }
}
